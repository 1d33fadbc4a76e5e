"""Registers the known tasks with SeqIO, for one checkpoint's tokenizer."""

import functools
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from fsb_jax.tasks import metrics
from fsb_jax.tasks.corpora import CorpusTask
from fsb_jax.tasks.files import data_directory
from fsb_jax.tasks.kinds import Kind, RowsTask, tag_classes
from fsb_jax.tasks.preprocessors import CutDocument, CutPair, EncodeKind, TokenizeDocument, TokenizePair
from fsb_jax.tasks.registry import MIXTURES, Task, TaskInfo, info, known_tasks, mixture_members
from fsb_jax.tasks.text_task import PlainTextTask, TextTask, load_split
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory

_SHUFFLED_DOCUMENTS = 10_000  # how many are held in memory to shuffle
_PARTS_OF_DOCUMENTS = 16  # what a cache of them is made in, side by side
_SPECS = {
  str: tf.TensorSpec([], tf.string),
  int: tf.TensorSpec([], tf.int32),
  float: tf.TensorSpec([], tf.float32),
  list[str]: tf.TensorSpec([None], tf.string),
  list[int]: tf.TensorSpec([None], tf.int32),
}


class TaskSource(seqio.DataSource):
  """The raw examples of a task: what its kind holds, see `examples_hold`, and `example`, their number in the split."""

  def __init__(self, task: Task, data_dir: Path | None):
    super().__init__(splits=task.splits)
    self._task = task
    self._data_dir = data_dir

  @property
  def kind(self) -> Kind | None:
    """The task's kind; None for classifications and plain text."""
    return getattr(self._task, "kind", None)

  def examples(self, split: str) -> Iterable[dict]:
    """The raw examples of a split, in the order of their files; documents are read as they are asked for."""
    if not isinstance(self._task, PlainTextTask):
      return load_split(self._task, split, self._data_dir).examples
    rows = self._task.read(split, self._data_dir)
    return ({"id": number, **fields} for number, (_, fields) in enumerate(rows))

  def fields(self, split: str) -> list[dict] | None:
    """The fields of every example as published; None for documents."""
    return None if isinstance(self._task, PlainTextTask) else load_split(self._task, split, self._data_dir).fields

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: the rows are sharded one by one."""
    return True

  def num_input_examples(self, split: str) -> int:
    """How many examples the split has; documents are counted by reading them."""
    return sum(1 for _ in self.examples(split))

  def list_shards(self, split: str) -> list[str]:
    """Names of the parts that a split is cached in; all read its files, and each takes every so-manieth example."""
    count = _PARTS_OF_DOCUMENTS if isinstance(self._task, PlainTextTask) else 1
    return [f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]

  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """The raw examples as a dataset; see `seqio.DataSource`."""
    signature = {name: _SPECS[form] for name, form in {**examples_hold(self._task), "example": int}.items()}
    part, parts = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)

    def rows():
      for number, example in itertools.islice(enumerate(self.examples(split)), part, None, parts):
        yield {**{name: example[name] for name in signature if name != "example"}, "example": number}

    dataset = tf.data.Dataset.from_generator(rows, output_signature=signature)
    if shuffle:
      examples = self.examples(split)
      dataset = dataset.shuffle(len(examples) if isinstance(examples, list) else _SHUFFLED_DOCUMENTS, seed=seed)
    return dataset


def examples_hold(task: Task) -> dict[str, Any]:
  """What an example of a task holds, by name: `str`, `int`, `float`, or a list of one of them."""
  if isinstance(task, RowsTask):
    return {"id": int, **task.kind.fields}
  if isinstance(task, TextTask):
    return {"id": int, "text": str} | ({"text_pair": str} if task.has_pair else {}) | {"label": int}
  return {"id": int, "text": str}


def register(tokenizer, data_dir: str | os.PathLike | None = None) -> None:
  """Registers every known task, and every mixture with its members, in SeqIO's registry.

  Nothing is read yet. Registering again, with another tokenizer or data directory, replaces.

  Args:
    tokenizer: the checkpoint's tokenizer, a transformers fast tokenizer.
    data_dir: where the published files lie; the environment variable FSB_DATA_DIR where it is None.
  """
  vocabulary = TokenizerVocabulary(tokenizer)
  data_dir = data_directory(data_dir)
  for name, task in known_tasks().items():
    _register_task(info(name), task, vocabulary, data_dir)
  for mixture in MIXTURES:
    members = mixture_members(mixture)
    for name, task in members.items():
      _register_task(info(name), task, vocabulary, data_dir)
    seqio.MixtureRegistry.remove(mixture)
    # Without stop_on_empty_dataset=False a single epoch would end with its shortest task.
    seqio.MixtureRegistry.add(
      mixture,
      list(members),
      default_rate=seqio.mixing_rate_num_examples,
      sample_fn=functools.partial(tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False),
    )


def _register_task(task_info: TaskInfo, task: Task, vocabulary: TokenizerVocabulary, data_dir: Path | None) -> None:
  tokens = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  source, scoring = TaskSource(task, data_dir), {}
  if isinstance(task, TextTask):
    tokenize = TokenizePair(vocabulary, label_offset=task_info.label_slice[0])
    steps = [tokenize, seqio.CacheDatasetPlaceholder(), CutPair(vocabulary)]
    labels = seqio.PassThroughVocabulary(len(task_info.label_names))
    targets = {"label": seqio.Feature(labels, add_eos=False, dtype=tf.int32, rank=0)}
    scoring = {
      "postprocess_fn": functools.partial(_label_of, label_slice=task_info.label_slice),
      "metric_fns": [metrics.accuracy],
    }
  elif isinstance(task, RowsTask):
    encode = EncodeKind(
      vocabulary, kind=task.kind, label_names=task_info.label_names, label_offset=task_info.label_slice[0]
    )
    steps = [encode]
    classes = seqio.PassThroughVocabulary(len(tag_classes(task_info.label_names)))
    targets = {"labels": seqio.Feature(classes, add_eos=False, dtype=tf.int32)} if "labels" in encode.tokens else {}
    targets |= {
      name: seqio.Feature(
        seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.int32 if form is int else tf.float32, rank=0
      )
      for name, form in task.kind.numbers.items()
      if name != "id"
    }
  else:
    # Hidden words are drawn by whoever serves the rows: anew in every epoch.
    tokenize = TokenizeDocument(vocabulary, whole_words=task.whole_words)
    steps = [tokenize, seqio.CacheDatasetPlaceholder(), CutDocument(vocabulary)]
    targets = {"word_ids": seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.int32)}
    if isinstance(task, CorpusTask):
      source = seqio.TfdsDataSource(
        task.tfds_name, tfds_data_dir=task.folder(data_dir), splits=dict(task.tfds_splits), read_only=True
      )
  seqio.TaskRegistry.remove(task_info.name)
  seqio.TaskRegistry.add(
    task_info.name,
    source=source,
    preprocessors=steps,
    output_features={"input_ids": tokens, "token_type_ids": tokens, **targets},
    **scoring,
  )


def _label_of(output, *, label_slice: tuple[int, int], is_target: bool = False, **unused) -> int:
  # SeqIO hands targets over as label ids, and a model's outputs as logits.
  return int(output) if is_target else int(metrics.predicted_labels(output, label_slice))
