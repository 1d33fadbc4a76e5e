"""What `fsb data` and `fsb tasks show` tell: which sets are known, what is on disk, and what a model reads of them."""

import functools
import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.corpora import CorpusTask
from fsb_jax.tasks.files import DataFile, data_directory
from fsb_jax.tasks.registry import MIXTURES, Task, info, known_tasks
from fsb_jax.tasks.text_task import load_split

_KNOWN = Path(__file__).with_name("known_files.json")
_SECONDS_WITHOUT_A_BYTE = 30
_HUB = "hf://datasets/"


def list_data(data_dir: str | None) -> Iterator[str]:
  """A line for every known set: where it comes from and which of its splits are on disk."""
  folder = data_directory(data_dir)
  for name, task in _with_data().items():
    if isinstance(task, CorpusTask):
      yield f"{name}: TensorFlow Datasets' {task.tfds_name}, where you have it prepared"
      continue
    here = [split for split in task.splits if folder and not task.published.missing(split, folder)]
    on_disk = "all" if len(here) == len(task.splits) else ", ".join(here) or "nothing"
    fetched = "fsb data download fetches it" if task.published.addresses else "get it yourself"
    yield f"{name}: on disk {on_disk}; from {task.published.source}; {fetched}"


def check_data(names: Sequence[str], data_dir: str | None) -> Iterator[tuple[bool, str]]:
  """Reads every split of the named sets that is on disk; all sets where none is named.

  Yields:
    Whether it is well, and a line: rows, labels, sha256 of the files, and whether these are the rows and the files that
    are known. A file that cannot be read is not well, nor is one with other rows than the published one has; other
    bytes, as of another copy of the same rows, are told, and so is a file known to stand in for another.
  """
  folder = _require_directory(data_dir)
  for name in _tasks_of(names) or _with_data():
    task = known_tasks()[name]
    if isinstance(task, CorpusTask):
      continue
    for split in task.splits:
      missing = task.published.missing(split, folder)
      if missing and not names:
        continue
      try:
        yield _check(task, split, folder, stand_in=bool(missing))
      except UserError as error:
        other = task.published.stand_in_elsewhere(split, folder)
        if other:
          is_for, stand_in = other
          yield True, f"{name} {split}: not there; {stand_in.path} is {stand_in.what}, a stand-in for {is_for}"
        else:
          yield False, f"{name} {split}: {error}"


def describe_split(task: Task, split: str, data_dir: Path) -> dict:
  """What is known of a split's files: `rows`, `labels` (how many of each), `sha256` of their bytes."""
  rows = load_split(task, split, data_dir)
  names = [each.get("label") for each in rows.examples]
  counts = {}
  if task.label_names and names and names[0] is not None:
    for label in names:
      if label >= 0:
        counts[task.label_names[label]] = counts.get(task.label_names[label], 0) + 1
  digest = hashlib.sha256()
  for file in task.published.locate(task.name, split, data_dir):
    _add_bytes(digest, file)
  return {"rows": len(rows.examples), "labels": counts, "sha256": digest.hexdigest()}


def download_data(names: Sequence[str], data_dir: str | None) -> Iterator[str]:
  """Fetches what the named tasks lack and can be fetched; yields a line for every file.

  Raises:
    UserError: no task is named, there is no network, or a set must be asked for.
  """
  folder = _require_directory(data_dir)
  if not names:
    raise UserError("Name the tasks or mixtures to download, such as: fsb data download tnews fewclue.")
  for name in _tasks_of(names):
    task = known_tasks()[name]
    if isinstance(task, CorpusTask):
      raise UserError(
        f"{name} is prepared by TensorFlow Datasets: tfds build {task.tfds_name} --data_dir "
        f"{folder / 'tensorflow_datasets'}."
      )
    if not any(task.published.missing(split, folder) for split in task.splits):
      yield f"{name}: is on disk"
      continue
    if not task.published.addresses:
      raise UserError(f"{name} has no address to fetch it from; get it from {task.published.source}.")
    for path, address in task.published.addresses.items():
      if (folder / path).exists():
        yield f"{folder / path}: is there"
        continue
      _fetch(address, folder / path)
      yield f"{folder / path}: fetched from {address}"


