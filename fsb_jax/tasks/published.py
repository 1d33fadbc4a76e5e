"""Published data sets: which files a task's splits are, where they lie, and where people get them."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from fsb_jax.errors import MissingDataError, UserError
from fsb_jax.tasks.files import DataFile, find


@dataclasses.dataclass(frozen=True)
class StandIn:
  """A file used where the official one is not there.

  Attributes:
    path: under the data directory, such as `ocnli/train.10k.json`.
    what: what it really is.
  """

  path: str
  what: str


# A file under the data directory; a tuple of files, of which the first that is there is used; or a list of files, all
# of which make up the split.
Files = str | StandIn | tuple | list


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
  """Where a task's files lie under the data directory, and where they come from.

  Attributes:
    files: the files of each split.
    source: where people get them, to be read by people: an address, or whom to ask.
    addresses: what can be fetched without asking anybody, from the path it belongs at to its address; a file of the
      Hub's is `hf://datasets/ORGANISATION/NAME/FILE`.
  """

  files: Mapping[str, Files]
  source: str
  addresses: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    return tuple(self.files)

  def locate(self, task: str, split: str, data_dir: Path | None) -> list[DataFile]:
    """The files of a split, in order; a stand-in is named in one line of the log.

    Raises:
      MissingDataError: one is not there; the message says where it was looked for and where to get it.
      UserError: there is no data directory.
    """
    if data_dir is None:
      raise UserError(f"Task {task} needs the data directory: set FSB_DATA_DIR, or --gin.DATA_DIR of a run.")
    return [self._locate(task, split, data_dir, part) for part in _parts(self.files[split])]

  def missing(self, split: str, data_dir: Path) -> list[str]:
    """The files of a split that are not there, stand-ins not counted as being there; none where it is complete."""
    alternatives = [_alternatives(part) for part in _parts(self.files[split])]
    return [
      " or ".join(each for each in part if isinstance(each, str))
      for part in alternatives
      if not any(_find(data_dir, each) for each in part if isinstance(each, str))
    ]

  def stand_in_elsewhere(self, split: str, data_dir: Path) -> tuple[str, StandIn] | None:
    """The split that a split's file is known to stand in for instead, and what it is; None where it is not."""
    own = [_find(data_dir, path) for path in _paths(self.files[split])]
    for other, parts in self.files.items():
      for each in (each for part in _parts(parts) for each in _alternatives(part) if isinstance(each, StandIn)):
        if other != split and (found := _find(data_dir, each.path)) and found in own:
          return other, each
    return None

  def _locate(self, task: str, split: str, data_dir: Path, part: Files) -> DataFile:
    alternatives = _alternatives(part)
    for each in alternatives:
      if isinstance(each, str):
        found = _find(data_dir, each)
      else:
        found = _find(data_dir, each.path)
        if found:
          logging.getLogger(__name__).warning(
            "%s, split %s: %s is not there, using %s (%s)",
            task, split, Path(_path(alternatives[0])).name, found, each.what,
          )
      if found:
        return found
    paths = " or ".join(map(_path, alternatives))
    folder = data_dir / Path(_path(alternatives[0])).parent
    raise MissingDataError(
      f"Task {task} found no file for its split {split!r}: looked in the data directory {data_dir} for {paths} (plain, "
      f".gz or in an archive); get it from {self.source} and put it into {folder}."
    )


def tables(folder: str, *names: str) -> tuple[str, ...]:
  """The forms in which a table called by one of `names` goes round: `folder/name.tsv`, ...."""
  return tuple(f"{folder}/{name}{suffix}" for name in names for suffix in (".tsv", ".json", ".jsonl", ".csv", ".txt"))


def _parts(parts: Files) -> list:
  return parts if isinstance(parts, list) else [parts]


def _paths(parts: Files) -> list[str]:
  return [each for part in _parts(parts) for each in _alternatives(part) if isinstance(each, str)]


def _alternatives(part: Files) -> tuple:
  return part if isinstance(part, tuple) else (part,)


def _path(each: str | StandIn) -> str:
  return each if isinstance(each, str) else each.path


def _find(data_dir: Path, path: str) -> DataFile | None:
  folder, _, name = path.rpartition("/")
  return find(data_dir, folder, name)
