"""What a task is, before any tokenizer: its texts, its labels if it has any, where its rows come from."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, Row, read_table
from fsb_jax.tasks.published import Published

NO_LABEL = -1

Column = str | tuple[str, ...] | Callable[[str, dict], str]  # see `make_split`


@dataclasses.dataclass(frozen=True)
class Split:
  """The rows of one split.

  Attributes:
    examples: per row `id` (the published id, else the row's number in its file), `text`, `text_pair` (pair tasks
      only), and `label` (a label id, `NO_LABEL` where the split has none).
    fields: per row the fields as published.
  """

  examples: list[dict]
  fields: list[dict]


@dataclasses.dataclass(frozen=True)
class TextTask:
  """A classification of single texts or of pairs.

  Attributes:
    name: the task's name, under which it is registered.
    summary: what is classified, in a few words.
    label_names: the label names in the order of their ids.
    has_pair: whether an example has a second text.
    splits: names of the splits.
    read: `(split, data_dir) -> Split`.
    published: its files, where it is a published set.
    head: the head of a model that it trains.
  """

  name: str
  summary: str
  label_names: tuple[str, ...]
  has_pair: bool
  splits: tuple[str, ...]
  read: Callable[[str, Path | None], Split]
  published: Published | None = None

  head = "sequence_classification"

  def __post_init__(self):
    require_task_name(self.name)
    if not self.label_names:
      raise UserError(f"Task {self.name} needs at least one label name.")
    repeated = [name for name in self.label_names if self.label_names.count(name) > 1]
    if repeated:
      raise UserError(f"Task {self.name}: label name {repeated[0]!r} is listed twice.")


@dataclasses.dataclass(frozen=True)
class PlainTextTask:
  """Documents whose hidden words a model learns to find.

  Attributes:
    name: the task's name, under which it is registered.
    summary: what the documents are, in a few words.
    splits: names of the splits.
    whole_words: whether all pieces of a word are hidden together.
    read: `(split, data_dir)` -> where each document stands and `{"text": ...}`, read as it is asked for.
    head: the head of a model that it trains.
  """

  name: str
  summary: str
  splits: tuple[str, ...]
  whole_words: bool
  read: Callable[[str, Path | None], Iterator[Row]]

  head = "masked_lm"
  label_names = ()
  has_pair = False

  def __post_init__(self):
    require_task_name(self.name)


def require_task_name(name: str) -> None:
  """UserError where SeqIO would not take the name."""
  if not re.fullmatch(r"[\w.]+", name):
    raise UserError(f"A task's name has letters, digits, _ and . only, not {name!r}.")


@functools.lru_cache(maxsize=32)
def load_split(task: TextTask, split: str, data_dir: Path | None) -> Split:
  """Reads a split, once in a process.

  Raises:
    UserError: the task has no such split, its file is missing, or a line of it is malformed.
  """
  if split not in task.splits:
    raise UserError(f"Task {task.name} has no split {split!r}; its splits are {', '.join(task.splits)}.")
  loaded = task.read(split, data_dir)
  if not loaded.examples:
    raise UserError(f"Task {task.name} has no examples in its split {split!r}.")
  return loaded


def make_split(
  rows: Iterable[Row],
  text_column: Column,
  text_pair_column: Column | None,
  label_column: Column | None,
  label_ids: Mapping[str, int],
  *,
  id_column: str | None = None,
  dropped_labels: tuple[str, ...] = (),
) -> Split:
  """Turns the rows of a file into a split.

  Args:
    rows: where each row stands and its fields.
    text_column: field with the text: its name, several names of which the first that is there counts, or a function
      `(where, fields)` that makes the text.
    text_pair_column: field with the second text, or None.
    label_column: field with the label, or None for a split without labels.
    label_ids: from the label as the file writes it to its id.
    id_column: field with the published id; used where it is there and an int32, else the row's number stands in.
    dropped_labels: rows with one of these labels are left out.

  Raises:
    UserError: a field is missing or not text, a label is unknown, or two rows of a split without labels, which answers
      are handed in for by id, have the same id; the message starts with the file and line.
  """
  examples, kept_fields, first_with_id = [], [], {}
  for number, (where, fields) in enumerate(rows):
    label = NO_LABEL
    if label_column:
      label_text = label_of(where, fields, label_column)
      if label_text in dropped_labels:
        continue
      if label_text not in label_ids:
        known = ", ".join(list(label_ids)[:20]) + (", ..." if len(label_ids) > 20 else "")
        raise UserError(
          f"{where}: unknown label {label_text!r} in {_name_of(label_column)!r}; the known labels are {known}."
        )
      label = label_ids[label_text]
    published = fields.get(id_column)
    if not label_column:
      require_new_id(first_with_id, where, published)
    example = {"id": row_id(published, number), "text": text_of(where, fields, text_column)}
    if text_pair_column:
      example["text_pair"] = text_of(where, fields, text_pair_column)
    example["label"] = label
    examples.append(example)
    kept_fields.append(fields)
  return Split(examples, kept_fields)


def require_new_id(first_with_id: dict, where: str, published) -> None:
  """UserError where a row above has this id; `first_with_id` keeps where each id was first."""
  if published is not None and first_with_id.setdefault(published, where) != where:
    raise UserError(
      f"{where}: has the id {published!r} of {first_with_id[published]}; give every row of this split its own."
    )


def row_id(published, number: int) -> int:
  """A row's id: the published one where it is an int32, else its number."""
  return published if type(published) is int and abs(published) < 2**31 else number


