import collections
import gzip
import os
from pathlib import Path

import pytest

from fsb_jax import tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import load_split

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
# Half a quotation mark, which the usual quoting would take for the beginning of a text of two lines.
ROWS = 'label\ttext_a\n1\t"房间很干净\n0\t他说"太吵\n1\t还会再来\n'


def load(split, data_dir):
  return load_split(known_tasks()["chnsenticorp"], split, data_dir)


@pytest.mark.parametrize("split", FILES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_split_is_read_with_its_labels(tmp_path, split, suffix):
  folder = tmp_path / "chnsenticorp"
  folder.mkdir()
  (folder / (FILES[split] + suffix)).write_bytes(gzip.compress(ROWS.encode()) if suffix else ROWS.encode())
  names = tasks.info("chnsenticorp").label_names
  loaded = load(split, tmp_path)
  assert [(row["text"], names[row["label"]]) for row in loaded.examples] == [
    ('"房间很干净', "positive"), ('他说"太吵', "negative"), ("还会再来", "positive")
  ]
  assert loaded.fields[0] == {"label": "1", "text_a": '"房间很干净'}


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match="Task chnsenticorp needs the data directory: set FSB_DATA_DIR"):
    load("train", None)
  with pytest.raises(UserError, match=r"looked in the data directory .* for chnsenticorp/dev.tsv .*https://github.com"):
    load("validation", tmp_path)
  (tmp_path / "chnsenticorp").mkdir()
  path = tmp_path / "chnsenticorp" / "train.tsv"
  path.write_text(ROWS + "2\t一般\n", "utf-8")
  with pytest.raises(UserError) as raised:
    load("train", tmp_path)
  assert str(raised.value) == f"{path}, line 5: unknown label '2' in 'label'; the known labels are 0, 1."


def test_real_files():
  if not (DATA_DIR / "chnsenticorp").is_dir():
    pytest.skip(f"ChnSentiCorp's files are not under {DATA_DIR} (set FSB_DATA_DIR)")
  counts = {split: collections.Counter(row["label"] for row in load(split, DATA_DIR).examples) for split in FILES}
  assert counts == {"train": {1: 4799, 0: 4801}, "validation": {1: 593, 0: 607}, "test": {1: 608, 0: 592}}
