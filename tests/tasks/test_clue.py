import collections
import json
import os
from pathlib import Path

import pytest

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import find
from fsb_jax.tasks.registry import info, known_tasks
from fsb_jax.tasks.text_task import load_split

from .conftest import AFQMC, IFLYTEK, OCNLI, TNEWS, json_lines, write_zip

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
PUBLISHED = {"afqmc": AFQMC, "tnews": TNEWS, "ocnli": OCNLI, "iflytek": IFLYTEK}
FILES = {"train": "train", "validation": "dev", "test": "test"}


def load(name, split, data_dir):
  return load_split(known_tasks()[name], split, data_dir)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("split", FILES)
def test_every_split_is_read_as_published(clue_dir, name, split, caplog):
  loaded = load(name, split, clue_dir)
  published = PUBLISHED[name]["train.50k" if (name, split) == ("ocnli", "train") else FILES[split]]
  assert loaded.fields == [row for row in published if row.get("label") != "-"]
  for example, fields in zip(loaded.examples, loaded.fields):
    assert example["text"] == fields.get("sentence", fields.get("sentence1"))
    assert example.get("text_pair") == fields.get("sentence2")
    number = published.index(fields)
    assert example["id"] == fields.get("id", number)
  assert not caplog.records  # the official files are no stand-ins


def test_label_ids(clue_dir):
  names = {name: info(name).label_names for name in PUBLISHED}
  assert [len(names[name]) for name in ("tnews", "afqmc", "ocnli", "iflytek")] == [15, 2, 3, 119]
  assert names["ocnli"] == ("contradiction", "neutral", "entailment")
  for name, key in (("tnews", "label_desc"), ("iflytek", "label_des"), ("ocnli", "label"), ("afqmc", "label")):
    for split in ("train", "validation"):
      loaded = load(name, split, clue_dir)
      assert [names[name][example["label"]] for example in loaded.examples] == [row[key] for row in loaded.fields]
    assert {example["label"] for example in load(name, "test", clue_dir).examples} == {-1}


def test_missing_files_say_where_to_get_them(tmp_path):
  with pytest.raises(UserError, match="Task iflytek needs the data directory: set FSB_DATA_DIR, or --gin.DATA_DIR"):
    load("iflytek", "train", None)
  with pytest.raises(UserError) as raised:
    load("ocnli", "train", tmp_path)
  message = str(raised.value)
  for part in (
    str(tmp_path),
    "ocnli/train.50k.json or ocnli/train.30k.json or ocnli/train.10k.json",
    "https://storage.googleapis.com/cluebenchmark/tasks/ocnli_public.zip",
    "https://github.com/CLUEbenchmark/CLUE",
  ):
    assert part in message
  with pytest.raises(UserError, match="Task ocnli has no split 'dev'; its splits are train, validation, test"):
    load("ocnli", "dev", tmp_path)


def test_stand_ins_are_named_in_one_log_line_and_come_second(tmp_path, caplog):
  write_zip(tmp_path / "tnews" / "tnews_public.zip", {"tnews_public/test.json": TNEWS["dev"]})
  assert load("tnews", "validation", tmp_path).fields == TNEWS["dev"]
  assert [record.getMessage() for record in caplog.records] == [
    f"tnews, split validation: dev.json is not there, using {tmp_path}/tnews/tnews_public.zip!tnews_public/test.json "
    "(the labelled file that this archive calls test.json)"
  ]
  caplog.clear()
  with pytest.raises(UserError, match="line 1: has a label, so this is not the split that is published without"):
    load("tnews", "test", tmp_path)
  (tmp_path / "ocnli").mkdir()
  (tmp_path / "ocnli" / "train.10k.json").write_bytes(json_lines(OCNLI["train.50k"][:1]))
  assert len(load("ocnli", "train", tmp_path).examples) == 1
  assert "train.50k.json is not there" in caplog.text
  caplog.clear()
  (tmp_path / "again").mkdir()
  write_zip(tmp_path / "again" / "ocnli" / "ocnli_public.zip", {"train.50k.json": OCNLI["train.50k"]})
  (tmp_path / "again" / "ocnli" / "train.10k.json").write_bytes(json_lines(OCNLI["train.50k"][:1]))
  assert len(load("ocnli", "train", tmp_path / "again").examples) == 3
  assert not caplog.records


