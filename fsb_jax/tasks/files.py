"""Finding and reading data files: plain, gzipped, or inside the archive they were published in."""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks import archives

Row = tuple[str, dict]  # where the row stands ("path, line 17"), and its fields

csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than some documents

# What the first line of a table calls its columns, in the corpora that go round.
HEADER_WORDS = {
  "id", "label", "text", "text_a", "text_b", "sentence", "sentence1", "sentence2", "premise", "hypo", "hypothesis",
  "question1", "question2", "gold_label", "score", "similarity", "review",
}
_SEPARATORS = {".csv": "comma", ".tsv": "tab", ".txt": "tab"}


@dataclasses.dataclass(frozen=True)
class DataFile:
  """A file on disk, or a member of an archive; `str` of it is what messages name."""

  path: Path
  member: str | None = None

  def __str__(self) -> str:
    return f"{self.path}!{self.member}" if self.member else str(self.path)

  @property
  def suffix(self) -> str:
    """The suffix of its name in lower case, a last .gz left out: `.tsv` of `train.tsv.gz`."""
    path = Path(self.member or self.path)
    return Path(path.stem if path.suffix == ".gz" else path).suffix.lower()

  @contextlib.contextmanager
  def open(self) -> Iterator[io.BufferedIOBase]:
    """Opens it for reading bytes; a damaged archive is a UserError that names it."""
    try:
      with contextlib.ExitStack() as stack:
        if self.member:
          yield archives.open_member(self.path, self.member, stack)
        elif self.path.suffix == ".gz":
          yield stack.enter_context(gzip.open(self.path, "rb"))
        else:
          yield stack.enter_context(self.path.open("rb"))
    except (*archives.DAMAGED, gzip.BadGzipFile, zlib.error) as error:
      raise UserError(f"{self} is damaged ({error}); fetch it again.") from error
    except FileNotFoundError as error:
      raise UserError(f"{self} does not exist.") from error


def data_directory(data_dir: str | os.PathLike | None) -> Path | None:
  """The data directory: the argument, else the environment variable FSB_DATA_DIR, else None."""
  chosen = data_dir or os.environ.get("FSB_DATA_DIR")
  return Path(chosen).expanduser() if chosen else None


def find(data_dir: Path, folder: str, filename: str) -> DataFile | None:
  """Finds a published file of a benchmark's task.

  It may lie in the task's folder (or in the folder that its archive unpacks to) as it is or gzipped, or in an archive:
  `<folder>_public.zip` in the task's folder or beside it, any archive in the task's folder, or one in the folder above
  in which the file lies under the task's folder, as in `fewclue/rest.tar.xz!datasets/bustm/dev_1.json`.

  Args:
    data_dir: the data directory.
    folder: the task's folder under it, such as `tnews` or `fewclue/bustm`.
    filename: the file's published name, such as `train.json`.
  """
  own, above = data_dir / folder, (data_dir / folder).parent
  public = f"{own.name}_public"
  for place in (own, own / public, above / public):
    for name in (filename, f"{filename}.gz"):
      if (place / name).is_file():
        return DataFile(place / name)
  inside_own = sorted(filter(archives.is_archive, own.iterdir())) if own.is_dir() else []
  inside_own.sort(key=lambda path: path.name != f"{public}.zip")
  beside = [above / f"{public}.zip"] if (above / f"{public}.zip").is_file() else []
  for archive in (*inside_own, *beside):
    for member in archives.members(archive):
      if member.rsplit("/", 1)[-1] == filename:
        return DataFile(archive, member)
  if above != data_dir and above.is_dir():
    for archive in sorted(filter(archives.is_archive, above.iterdir())):
      for member in archives.members(archive):
        if f"/{member}".endswith(f"/{own.name}/{filename}"):
          return DataFile(archive, member)
  return None


def read_json_lines(file: DataFile) -> Iterator[Row]:
  """Yields the JSON objects of a file, one to a line; blank lines are passed over."""
  name = str(file)
  with file.open() as handle:
    for number, line in enumerate(handle, 1):
      where = f"{name}, line {number}"
      if not line.strip():
        continue
      try:
        fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
      except UnicodeDecodeError as error:
        raise UserError(f"{where}: {not_utf8(error)}") from error
      except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error
      if not isinstance(fields, dict):
        raise UserError(f"{where}: must be one JSON object, not {type(fields).__name__}.")
      yield where, fields


