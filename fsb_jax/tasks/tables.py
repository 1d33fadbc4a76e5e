"""A task straight from a table: CSV, TSV, JSON lines or Parquet with named columns."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, Row, read_table
from fsb_jax.tasks.registry import declare
from fsb_jax.tasks.text_task import Split, TextTask, label_of, make_split


def table_task(
  name: str,
  files: Mapping[str, str | os.PathLike | None],
  text_column: str,
  text_pair_column: str | None = None,
  label_column: str = "label",
  label_names: Sequence[str] | None = None,
) -> TextTask:
  """Declares a task whose rows stand in tables; from then on it can be used by its name like any other.

  Args:
    name: the task's name.
    files: from split name (train, validation, test) to the path of a .csv, .tsv, .json or .jsonl file (JSON: one
      object a line), UTF-8, any of them gzipped or not, or of a .parquet file; None for no such split. CSV and TSV name
      their columns in the first line.
    text_column: column with the text.
    text_pair_column: column with the second text, for tasks on pairs.
    label_column: column with the label. The test split may lack it.
    label_names: the label names in the order of their ids; left out, those of the training file, sorted.

  Raises:
    UserError: a file is missing, has a malformed line, or lacks a named column.
  """
  paths = {split: Path(path).expanduser() for split, path in files.items() if path is not None}
  if not paths:
    raise UserError(f"Table task {name} names no file.")
  for split, path in paths.items():
    if not path.is_file():
      raise UserError(f"Table task {name}: the file of its split {split!r}, {path}, does not exist.")
    needed = [text_column] + ([text_pair_column] if text_pair_column else [])
    if split != "test":
      needed.append(label_column)
    _rows(path, needed)
  if label_names is None:
    if "train" not in paths:
      raise UserError(f"Table task {name} has no training file to collect label names from; give label_names.")
    collected = set()
    for where, fields in read_table(DataFile(paths["train"])):
      collected.add(label_of(where, fields, label_column))
    label_names = sorted(collected)
  label_names = tuple(label_names)
  task = TextTask(
    name=name,
    summary=f"rows of {', '.join(path.name for path in paths.values())}",
    label_names=label_names,
    has_pair=bool(text_pair_column),
    splits=tuple(paths),
    read=functools.partial(_read, paths, text_column, text_pair_column, label_column, label_names),
  )
  return declare(task)


def _read(paths, text_column, text_pair_column, label_column, label_names, split, data_dir) -> Split:
  del data_dir  # a table's path is its own
  rows, columns = _rows(paths[split], [])
  return make_split(
    rows,
    text_column,
    text_pair_column,
    None if split == "test" and label_column not in columns else label_column,
    {label: index for index, label in enumerate(label_names)},
  )


def _rows(path: Path, needed: list[str]) -> tuple[itertools.chain[Row], list[str]]:
  rows = read_table(DataFile(path))
  first = next(rows, None)
  if first is None:
    raise UserError(f"{path}: has no rows.")
  columns = [str(column) for column in first[1]]
  for column in needed:
    if column not in columns:
      raise UserError(f"{path}: no column {column!r}; its columns are {', '.join(columns)}.")
  return itertools.chain([first], rows), columns
