"""Tasks tokenised once, by SeqIO's Beam pipeline, and read from there instead of from their files.

The folder is laid out as SeqIO does it, https://github.com/google/seqio: one for each task. Its `COMPLETED` holds, as
JSON, what the tokens were made with.
"""

import functools
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.tasks import registry
from fsb_jax.tasks.corpora import CorpusTask
from fsb_jax.tasks.files import data_directory
from fsb_jax.tasks.text_task import TextTask, load_split
from fsb_jax.version import __version__

_REGISTERING = threading.Lock()


def require_beam() -> None:
  """UserError where Apache Beam is not installed."""
  try:
    import apache_beam  # noqa: F401
  except ModuleNotFoundError as error:
    raise UserError(
      f"A cache is made with Apache Beam, which is not installed ({error}); pip install 'fsb_jax[beam]' brings it."
    ) from error


def cache_task(
  task: Any,
  *,
  tokenizer,
  output: str | os.PathLike,
  splits: Sequence[str] = (),
  data_dir: str | None = None,
  runner: str = "DirectRunner",
  options: Sequence[str] = (),
) -> Iterator[str]:
  """Tokenises a task, or every task of a mixture, into a folder that `Loader(cache_dir=)` reads.

  Args:
    task: name of a classification, of plain text or of a mixture; or a task from `table_task` or `plain_text_task`.
    tokenizer: the checkpoint's.
    output: the folder, on a disk or in a bucket that the runner's workers reach.
    splits: which ones; those whose files are there if none is named.
    data_dir: where data lies; FSB_DATA_DIR if not given.
    runner: Beam's: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner.
    options: of the runner, as Beam writes them: `--direct_num_workers=4`.

  Yields:
    A line for every split.

  Raises:
    UserError: Beam is not installed, a split has no files, or the folder holds a cache made with something else.
  """
  require_beam()
  if task is None:
    raise UserError("Name the task to cache, such as: fsb data cache tnews; or give a --gin_file of gin/tasks.")
  import seqio

  from fsb_jax.tasks.seqio_tasks import register

  found, folder = registry.info(getattr(task, "name", task)), data_directory(data_dir)
  register(tokenizer, folder)
  chosen = {}
  for name in found.members or (found.name,):
    if not seqio.TaskRegistry.get(name).supports_caching:
      raise UserError(f"Task {name} ({registry.info(name).kind}) cannot be cached; classifications and plain text can.")
    chosen[name] = _splits_to_do(name, splits, folder, output)
  for name, to_do in chosen.items():
    if not to_do:
      yield f"{name}: is in {output}"
      continue
    setup = functools.partial(_register_on_worker, name, tokenizer, folder, tuple(registry.declared_tasks()))
    target = _folder(output, name)
    _run_pipeline(seqio.TaskRegistry.get(name), to_do, target, setup, [f"--runner={runner}", *options])
    _complete(name, to_do, output)
    for split in to_do:
      stats = json.loads(_read(seqio.get_cached_stats_path(target, split)))
      tokens = sum(stats.get(f"{feature}_tokens", 0) for feature in ("input_ids", "pair_ids"))
      yield f"{name} {split}: {stats['examples']:,} examples, {tokens:,} tokens in {target}"


def cached_columns(
  task, split: str, cache_dir: str | os.PathLike, sequence_length: Mapping[str, int]
) -> dict[str, list[np.ndarray]]:
  """The rows of a split from a cache, by column, in the order of the task's own files.

  (A corpus of TensorFlow Datasets stays in the cache's order.)

  Args:
    task: a SeqIO task of ours.
    split: which split.
    cache_dir: what `cache_task` wrote.
    sequence_length: the longest row in tokens, by feature.

  Raises:
    UserError: the split is not there, is damaged, or was made with another tokenizer or other labels.
  """
  import seqio
  import tensorflow as tf

  record = _record(cache_dir, task.name) if task.name in registry.names() else None
  if record is None or split not in record["splits"]:
    raise UserError(
      f"CACHE_DIR {cache_dir} has no split {split!r} of {task.name}; make it with fsb data cache {task.name} "
      f"--split {split} --output {cache_dir}."
    )
  _require_same(task.name, record, cache_dir)
  prefix = seqio.get_cached_tfrecord_prefix(_folder(cache_dir, task.name), split)
  count = json.loads(_read(seqio.get_cached_info_path(_folder(cache_dir, task.name), split)))["num_shards"]
  there = len(tf.io.gfile.glob(f"{prefix}-*-of-{count:05d}"))
  if there != count:
    raise UserError(f"{prefix} has {there} of its {count} files; remove the folder and cache {task.name} again.")
  before = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([os.fspath(cache_dir)])
  try:
    # A copy: a SeqIO task remembers where it found its cache.
    dataset = task.replace().get_dataset(
      sequence_length=sequence_length, split=split, use_cached=True, shuffle=False, num_epochs=1
    )
    rows = list(dataset.as_numpy_iterator())
  except tf.errors.DataLossError as error:
    raise UserError(f"{prefix} is damaged; remove the folder and cache {task.name} again.") from error
  finally:
    seqio.set_global_cache_dirs(before)
  # Beam shuffles; a document's rows stay together, in their order.
  rows.sort(key=lambda row: row.get("example", 0))
  return {name: [row[name] for row in rows] for name in task.output_features}