def read_table(file: DataFile, columns: Sequence[str] = ()) -> Iterator[Row]:
  """Yields the rows of a CSV, TSV, JSON-lines or Parquet file, chosen by its suffix; any of them may end in .gz.

  CSV follows the usual quoting. TSV has none: a quotation mark there is text, as in most Chinese corpora.

  Args:
    file: the file.
    columns: names of the columns where the first line does not name them, which it does where one of its cells is one
      of `HEADER_WORDS`; a .txt file is then read as TSV. Without, the first line must name them.

  Raises:
    UserError: another kind of file, or a malformed line.
  """
  suffix = file.suffix
  if suffix in (".json", ".jsonl"):
    yield from read_json_lines(file)
    return
  if suffix == ".parquet":
    yield from _read_parquet(file)
    return
  dialects = {
    ".csv": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
  }
  if columns:
    dialects[".txt"] = dialects[".tsv"]
  if suffix not in dialects:
    raise UserError(f"{file}: a table is a .csv, .tsv, .json, .jsonl or .parquet file, or one of these with .gz.")
  with file.open() as handle:
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, **dialects[suffix])
    try:
      header = next(reader, None)
      if not header:
        raise UserError(f"{file}: is empty; its first line must name the columns.")
      rows, names = reader, "the first line names"
      if columns and not HEADER_WORDS & set(header):
        rows, header, names = itertools.chain([header], reader), list(columns), f"there are ({', '.join(columns)}):"
      if len(set(header)) != len(header):
        raise UserError(f"{file}: its first line names a column twice ({', '.join(header)}).")
      for values in rows:
        where = f"{file}, line {reader.line_num}"
        if not values:
          continue
        if len(values) != len(header):
          raise UserError(
            f"{where}: has {len(values)} columns where {names} {len(header)}; a {_SEPARATORS[suffix]} inside a text "
            "must be taken out or, in CSV, stand between quotation marks."
          )
        yield where, dict(zip(header, values))
    except csv.Error as error:
      raise UserError(f"{file}, line {reader.line_num}: not valid {suffix[1:].upper()} ({error}).") from error
    except UnicodeDecodeError as error:
      raise UserError(f"{file}, after line {reader.line_num}: {not_utf8(error)}") from error


def _read_parquet(file: DataFile) -> Iterator[Row]:
  """Yields the rows of a Parquet file; a class that the file numbers and names, as the Hub's do, has its name."""
  import pyarrow
  from pyarrow import parquet

  try:
    with file.open() as handle:
      table = parquet.ParquetFile(pyarrow.BufferReader(handle.read()))
    about = json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})
    classes = {name: form["names"] for name, form in features.items() if isinstance(form, dict) and "names" in form}
    rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
    for number, fields in enumerate(rows):
      named = {name: names[fields[name]] for name, names in classes.items() if fields.get(name, -1) >= 0}
      yield f"{file}, row {number}", {**fields, **named}
  except (pyarrow.ArrowInvalid, OSError) as error:
    reason = " ".join(str(error).split())
    raise UserError(f"{file} is no Parquet file or damaged ({reason}); fetch it again.") from error


def not_utf8(error: UnicodeDecodeError) -> str:
  """What to say of bytes that are not UTF-8."""
  return f"not UTF-8 ({error}); convert the file, e.g. with iconv -f GB18030 -t UTF-8."


def read_documents(file: DataFile, text_field: str, blocks: bool) -> Iterator[Row]:
  """Yields the documents of a text or JSON-lines file as `{text_field: ...}`, one at a time.

  Args:
    file: a .txt, .json or .jsonl file; any of them may end in .gz.
    text_field: the field of a JSON line that holds the document.
    blocks: of a text file, True takes the lines up to a blank one for a document, False every line for one.

  Raises:
    UserError: another kind of file, or a malformed line.
  """
  if file.suffix in (".json", ".jsonl"):
    yield from read_json_lines(file)
    return
  if file.suffix != ".txt":
    raise UserError(f"{file}: text is read from a .txt, .json or .jsonl file, or one of these with .gz.")
  begin, lines = "", []
  for where, line in read_lines(file):
    if line.strip():
      begin = begin if lines else where
      lines.append(line)
    if lines and not (blocks and line.strip()):
      yield begin, {text_field: "\n".join(lines)}
      lines = []
  if lines:
    yield begin, {text_field: "\n".join(lines)}


def read_lines(file: DataFile) -> Iterator[tuple[str, str]]:
  """Yields where each line of a text file stands, and the line."""
  name = str(file)
  with file.open() as handle:
    for number, line in enumerate(handle, 1):
      where = f"{name}, line {number}"
      try:
        yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
      except UnicodeDecodeError as error:
        raise UserError(f"{where}: {not_utf8(error)}") from error



def read_json(file: DataFile):
  """The one JSON value of a file; UserError names the line where it is malformed."""
  with file.open() as handle:
    content = handle.read()
  try:
    return json.loads(content.decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(f"{file}, line {line}: {not_utf8(error)}") from error
  except json.JSONDecodeError as error:
    raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error}).") from error
