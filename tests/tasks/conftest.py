"""Small CLUE folders in the published formats; every sentence in them was written for these tests."""

import gzip
import io
import json
import zipfile

import pytest

from fsb_jax.encodings import bert_tokenizer_from_characters

AFQMC = {
  "train": [
    {"sentence1": "怎么改密码", "sentence2": "密码在哪里改", "label": "1"},
    {"sentence1": "怎么改密码", "sentence2": "今天能到吗", "label": "0"},
    {"sentence1": "账单什么时候出", "sentence2": "几号出账单", "label": "1"},
  ],
  "dev": [{"sentence1": "能退钱吗", "sentence2": "怎么退钱", "label": "0"}],
  "test": [
    {"id": 7, "sentence1": "能退钱吗", "sentence2": "可以退钱吗"},
    {"id": 9, "sentence1": "几号", "sentence2": "几点"},
  ],
}
TNEWS = {
  "train": [
    {"label": "100", "label_desc": "news_story", "sentence": "老人讲的小故事", "keywords": ""},
    {"label": "116", "label_desc": "news_game", "sentence": "新游戏今天上线", "keywords": "游戏"},
    {"label": "106", "label_desc": "news_house", "sentence": "房价又变了", "keywords": ""},
    {"label": "100", "label_desc": "news_story", "sentence": "一只猫的一天", "keywords": ""},
  ],
  "dev": [{"label": "103", "label_desc": "news_sports", "sentence": "昨晚的球赛", "keywords": ""}],
  "test": [{"id": 3, "sentence": "明天会下雨吗", "keywords": ""}],
}
OCNLI = {
  "train.50k": [
    {"sentence1": "他每天跑步", "sentence2": "他会跑步", "label": "entailment", "id": 11},
    {"sentence1": "他每天跑步", "sentence2": "他从不运动", "label": "contradiction", "id": 12},
    {"sentence1": "他每天跑步", "sentence2": "他喜欢猫", "label": "-", "id": 13},
    {"sentence1": "门开着", "sentence2": "屋里有人", "label": "neutral", "id": 14},
  ],
  "dev": [{"sentence1": "门开着", "sentence2": "门没关", "label": "entailment", "id": 0}],
  "test": [{"sentence1": "门开着", "sentence2": "窗开着", "id": 0}],
}
IFLYTEK = {
  "train": [
    {"label": "0", "label_des": "打车", "sentence": "在手机上叫车，几分钟就到"},
    {"label": "118", "label_des": "其他", "sentence": "一个说不清是什么的应用"},
  ],
  "dev": [{"label": "24", "label_des": "辅助工具", "sentence": "把手机变成手电"}],
  "test": [{"id": 0, "sentence": "记账用的小本子"}],
}


def json_lines(rows) -> bytes:
  return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_zip(path, members):
  path.parent.mkdir(parents=True, exist_ok=True)
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    for name, rows in members.items():
      archive.writestr(name, json_lines(rows))
  path.write_bytes(content.getvalue())


@pytest.fixture(scope="session")
def clue_dir(tmp_path_factory):
  """A data directory with each task published in another way: zip in its folder or beside, gzipped, plain, unpacked."""
  root = tmp_path_factory.mktemp("clue")
  write_zip(root / "afqmc" / "afqmc_public.zip", {f"{name}.json": rows for name, rows in AFQMC.items()})
  write_zip(root / "tnews_public.zip", {f"tnews_public/{name}.json": rows for name, rows in TNEWS.items()})
  (root / "ocnli").mkdir()
  (root / "ocnli" / "train.50k.json.gz").write_bytes(gzip.compress(json_lines(OCNLI["train.50k"])))
  (root / "ocnli" / "dev.json").write_bytes(b"\xef\xbb\xbf" + json_lines(OCNLI["dev"]))
  (root / "ocnli" / "test.json").write_bytes(json_lines(OCNLI["test"]) + b"\n")
  (root / "iflytek" / "iflytek_public").mkdir(parents=True)
  for name, rows in IFLYTEK.items():
    (root / "iflytek" / "iflytek_public" / f"{name}.json").write_bytes(json_lines(rows))
  return root


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
  tables = (AFQMC, TNEWS, OCNLI, IFLYTEK)
  rows = [row for table in tables for split in table.values() for row in split]
  text = "".join(row[name] for row in rows for name in ("sentence", "sentence1", "sentence2") if name in row)
  return bert_tokenizer_from_characters(sorted(set(text) - set("猫")), tmp_path_factory.mktemp("tokenizer"))