def label_of(where: str, fields: dict, name: Column) -> str:
  """A row's label as text; UserError where it is neither text nor a whole number."""
  value = field_of(where, fields, name)
  if value == "" or isinstance(value, bool) or not isinstance(value, str | int):
    raise UserError(f"{where}: {_name_of(name)!r} is {value!r}, and a label must be text or a whole number.")
  return str(value)


def text_of(where: str, fields: dict, name: Column, may_be_empty: bool = False) -> str:
  """A row's text; UserError where it is none, empty or not valid Unicode."""
  value = name(where, fields) if callable(name) else field_of(where, fields, name)
  name = _name_of(name)
  if not isinstance(value, str):
    raise UserError(f"{where}: field {name!r} must be text, not {type(value).__name__}.")
  if not may_be_empty and not value.strip():
    raise UserError(f"{where}: field {name!r} is empty; fill it in or take the row out.")
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can escape half a character
    raise UserError(f"{where}: field {name!r} is not valid Unicode ({error}).") from error
  return value


def _name_of(column: Column) -> str:
  return column.__name__ if callable(column) else column if isinstance(column, str) else column[0]


def field_of(where: str, fields: dict, name: str | tuple[str, ...]):
  """A field of a row, by its name or the first of several names that is there; UserError where it is not."""
  names = (name,) if isinstance(name, str) else name
  for each in names:
    if each in fields:
      return fields[each]
  raise UserError(f"{where}: no field {names[0]!r}; it has {', '.join(map(str, fields))}.")


def published_text_task(
  name: str,
  summary: str,
  published: Published,
  labels: Mapping[str, str],
  text: Column,
  text_pair: Column | None = None,
  *,
  label: Column = "label",
  dropped_labels: tuple[str, ...] = (),
  unlabelled: tuple[str, ...] = ("test",),
  rows: Callable[[DataFile], Iterator[Row]] = read_table,
) -> TextTask:
  """A classification task of published files.

  Args:
    name: the task's name.
    summary: what is classified, in a few words.
    published: its files.
    labels: from the label as published to its name; several may have one name.
    text: the column with the text; see `make_split`.
    text_pair: the column with the second text, for tasks on pairs.
    label: the column with the label.
    dropped_labels: rows so labelled are left out.
    unlabelled: splits that are published without labels.
    rows: reads a file.
  """
  label_names = tuple(dict.fromkeys(labels.values()))
  label_ids = {published: label_names.index(named) for published, named in labels.items()}

  def read(split: str, data_dir: Path | None) -> Split:
    read_rows = itertools.chain.from_iterable(map(rows, published.locate(name, split, data_dir)))
    if split in unlabelled:
      read_rows = _without_labels(read_rows)
    return make_split(
      read_rows, text, text_pair, None if split in unlabelled else label, label_ids,
      id_column="id", dropped_labels=dropped_labels,
    )

  return TextTask(name, summary, label_names, text_pair is not None, published.splits, read, published=published)


def _without_labels(rows: Iterator[Row]) -> Iterator[Row]:
  # Copies of the archives go round whose test.json is the labelled dev set: scoring it as the test set would mislead.
  first = next(rows, None)
  if first is None:
    return rows
  if "label" in first[1]:
    raise UserError(
      f"{first[0]}: has a label, so this is not the split that is published without; fetch the published file."
    )
  return itertools.chain([first], rows)
