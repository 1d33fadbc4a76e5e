"""Running text without labels, from text files or JSON lines, to train a masked language model on."""

import functools
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, Row, read_documents
from fsb_jax.tasks.registry import declare
from fsb_jax.tasks.text_task import PlainTextTask, text_of


def plain_text_task(
  name: str,
  files: Mapping[str, str | os.PathLike | Sequence[str | os.PathLike] | None],
  text_column: str = "text",
  documents: str = "lines",
  whole_words: bool = True,
) -> PlainTextTask:
  """Declares a task of documents in files; from then on it can be used by its name like any other.

  Args:
    name: the task's name.
    files: from split name (train, validation, test) to a path, a pattern such as `corpus/*.txt.gz`, or several of them;
      None for no such split. Text files (.txt) and JSON lines (.json, .jsonl), UTF-8, any of them gzipped or not.
    text_column: the field of a JSON line that holds the document.
    documents: what a document is in a text file: "lines", one each, or "blocks" of lines up to a blank one.
    whole_words: True hides the words that jieba finds, for Chinese; False hides token by token.

  Raises:
    UserError: a file is missing, of another kind, or begins with no document.
  """
  if documents not in ("lines", "blocks"):
    raise UserError(f"Text task {name}: documents must be 'lines' or 'blocks', not {documents!r}.")
  paths = {split: _expanded(name, split, given) for split, given in files.items() if given is not None}
  if not paths:
    raise UserError(f"Text task {name} names no file.")
  names = list(dict.fromkeys(path.name for each in paths.values() for path in each))
  task = PlainTextTask(
    name=name,
    summary="documents of " + ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if names[3:] else ""),
    splits=tuple(paths),
    whole_words=whole_words,
    read=functools.partial(_read, paths, text_column, documents == "blocks"),
  )
  for split in task.splits:
    # The first document of every file, so that a wrong format shows before any work is done.
    for path in paths[split]:
      next(_read({split: [path]}, text_column, documents == "blocks", split, None))
  return declare(task)


def _expanded(name: str, split: str, given) -> list[Path]:
  found = []
  for pattern in [given] if isinstance(given, str | os.PathLike) else given:
    pattern = os.path.expanduser(os.fspath(pattern))
    matches = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))
    if not matches:
      raise UserError(f"Text task {name}: the file of its split {split!r}, {pattern}, does not exist.")
    found += map(Path, matches)
  if not found:
    raise UserError(f"Text task {name}: its split {split!r} names no file.")
  return found


def _read(
  paths: Mapping[str, list[Path]], text_column: str, blocks: bool, split: str, data_dir: Path | None
) -> Iterator[Row]:
  del data_dir  # a file's path is its own
  for path in paths[split]:
    empty = True
    for where, fields in read_documents(DataFile(path), text_column, blocks):
      text = text_of(where, fields, text_column, may_be_empty=True)
      if text.strip():
        empty = False
        yield where, {"text": text}
    if empty:
      raise UserError(f"{path}: has no text.")
