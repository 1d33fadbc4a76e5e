"""The files that leaderboards take: written, zipped, and checked before they are handed in.

CLUE 1.1 (https://www.cluebenchmarks.com), FewCLUE (https://github.com/CLUEbenchmark/FewCLUE, resources) and ZeroCLUE,
which takes FewCLUE's files, want one file a task in a zip. CMRC 2018 and DRCD take an object of answers by question.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, read_json_lines
from fsb_jax.tasks.labels import IFLYTEK, INFERENCE, TNEWS, TRUTH, YES_NO
from fsb_jax.tasks.new_files import write_new

Answer = str | int
# The files that FewCLUE takes for each task where several training sets were used: one for each, and one for all.
PARTS = ("0", "1", "2", "3", "4", "all")


@dataclasses.dataclass(frozen=True)
class Submission:
  """How a task's answers are handed in.

  Attributes:
    name: the file's name up to `_predict`.
    labels: the labels as published, in the order of their ids; None where an answer is no label.
    kind: `str` for labels and texts, `int` for the number of an option, counted from 0.
    field: what a line calls the answer.
    one_object: one object {id: answer} instead of a line {"id": id, field: answer} for each example.
  """

  name: str
  labels: tuple[str, ...] | None = None
  kind: type = str
  field: str = "label"
  one_object: bool = False

  def filename(self, part: str = "") -> str:
    """The file's name; `part` is one of `PARTS`, or empty.

    Raises:
      UserError: there is no such part.
    """
    if part and part not in PARTS:
      raise UserError(f"FewCLUE takes files for the training sets {', '.join(PARTS)}, not for {part!r}.")
    return f"{self.name}_predict{f'_{part}' if part else ''}.json"


_BINARY = tuple(YES_NO)
_TRUTH = tuple(TRUTH)
_INFERENCE = tuple(INFERENCE)
_TNEWS = tuple(TNEWS)
_IFLYTEK = tuple(IFLYTEK)

SUBMISSIONS = {
  "afqmc": Submission("afqmc", _BINARY),
  "ocnli": Submission("ocnli_50k", _INFERENCE),
  "cmnli": Submission("cmnli", _INFERENCE),
  "tnews": Submission("tnews11", _TNEWS),
  "iflytek": Submission("iflytek", _IFLYTEK),
  "csl": Submission("csl", _BINARY),
  "cluewsc2020": Submission("cluewsc11", _TRUTH),
  "chid": Submission("chid11", kind=int, one_object=True),
  "c3": Submission("c311", kind=int),
  "cmrc2018": Submission("cmrc2018", one_object=True),
  "drcd": Submission("drcd", one_object=True),
  "qbqtc": Submission("qbqtc", ("0", "1", "2")),
  "eprstmt": Submission("eprstmt", ("Negative", "Positive")),
  # The names of its 67 subjects stand in the data.
  "csldcp": Submission("csldcp"),
  "tnewsf": Submission("tnewsf", _TNEWS),
  "iflytekf": Submission("iflytekf", _IFLYTEK),
  "ocnlif": Submission("ocnlif", _INFERENCE),
  "bustm": Submission("bustm", _BINARY),
  "chidf": Submission("chidf", kind=int, field="answer"),
  "cslf": Submission("cslf", _BINARY),
  "cluewscf": Submission("cluewscf", _TRUTH),
}


def submission(task: str) -> Submission:
  """How the answers of a task are handed in; UserError where no leaderboard takes any."""
  if task not in SUBMISSIONS:
    raise UserError(f"No leaderboard's form is known for task {task!r}; known are {', '.join(SUBMISSIONS)}.")
  return SUBMISSIONS[task]


def write_submission(folder: Path, task: str, answers: Mapping[Answer, Answer], part: str = "") -> Path:
  """Writes a task's file.

  Args:
    folder: where.
    task: one of `SUBMISSIONS`.
    answers: from an example's published id to its answer as published, in the order of the file.
    part: one of `PARTS` where FewCLUE is asked for several training sets.

  Returns:
    The file.

  Raises:
    UserError: the task is unknown, an answer is none of its labels or of another kind, or the file exists.
  """
  form = submission(task)
  for key, answer in answers.items():
    _require_answer(f"Task {task}, id {key!r}", form, form.labels, answer)
  lines = [answers] if form.one_object else [{"id": key, form.field: answer} for key, answer in answers.items()]
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  return write_new(folder / form.filename(part), text)


def zip_submissions(path: Path, files: Sequence[Path]) -> Path:
  """Puts files side by side into a zip, which is the same for the same answers; UserError where it exists."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    for file in files:
      # An entry made from its name alone bears a fixed date.
      archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
  return write_new(path, content.getvalue())