def _splits_to_do(name: str, splits: Sequence[str], folder: Path | None, output) -> tuple[str, ...]:
  """The splits to cache, less those that are; each is looked into before the work starts."""
  import seqio

  source = seqio.TaskRegistry.get(name).source
  known = registry.known_task(name)
  for split in splits:
    if split not in known.splits:
      raise UserError(f"Task {name} has no split {split!r}; its splits are {', '.join(known.splits)}.")
  published = getattr(known, "published", None)
  if not splits:
    splits = [each for each in known.splits if not published or (folder and not published.missing(each, folder))]
  record = _record(output, name)
  if record:
    _require_same(name, record, output)
  to_do = tuple(split for split in splits or known.splits[:1] if not record or split not in record["splits"])
  for split in to_do:
    if isinstance(known, CorpusTask):
      known.require_prepared(folder)
    elif isinstance(known, TextTask):
      load_split(known, split, folder)
    elif next(iter(source.examples(split)), None) is None:
      raise UserError(f"Task {name} has no examples in its split {split!r}.")
  return to_do


def _run_pipeline(task, splits: Sequence[str], folder: str, setup, options: Sequence[str]) -> None:
  import apache_beam as beam

  try:
    pipeline = beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(list(options)))
  except ValueError as error:
    raise UserError(f"Beam: {' '.join(str(error).split())}") from error
  try:
    with pipeline:
      for split in splits:
        _add_split(pipeline, task, split, folder, setup)
  except Exception as error:
    # A mistake in a file comes back from a worker as the text of another error.
    told = re.search(rf"{UserError.__module__}\.UserError: (.+)", str(error))
    if not told:
      raise
    raise UserError(told.group(1)) from error


def _add_split(pipeline, task, split: str, folder: str, setup) -> None:
  import apache_beam as beam
  import seqio
  from seqio import beam_utils

  preprocess = beam_utils.PreprocessTask(task, split, setup_fn=setup)
  count = len(preprocess.shards)
  examples = pipeline | f"{split}_examples" >> preprocess | f"{split}_shuffle" >> beam.Reshuffle()
  written = beam_utils.WriteExampleTfRecord(seqio.get_cached_tfrecord_prefix(folder, split), num_shards=count)
  info, stats = beam_utils.GetInfo(count), beam_utils.GetStats(_counted(task))
  write_info = beam_utils.WriteJson(seqio.get_cached_info_path(folder, split))
  write_stats = beam_utils.WriteJson(seqio.get_cached_stats_path(folder, split))
  _ = examples | f"{split}_write" >> written
  _ = examples | f"{split}_info" >> info | f"{split}_write_info" >> write_info
  _ = examples | f"{split}_stats" >> stats | f"{split}_write_stats" >> write_stats


def _counted(task) -> dict:
  """The features whose tokens are counted: those of texts."""
  return dict.fromkeys(("input_ids", "pair_ids"), task.output_features["input_ids"])


def _register_on_worker(name: str, tokenizer, folder: Path | None, declared: tuple) -> None:
  """Makes the task known where another process runs a part of the pipeline."""
  import seqio

  from fsb_jax.tasks.seqio_tasks import register

  with _REGISTERING:
    if name not in seqio.TaskRegistry.names():
      logging.getLogger("absl").setLevel(logging.WARNING)  # SeqIO logs whole examples
      for task in declared:
        registry.declare(task)
      register(tokenizer, folder)


def _made_with(name: str) -> dict[str, Any]:
  """What decides a task's tokens and labels, beside its files."""
  import seqio

  tokenize = seqio.TaskRegistry.get(name).preprocessors[0]
  return {
    "tokenizer": tokenize.vocabulary.fingerprint,
    "label names": list(registry.info(name).label_names),
    "whole words": getattr(tokenize, "whole_words", None),
  }


def _require_same(name: str, record: dict, cache_dir) -> None:
  differ = [what for what, value in _made_with(name).items() if record["made_with"].get(what) != value]
  if differ:
    raise UserError(
      f"{_folder(cache_dir, name)} was made with another choice of {', '.join(differ)}; remove it or name another "
      "folder."
    )


def _complete(name: str, splits: Sequence[str], output) -> None:
  import tensorflow as tf

  record = _record(output, name) or {"splits": []}
  record |= {"fsb_jax": __version__, "made_with": _made_with(name), "splits": [*record["splits"], *splits]}
  with tf.io.gfile.GFile(_completed(output, name), "w") as file:
    file.write(json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def _record(cache_dir, name: str) -> dict | None:
  import tensorflow as tf

  path = _completed(cache_dir, name)
  if not tf.io.gfile.exists(path):
    return None
  try:
    record = json.loads(_read(path))
    return {"made_with": dict(record["made_with"]), "splits": list(record["splits"])}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} does not say what the cache was made with; it was not made by fsb data cache.") from error


def _read(path: str) -> str:
  import tensorflow as tf

  with tf.io.gfile.GFile(path) as file:
    return file.read()


def _completed(cache_dir, name: str) -> str:
  return os.path.join(_folder(cache_dir, name), "COMPLETED")


def _folder(cache_dir, name: str) -> str:
  import seqio

  return os.path.join(os.path.expanduser(os.fspath(cache_dir)), seqio.get_task_dir_from_name(name))