@pytest.mark.parametrize(
  "line, message",
  [
    (b'{"sentence": "\xe5\xa4\xa9", "label": "100"', "line 3: not valid JSON"),
    (b'["a"]', "line 3: must be one JSON object, not list"),
    (b'{"sentence": "\xff"}', "line 3: not UTF-8"),
    (b'{"label": "100", "keywords": ""}', "line 3: no field 'sentence'; it has label, keywords"),
    (b'{"sentence": "x"}', "line 3: no field 'label'; it has sentence"),
    (b'{"sentence": "x", "label": "105"}', "line 3: unknown label '105' in 'label'; the known labels are 100, 101"),
    (b'{"sentence": ["x"], "label": "100"}', "line 3: field 'sentence' must be text, not list"),
    (b'{"sentence": "\\ud83d", "label": "100"}', "line 3: field 'sentence' is not valid Unicode"),
  ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
  (tmp_path / "tnews").mkdir()
  path = tmp_path / "tnews" / "train.json"
  path.write_bytes(json_lines(TNEWS["train"][:1]) + b"\n" + line + b"\n")
  with pytest.raises(UserError) as raised:
    load("tnews", "train", tmp_path)
  assert str(raised.value).startswith(f"{path}, {message}")


def test_damaged_archives_are_named(tmp_path):
  for name in ("afqmc", "ocnli"):
    (tmp_path / name).mkdir()
  (tmp_path / "afqmc" / "afqmc_public.zip").write_bytes(b"PK nothing")
  with pytest.raises(UserError, match=r"afqmc_public.zip is not a zip archive"):
    load("afqmc", "train", tmp_path)
  import gzip

  whole = gzip.compress(json_lines(OCNLI["train.50k"] * 50))
  (tmp_path / "ocnli" / "train.50k.json.gz").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"train.50k.json.gz is damaged"):
    load("ocnli", "train", tmp_path)


def test_resource_forks_in_archives_are_passed_over(tmp_path):
  write_zip(tmp_path / "tnews_public.zip", {"__MACOSX/._dev.json": [], "tnews_public/dev.json": TNEWS["dev"]})
  assert find(tmp_path, "tnews", "dev.json").member == "tnews_public/dev.json"


def test_real_files():
  if not (DATA_DIR / "afqmc").is_dir():
    pytest.skip(f"CLUE's files are not under {DATA_DIR} (set FSB_DATA_DIR)")
  sizes = {
    ("tnews", "train"): 53360,
    ("tnews", "validation"): 10000,
    ("afqmc", "train"): 34334,
    ("afqmc", "validation"): 4316,
    ("afqmc", "test"): 3861,
    ("ocnli", "train"): 9985,
    ("ocnli", "validation"): 2950,
    ("ocnli", "test"): 3000,
    ("iflytek", "train"): 928,
    ("iflytek", "validation"): 1749,
  }
  assert {key: len(load(*key, DATA_DIR).examples) for key in sizes} == sizes
  for name, key in (("tnews", "label_desc"), ("iflytek", "label_des")):
    for split in ("train", "validation"):
      loaded = load(name, split, DATA_DIR)
      names = info(name).label_names
      assert all(names[example["label"]] == row[key] for example, row in zip(loaded.examples, loaded.fields))
  counts = collections.Counter(example["label"] for example in load("ocnli", "train", DATA_DIR).examples)
  assert counts == {0: 3242, 1: 3434, 2: 3309}
  published = [json.loads(line) for line in (DATA_DIR / "iflytek" / "dataclue_labels.json").read_text().splitlines()]
  assert [row["label_des"] for row in published] == list(info("iflytek").label_names)
  train = {example["text"] for example in load("iflytek", "train", DATA_DIR).examples}
  assert not train & {example["text"] for example in load("iflytek", "validation", DATA_DIR).examples}
