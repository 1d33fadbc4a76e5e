"""`fsb data` and `fsb tasks show`, on small files written for these tests."""

import functools
import http.server
import json
import threading

import pytest

from fsb_jax import tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks import catalogue
from fsb_jax.tasks.overlaps import OVERLAPS
from fsb_jax.tasks.published import Published
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import published_text_task

from .conftest import AFQMC, json_lines


def test_list_says_what_is_on_disk_and_where_the_rest_is(clue_dir):
  found = {line.split(":")[0]: line for line in catalogue.list_data(str(clue_dir))}
  assert "on disk all; from https://storage.googleapis.com" in found["afqmc"]
  assert "on disk nothing" in found["bq"] and found["bq"].endswith("get it yourself")
  assert "TensorFlow Datasets' wikipedia/20230601.zh" in found["wikipedia_zh"]
  assert set(found) == set(known_tasks()) - {"jieba_lexicon"} - {name for name in found if name.startswith("test_")}


def test_check_counts_and_compares(clue_dir, monkeypatch):
  digest = catalogue.describe_split(known_tasks()["afqmc"], "train", clue_dir)["sha256"]
  monkeypatch.setattr(
    catalogue,
    "_known_files",
    lambda: {
      "afqmc": {
        "train": {"rows": 3, "sha256": digest},
        "validation": {"rows": 1, "sha256": "0"},
        "test": {"rows": 5, "sha256": ""},
      }
    },
  )
  found = list(catalogue.check_data(["afqmc"], str(clue_dir)))
  assert [fine for fine, _ in found] == [True, True, False]
  train, validation, test = (line for _, line in found)
  assert train == f"afqmc train: 3 rows, 2 labels, sha256 {digest[:16]}; the known file"
  assert validation.endswith("as many rows as the known file, other bytes")
  assert test.endswith("the published file has 5 rows: fetch it again")
  # Nothing named: everything on disk, and only that.
  assert {line.split()[0] for _, line in catalogue.check_data([], str(clue_dir))} == {
    "tnews", "afqmc", "ocnli", "iflytek"
  }
  assert [fine for fine, _ in catalogue.check_data(["bq"], str(clue_dir))] == [False] * 3
  with pytest.raises(UserError, match="There is no published set 'absent'; the known ones are tnews"):
    list(catalogue.check_data(["absent"], str(clue_dir)))


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A task whose one file is served on this machine; the folder it is served from, and where it goes."""
  served, here = tmp_path / "served", tmp_path / "data"
  served.mkdir(), here.mkdir()
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f"http://127.0.0.1:{server.server_port}/train.json"
  task = published_text_task(
    "pairs", "pairs", Published({"train": "pairs/train.json"}, "nowhere", {"pairs/train.json": address}),
    {"0": "0", "1": "1"}, "sentence1", "sentence2",
  )
  monkeypatch.setitem(tasks.registry._DECLARED, "pairs", task)
  yield served, here
  server.shutdown()
  server.server_close()


def test_download_fetches_whole_files_or_nothing(published):
  served, here = published
  with pytest.raises(UserError, match=r"train.json cannot be fetched \(.*404.*\); fetch it where there is a network"):
    list(catalogue.download_data(["pairs"], str(here)))
  assert list((here / "pairs").iterdir()) == []
  (served / "train.json").write_bytes(json_lines(AFQMC["train"]))
  (line,) = catalogue.download_data(["pairs"], str(here))
  assert line.startswith(f"{here}/pairs/train.json: fetched from http://127.0.0.1")
  assert [path.name for path in (here / "pairs").iterdir()] == ["train.json"]
  assert list(catalogue.download_data(["pairs"], str(here))) == ["pairs: is on disk"]
  assert next(catalogue.check_data(["pairs"], str(here)))[1].startswith("pairs train: 3 rows, 2 labels")


def test_download_without_a_network_or_an_address_says_so(published, tmp_path, monkeypatch):
  _, here = published
  with pytest.raises(UserError, match="bq has no address to fetch it from; get it from https://github.com"):
    list(catalogue.download_data(["bq"], str(here)))
  with pytest.raises(UserError, match="wikipedia_zh is prepared by TensorFlow Datasets: tfds build wikipedia"):
    list(catalogue.download_data(["wikipedia_zh"], str(here)))
  with pytest.raises(UserError, match="Name the tasks"):
    list(catalogue.download_data([], str(here)))
  monkeypatch.delenv("FSB_DATA_DIR", raising=False)
  with pytest.raises(UserError, match="set FSB_DATA_DIR or give --data_dir"):
    list(catalogue.download_data(["bq"], None))


def test_show_gives_rows_tokens_and_inputs(clue_dir, tokenizer):
  lines = list(catalogue.show_task("afqmc", tokenizer, "validation", 2, 32, str(clue_dir)))
  row = AFQMC["dev"][0]
  assert lines[1] == f"validation 0 as published: {json.dumps(row, ensure_ascii=False)}"
  ids = tokenizer(row["sentence1"], row["sentence2"])["input_ids"]
  assert f"row 0 tokens: {' '.join(tokenizer.convert_ids_to_tokens(ids))}" in lines
  assert f"row 0 input_ids: {ids}" in lines and "row 0 label: 0" in lines
  # The first split that is on disk.
  assert any(line.startswith("train 0") for line in catalogue.show_task("ocnli", tokenizer, data_dir=str(clue_dir)))
  with pytest.raises(UserError, match="clue is a mixture; show one of clue.afqmc"):
    list(catalogue.show_task("clue", tokenizer, data_dir=str(clue_dir)))
  with pytest.raises(UserError, match="Task afqmc has no split 'dev'; its splits are train, validation, test"):
    list(catalogue.show_task("afqmc", tokenizer, "dev", data_dir=str(clue_dir)))


def test_overlaps_are_of_known_splits():
  for overlap in OVERLAPS:
    for name, split in (overlap.trained, overlap.scored):
      assert split in known_tasks()[name].splits
  assert [str(each.scored[0]) for each in tasks.overlaps("clue.tnews", "train")] == ["tnewsf", "tnews"]
  assert tasks.overlaps("afqmc", "train") == []


def test_groups():
  info = tasks.info("clue")
  assert info.alone == ("cmrc2018", "chid", "c3") and len(info.members) == 7
  assert info.describe().endswith("each on its own: cmrc2018, chid, c3")
  assert tasks.info("ner").head == "token_classification" and len(tasks.info("ner").members) == 4
  assert tasks.info("fewclue").alone == tasks.info("zeroclue").alone == ("chidf",)
  start, stop = tasks.info("ner.weibo").label_slice
  assert tasks.info("ner").label_names[start:stop] == tuple(f"weibo/{n}" for n in tasks.info("weibo").label_names)