def show_task(
  name: str, tokenizer, split: str | None = None, count: int = 3, max_length: int = 128, data_dir: str | None = None
) -> Iterator[str]:
  """Lines that show a few examples of a task: as published, as the task's, in tokens, and what a model is given.

  Args:
    name: a task or a member of a mixture.
    tokenizer: the checkpoint's.
    split: the task's first one that is on disk if not given.
    count: how many examples.
    max_length: longest row in tokens.
    data_dir: where data lies; FSB_DATA_DIR if not given.
  """
  import seqio

  from fsb_jax.tasks.seqio_tasks import TaskSource, register

  found = info(name)
  if found.members:
    raise UserError(f"{name} is a mixture; show one of {', '.join(found.members)}.")
  if split is not None and split not in found.splits:
    raise UserError(f"Task {name} has no split {split!r}; its splits are {', '.join(found.splits)}.")
  register(tokenizer, data_dir)
  task = seqio.TaskRegistry.get(name)
  split = split or _first_on_disk(name, found.splits, data_directory(data_dir))
  yield found.describe()
  lengths = dict.fromkeys(("input_ids", "token_type_ids", "word_ids", "labels"), max_length)
  dataset = task.get_dataset(sequence_length=lengths, split=split, shuffle=False, num_epochs=1)
  if isinstance(task.source, TaskSource):
    fields = task.source.fields(split)
    for number, example in zip(range(count), task.source.examples(split)):
      if fields:
        yield f"{split} {number} as published: {json.dumps(fields[number], ensure_ascii=False)}"
      yield f"{split} {number} example: {json.dumps(example, ensure_ascii=False)}"
  for number, row in enumerate(dataset.take(count).as_numpy_iterator()):
    yield f"row {number} tokens: {' '.join(tokenizer.convert_ids_to_tokens(row['input_ids'].tolist()))}"
    for key, value in row.items():
      yield f"row {number} {key}: {value.tolist()}"


def _check(task: Task, split: str, folder: Path, stand_in: bool) -> tuple[bool, str]:
  found = describe_split(task, split, folder)
  line = f"{task.name} {split}: {found['rows']:,} rows"
  if found["labels"]:
    line += f", {len(found['labels'])} labels"
  line += f", sha256 {found['sha256'][:16]}"
  known = _known_files().get(task.name, {}).get(split)
  if stand_in:
    return True, f"{line}; a stand-in, not the published file"
  if known is None:
    return True, f"{line}; nothing to compare it with"
  if known["rows"] != found["rows"]:
    return False, f"{line}; the published file has {known['rows']:,} rows: fetch it again"
  same = "the known file" if known["sha256"] == found["sha256"] else "as many rows as the known file, other bytes"
  return True, f"{line}; {same}"


def _with_data() -> dict[str, Task]:
  return {
    name: task
    for name, task in known_tasks().items()
    if isinstance(task, CorpusTask) or getattr(task, "published", None)
  }


def _tasks_of(names: Sequence[str]) -> list[str]:
  """The tasks behind names of tasks and mixtures, each once."""
  known, found = _with_data(), []
  for name in names:
    members = MIXTURES.get(name, (name,))
    for member in members:
      if member not in known:
        raise UserError(f"There is no published set {member!r}; the known ones are {', '.join([*known, *MIXTURES])}.")
      found.append(member)
  return list(dict.fromkeys(found))


def _require_directory(data_dir: str | None) -> Path:
  folder = data_directory(data_dir)
  if folder is None:
    raise UserError("Name the data directory: set FSB_DATA_DIR or give --data_dir.")
  return folder


def _first_on_disk(name: str, splits: Sequence[str], folder: Path | None) -> str:
  published = getattr(known_tasks()[name.split(".")[-1]], "published", None)
  here = [split for split in splits if not published or (folder and not published.missing(split, folder))]
  return (here or splits)[0]


def _add_bytes(digest, file: DataFile) -> None:
  with file.open() as handle:
    while block := handle.read(1 << 20):
      digest.update(block)


@functools.cache
def _known_files() -> dict:
  return json.loads(_KNOWN.read_text("utf-8"))


def _fetch(address: str, target: Path) -> None:
  """Downloads a file, whole or not at all."""
  target.parent.mkdir(parents=True, exist_ok=True)
  if address.startswith(_HUB):
    _fetch_from_hub(address, target)
    return
  unfinished = target.with_name(f".{target.name}.unfinished")
  try:
    with urllib.request.urlopen(address, timeout=_SECONDS_WITHOUT_A_BYTE) as answer, unfinished.open("wb") as handle:
      shutil.copyfileobj(answer, handle)
      promised = answer.headers.get("Content-Length")
    if promised is not None and unfinished.stat().st_size != int(promised):
      raise OSError(f"{unfinished.stat().st_size} of {promised} bytes came")
    unfinished.replace(target)
  except (urllib.error.URLError, OSError) as error:
    raise _not_fetched(address, target, str(error)) from error
  finally:
    unfinished.unlink(missing_ok=True)


def _fetch_from_hub(address: str, target: Path) -> None:
  """Downloads one file of a data set of the Hub; nothing of the repository is run."""
  import huggingface_hub

  organisation, name, file = address.removeprefix(_HUB).split("/", 2)
  unfinished = target.with_name(f".{target.name}.unfinished")
  try:
    kept = huggingface_hub.hf_hub_download(f"{organisation}/{name}", file, repo_type="dataset")
    shutil.copyfile(kept, unfinished)
    unfinished.replace(target)
  except Exception as error:  # of whichever library it reaches the network with
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise _not_fetched(address, target, reason) from error
  finally:
    unfinished.unlink(missing_ok=True)


def _not_fetched(address: str, target: Path, reason: str) -> UserError:
  return UserError(
    f"{address} cannot be fetched ({reason}); fetch it where there is a network and put it at {target}."
  )
