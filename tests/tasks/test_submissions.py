"""Files for leaderboards: the original's own byte for byte, and what is said of files that would be refused."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from fsb_jax.errors import UserError
from fsb_jax.tasks import registry
from fsb_jax.tasks.submissions import PARTS, SUBMISSIONS, check_submission, write_submission, zip_submissions

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDENS = Path(os.environ.get("FSB_GOLDENS_DIR", SHARED / "goldens")) / "clue_preprocessing"
# The original's folders, and from a row of its predictions to the answer as published.
ORIGINALS = {
  "afqmc": ("afqmc", lambda row: str(row["label"])),
  "ocnli": ("ocnli", lambda row: {"矛盾": "contradiction", "自然": "neutral", "蕴含": "entailment"}[row["answer"]]),
  "tnews": ("tnews", lambda row: SUBMISSIONS["tnews"].labels[row["label"]]),
  "wsc": ("cluewsc2020", lambda row: "false" if "不是" in row["answer"] else "true"),
  "c3": ("c3", lambda row: row["label"]),
}
AFQMC = {7: "1", 9: "0", 12: "1"}
CHID = {"#idiom000402#": 2, "#idiom000403#": 7}


@pytest.mark.parametrize("name", ORIGINALS)
def test_files_of_the_original_from_its_predictions(name, tmp_path):
  if not GOLDENS.is_dir():
    pytest.skip(f"no goldens at {GOLDENS}; set FSB_GOLDENS_DIR")
  task, answer = ORIGINALS[name]
  rows = [json.loads(line) for line in (GOLDENS / name / "predict.json").read_text().splitlines()]
  written = write_submission(tmp_path, task, {row["id"]: answer(row) for row in rows})
  assert written.read_bytes() == (GOLDENS / name / "submit.json").read_bytes()
  check_submission(written, task, [row["id"] for row in rows])


@pytest.mark.parametrize("task", ["csl", "iflytek", "chid", "cmrc2018"])
def test_files_of_the_original_are_taken_and_written_alike(task, tmp_path):
  if not GOLDENS.is_dir():
    pytest.skip(f"no goldens at {GOLDENS}; set FSB_GOLDENS_DIR")
  theirs = GOLDENS / task / "submit.json"
  lines = [json.loads(line) for line in theirs.read_text().splitlines()]
  answers = lines[0] if SUBMISSIONS[task].one_object else {line["id"]: line["label"] for line in lines}
  check_submission(theirs, task, answers)
  assert write_submission(tmp_path, task, answers).read_bytes() == theirs.read_bytes()


def test_names_and_labels():
  names = {task: form.filename() for task, form in SUBMISSIONS.items()}
  assert names["ocnli"] == "ocnli_50k_predict.json" and names["chid"] == "chid11_predict.json"
  assert len(set(names.values())) == len(names)
  assert SUBMISSIONS["bustm"].filename(PARTS[-1]) == "bustm_predict_all.json"
  with pytest.raises(UserError, match="for the training sets 0, 1, 2, 3, 4, all, not for '5'"):
    SUBMISSIONS["bustm"].filename("5")
  # The leaderboard's labels stand in the order of ours.
  for task in ("afqmc", "ocnli", "cluewsc2020", "cluewscf", "eprstmt", "cslf"):
    assert SUBMISSIONS[task].labels == registry.info(task).label_names
  for task in ("tnews", "iflytek"):
    assert len(SUBMISSIONS[task].labels) == len(registry.info(task).label_names)
  assert SUBMISSIONS["tnews"].labels[5] == "106" and SUBMISSIONS["tnews"].labels[-1] == "116"


def test_lines_and_objects(tmp_path):
  assert write_submission(tmp_path, "afqmc", AFQMC).read_text() == (
    '{"id": 7, "label": "1"}\n{"id": 9, "label": "0"}\n{"id": 12, "label": "1"}\n'
  )
  assert write_submission(tmp_path, "chidf", {3000: 0, 3001: 2}, part="0").read_text() == (
    '{"id": 3000, "answer": 0}\n{"id": 3001, "answer": 2}\n'
  )
  written = write_submission(tmp_path, "cmrc2018", {"TEST_0": "范廷颂", "TEST_1": ""})
  assert written.read_text() == '{"TEST_0": "范廷颂", "TEST_1": ""}\n'
  check_submission(tmp_path / "afqmc_predict.json", "afqmc", AFQMC)
  check_submission(tmp_path / "afqmc_predict.json", "afqmc", ["7", "9", "12"])
  check_submission(tmp_path / "chidf_predict_0.json", "chidf", [3000, 3001])
  check_submission(written, "cmrc2018", ["TEST_0", "TEST_1"])
  check_submission(write_submission(tmp_path, "csldcp", {0: "力学"}), "csldcp", [0], labels=["力学", "园艺学"])


def test_nothing_is_overwritten_and_nothing_wrong_is_written(tmp_path):
  write_submission(tmp_path, "afqmc", AFQMC)
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  with pytest.raises(UserError, match="afqmc_predict.json already exists; choose another name or move it away"):
    write_submission(tmp_path, "afqmc", AFQMC)
  with pytest.raises(UserError, match="Task ocnli, id 1: 'neutrum' is no label of this task; the labels are 'contr"):
    write_submission(tmp_path, "ocnli", {0: "neutral", 1: "neutrum"})
  with pytest.raises(UserError, match="Task chid, id '#idiom1#': '2' is not the number of an option"):
    write_submission(tmp_path, "chid", {"#idiom1#": "2"})
  with pytest.raises(UserError, match="No leaderboard's form is known for task 'lcqmc'; known are afqmc"):
    write_submission(tmp_path, "lcqmc", {0: "1"})
  with pytest.raises(UserError, match="no folder"):
    write_submission(tmp_path / "absent", "afqmc", AFQMC)
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_zip_holds_files_side_by_side_and_is_the_same_for_the_same_answers(tmp_path):
  files = [write_submission(tmp_path, "afqmc", AFQMC), write_submission(tmp_path, "chid", CHID)]
  archive = zip_submissions(tmp_path / "submission.zip", files)
  assert zipfile.ZipFile(archive).namelist() == ["afqmc_predict.json", "chid11_predict.json"]
  assert zipfile.ZipFile(archive).read("afqmc_predict.json") == files[0].read_bytes()
  for file in files:
    os.utime(file, (0, 2**31))
  assert zip_submissions(tmp_path / "again.zip", files).read_bytes() == archive.read_bytes()
  check_submission(archive, "afqmc", AFQMC)
  check_submission(archive, "chid", CHID)
  with pytest.raises(UserError, match="submission.zip holds no c311_predict.json; zip the files side by side"):
    check_submission(archive, "c3", [0])
  with pytest.raises(UserError, match="submission.zip already exists"):
    zip_submissions(archive, files)


WRONG = [
  ("afqmc", {0: '{"id": 9, "label": "0"}'}, "line 2: id 9 is answered a second time, first in .*line 1; keep one"),
  ("afqmc", {1: '{"id": 9, "label": 0}'}, "line 2: 0 is no label of this task; the labels are '0', '1', written"),
  ("afqmc", {1: '{"id": 9, "label": "2"}'}, "line 2: '2' is no label"),
  ("afqmc", {1: '{"id": 8, "label": "0"}'}, "line 2: the test split has no id 8; answer the examples of that split"),
  ("afqmc", {1: '{"id": true, "label": "0"}'}, "line 2: an id is a number or text, not True"),
  ("afqmc", {1: '{"label": "0"}'}, "line 2: a line has 'id' and 'label', and this one has 'label'; write both"),
  ("afqmc", {1: '{"id": 9, "label": "0", "score": 1}'}, "line 2: a line has .* this one has 'id', 'label', 'score'"),
  ("afqmc", {1: "9\t0"}, "line 2: not valid JSON"),
  ("afqmc", {1: "[9]"}, "line 2: must be one JSON object, not list"),
  ("afqmc", {1: ""}, "afqmc_predict.json: 1 of 3 rows are missing, the first of id 9 after .*line 1; answer every"),
  ("afqmc", {0: "", 1: ""}, "2 of 3 rows are missing, the first of id 7 at the start"),
  ("chidf", {1: '{"id": 9, "answer": "0"}'}, "line 2: '0' is not the number of an option; write 0 for the first"),
  ("chidf", {1: '{"id": 9, "label": 0}'}, "line 2: a line has 'id' and 'answer'"),
  ("chidf", {1: '{"id": 9, "answer": -1}'}, "line 2: -1 is not the number"),
]


@pytest.mark.parametrize("task, changes, message", WRONG)
def test_lines_that_would_be_refused(task, changes, message, tmp_path):
  answers = AFQMC if task == "afqmc" else {key: int(answer) for key, answer in AFQMC.items()}
  path = write_submission(tmp_path, task, answers)
  lines = path.read_text().splitlines()
  for i, line in changes.items():
    lines[i] = line
  path.write_text("\n".join(lines))
  with pytest.raises(UserError, match=message):
    check_submission(path, task, AFQMC)


@pytest.mark.parametrize(
  "content, message",
  [
    ('{"A": "甲", "A": "乙"}', "answer 2: id 'A' is answered a second time, first in .*answer 1"),
    ('{"A": "甲"}', "1 of 2 rows are missing, the first of id B after .*answer 1"),
    ('{"A": "甲", "B": 3}', "answer 2: 3 is not text; write it in quotes"),
    ('{"A": "甲", "C": ""}', "answer 2: the test split has no id 'C'"),
    ('{"A": "甲", ', "not one JSON object of answers by id"),
    ('["A", "B"]', "must be one JSON object"),
    ('{"A": {"B": "甲"}, "B": ""}', "answer 1: .* is not text"),
    (b'{"A": "\xff"}', "not UTF-8"),
  ],
)
def test_objects_that_would_be_refused(content, message, tmp_path):
  path = tmp_path / "cmrc2018_predict.json"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(UserError, match=message):
    check_submission(path, "cmrc2018", ["A", "B"])


def test_labels_that_stand_in_the_data(tmp_path):
  path = write_submission(tmp_path, "csldcp", {0: "力学", 1: "占星术"})
  with pytest.raises(UserError, match="line 2: '占星术' is no label of this task; the labels are '力学'"):
    check_submission(path, "csldcp", [0, 1], labels=["力学"])


def test_a_file_that_is_not_there_or_damaged(tmp_path):
  with pytest.raises(UserError, match="absent.json does not exist"):
    check_submission(tmp_path / "absent.json", "afqmc", [0])
  (tmp_path / "broken.zip").write_bytes(b"PK")
  with pytest.raises(UserError, match="broken.zip.* is damaged"):
    check_submission(tmp_path / "broken.zip", "afqmc", [0])