def check_submission(
  path: Path, task: str, expected_ids: Iterable[Answer], *, labels: Sequence[str] | None = None, part: str = ""
) -> None:
  """Checks that a file answers each example once and in the form that is asked for.

  An id may be written as a number or as text; both count as the same.

  Args:
    path: the file, or a zip that holds it under its name.
    task: one of `SUBMISSIONS`.
    expected_ids: the ids of the test split, in its order.
    labels: the labels as published, where `SUBMISSIONS` has none.
    part: see `write_submission`.

  Raises:
    UserError: what is wrong first, with file and line and what to do.
  """
  form = submission(task)
  file = _find(path, form.filename(part))
  expected = list(map(str, expected_ids))
  known, found = set(expected), {}
  rows = _object_rows(file) if form.one_object else _line_rows(file, form.field)
  for where, key, answer in rows:
    if isinstance(key, bool) or not isinstance(key, Answer):
      raise UserError(f"{where}: an id is a number or text, not {key!r}; write it as the test file does.")
    if str(key) in found:
      raise UserError(f"{where}: id {key!r} is answered a second time, first in {found[str(key)]}; keep one of them.")
    if str(key) not in known:
      raise UserError(f"{where}: the test split has no id {key!r}; answer the examples of that split only.")
    _require_answer(where, form, labels or form.labels, answer)
    found[str(key)] = where
  missing = [key for key in expected if key not in found]
  if missing:
    first = expected.index(missing[0])
    after = f"after {found[expected[first - 1]]}" if first else "at the start"
    raise UserError(
      f"{file}: {len(missing):,} of {len(expected):,} rows are missing, the first of id {missing[0]} {after}; "
      "answer every example of the test split."
    )


def _find(path: Path, name: str) -> DataFile:
  if path.suffix != ".zip":
    return DataFile(path)
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      if name not in archive.namelist():
        raise UserError(f"{path} holds no {name}; zip the files side by side, under the leaderboard's names.")
  return DataFile(path, name)


def _line_rows(file: DataFile, field: str) -> Iterator[tuple[str, Answer, Answer]]:
  for where, fields in read_json_lines(file):
    if fields.keys() != {"id", field}:
      has = ", ".join(map(repr, fields)) or "nothing"
      raise UserError(f"{where}: a line has 'id' and {field!r}, and this one has {has}; write both and no more.")
    yield where, fields["id"], fields[field]


def _object_rows(file: DataFile) -> Iterator[tuple[str, Answer, Answer]]:
  with file.open() as handle:
    content = handle.read()
  try:
    # As pairs, so that a question answered twice is seen.
    pairs = json.loads(content.decode("utf-8-sig"), object_pairs_hook=list)
  except UnicodeDecodeError as error:
    raise UserError(f"{file}: not UTF-8 ({error}); write it as UTF-8.") from error
  except ValueError as error:
    raise UserError(f"{file}: not one JSON object of answers by id ({error}); mend that place.") from error
  if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
    raise UserError(f"{file}: must be one JSON object of answers by id; write {{id: answer, ...}}.")
  for number, (key, answer) in enumerate(pairs, 1):
    yield f"{file}, answer {number}", key, answer  # such a file may well be one line


def _require_answer(where: str, form: Submission, labels: Sequence[str] | None, answer: Answer) -> None:
  if labels is not None and answer not in labels:
    shown = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
    raise UserError(f"{where}: {answer!r} is no label of this task; the labels are {shown}, written as text.")
  if form.kind is int and (type(answer) is not int or answer < 0):
    raise UserError(f"{where}: {answer!r} is not the number of an option; write 0 for the first, without quotes.")
  if form.kind is str and not isinstance(answer, str):
    raise UserError(f"{where}: {answer!r} is not text; write it in quotes.")
