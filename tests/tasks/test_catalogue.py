"""`fsb data` and `fsb tasks show`, on small files written for these tests."""

import functools
import http.server
import json
import threading

import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from fsb_jax import tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks import catalogue, registry
from fsb_jax.tasks.overlaps import OVERLAPS
from fsb_jax.tasks.published import Published
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import published_text_task

from .conftest import AFQMC, TNEWS, json_lines, write_zip


def test_list_says_what_is_on_disk_and_where_the_rest_is(clue_dir):
  found = {line.split(":")[0]: line for line in catalogue.list_data(str(clue_dir))}
  assert "on disk all; from https://storage.googleapis.com" in found["afqmc"]
  assert "on disk nothing" in found["bq"] and found["bq"].endswith("get it yourself")
  assert "TensorFlow Datasets' wikipedia/20230601.zh" in found["wikipedia_zh"]
  # Not what other tests have declared.
  assert set(found) == set(registry._BUILT_IN) - {"jieba_lexicon"}


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


def test_a_known_stand_in_is_said_to_be_one(tmp_path):
  write_zip(tmp_path / "tnews_public.zip", {"train.json": TNEWS["train"], "test.json": TNEWS["dev"]})
  found = {line.split(":")[0]: (fine, line) for fine, line in catalogue.check_data(["tnews"], str(tmp_path))}
  assert found["tnews test"] == (
    True,
    "tnews test: not there; tnews/test.json is the labelled file that this archive calls test.json, a stand-in for "
    "validation",
  )
  # One that stands in for nothing is no good.
  write_zip(tmp_path / "afqmc_public.zip", {"test.json": AFQMC["train"]})
  fine, line = list(catalogue.check_data(["afqmc"], str(tmp_path)))[2]
  assert not fine and "has a label, so this is not the split that is published without" in line


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


@pytest.mark.parametrize("name, labels", [("xnli", ["entailment", "neutral", "contradiction"]), ("paws_x", ["0", "1"])])
def test_sets_of_the_hub_are_fetched_file_by_file(tmp_path, monkeypatch, name, labels):
  columns = {"xnli": ("premise", "hypothesis"), "paws_x": ("sentence1", "sentence2")}[name]
  repository = {"xnli": "facebook/xnli", "paws_x": "google-research-datasets/paws-x"}[name]
  about = {"info": {"features": {"label": {"names": labels, "_type": "ClassLabel"}, columns[0]: {"_type": "Value"}}}}
  rows = [{columns[0]: f"门开着{n}", columns[1]: "门没关", "label": n} for n in range(len(labels))]
  table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(about)})
  parquet.write_table(table, tmp_path / "kept")
  asked = []

  def download(repo_id, filename, **options):
    asked.append((repo_id, filename, options))
    return str(tmp_path / "kept")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
  here = tmp_path / "data"
  lines = list(catalogue.download_data([name], str(here)))
  splits = ("train", "validation", "test")
  assert asked == [(repository, f"zh/{split}-00000-of-00001.parquet", {"repo_type": "dataset"}) for split in splits]
  assert lines[0] == (
    f"{here}/{name}/train.parquet: fetched from hf://datasets/{repository}/zh/train-00000-of-00001.parquet"
  )
  assert sorted(path.name for path in (here / name).iterdir()) == sorted(f"{split}.parquet" for split in splits)
  task = known_tasks()[name]
  for split in splits:
    read = task.read(split, here).examples
    assert [task.label_names[row["label"]] for row in read] == labels
    assert (read[1]["text"], read[1]["text_pair"]) == ("门开着1", "门没关")
  assert list(catalogue.download_data([name], str(here))) == [f"{name}: is on disk"]
  (here / name / "test.parquet").write_bytes(b"PAR1 and then nothing")
  with pytest.raises(UserError, match="test.parquet is no Parquet file or damaged"):
    task.read("test", here)


def test_without_the_hub_a_sentence_says_what_to_do(tmp_path, monkeypatch):
  def unreachable(*arguments, **options):
    raise ConnectionError("no way there\nand more")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
  wanted = r"train-00000-of-00001.parquet cannot be fetched \(no way there\); fetch it where .* put it at .*/xnli/train"
  with pytest.raises(UserError, match=wanted):
    list(catalogue.download_data(["xnli"], str(tmp_path)))
  assert list((tmp_path / "xnli").iterdir()) == []


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
