"""Every published file that is on disk: rows, labels and first examples. Rows themselves are never kept here."""

import collections
import hashlib
import json
import os
from pathlib import Path

import pytest

from fsb_jax.encodings import load_tokenizer
from fsb_jax.tasks import MIXTURES
from fsb_jax.tasks.catalogue import check_data
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import load_split

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
SNAPSHOTS = json.loads(Path(__file__).with_name("snapshots.json").read_text())
FEW = [f"{name}_{number}" for name in ("train", "dev") for number in range(5)]
OCNLI = {"contradiction": 3242, "neutral": 3434, "entailment": 3309}

# As counted apart from this package: rows by split, and labels by split where they were counted.
ROWS = {
  "tnews": {"train": 53360, "validation": 10000},
  "afqmc": {"train": 34334, "validation": 4316, "test": 3861},
  "ocnli": {"train": 10000 - 15, "validation": 3000 - 50, "test": 3000},
  "cmnli": {"validation": 12241},
  "csl": {"train": 20000, "validation": 3000, "test": 3000},
  "cluewsc2020": {"train": 1244, "validation": 304, "test": 2574, "test1.0": 290},
  "cmrc2018": {"train": 10142, "validation": 3219, "trial": 1002, "test": 2000},
  "c3": {"train": 11869, "validation": 3816, "test": 1625, "test1.0": 3892, "test_labelled": 3892},
  "iflytek": {"train": 928, "validation": 1749},
  "chnsenticorp": {"train": 9600, "validation": 1200, "test": 1200},
  "lcqmc": {"validation": 8802, "test": 12500},
  "thucnews_titles": {"validation": 10000, "test": 10000},
  "stsb": {"train": 5231, "validation": 1458, "test": 1361},
  "cluener": {"train": 10748, "validation": 1343, "test": 1345},
  "msra": {"validation": 2318, "test": 4636},
  "resume": {"train": 3821, "validation": 463, "test": 477},
}
for _name, _train, _all, _dev, _dev_all, _public, _test, _unlabelled in (
  ("eprstmt", 32, 160, 32, 160, 610, 753, 19565),
  ("csldcp", 536, 2036, 536, 2068, 1784, 2999, None),
  ("tnewsf", 240, 1185, 240, 1098, 2010, 1500, 20000),
  ("iflytekf", 928, 3024, 690, 1373, 1749, 2600, None),
  ("ocnlif", 32, 160, 32, 160, 2520, 3000, None),
  ("bustm", 32, 160, 32, 160, 1772, 2000, 4251),
  ("chidf", 42, 202, 42, 202, 2002, 2000, 7585),
  ("cslf", 32, 160, 32, 160, 2838, 3000, None),
  ("cluewscf", 32, 160, 32, 159, 976, 290, None),
):
  ROWS[_name] = {split: _train if split.startswith("train") else _dev for split in FEW} | {
    "train": _all, "train_few_all": _all, "validation": _dev_all, "dev_few_all": _dev_all, "test_public": _public,
    "test": _test, **({"unlabeled": _unlabelled} if _unlabelled else {}),
  }
LABELS = {
  ("ocnli", "train"): OCNLI,
  ("ocnli", "validation"): {"entailment": 947, "neutral": 1103, "contradiction": 900},
  ("cmnli", "validation"): {"neutral": 3926, "entailment": 4277, "contradiction": 4038},
  ("lcqmc", "validation"): {"1": 4402, "0": 4400},
  ("lcqmc", "test"): {"0": 6250, "1": 6250},
  ("afqmc", "train"): {"0": 23761, "1": 10573},
  ("afqmc", "validation"): {"0": 2978, "1": 1338},
  ("csl", "train"): {"0": 10000, "1": 10000},
  ("csl", "validation"): {"0": 1500, "1": 1500},
  ("cluewsc2020", "train"): {"false": 727, "true": 517},
  ("cluewsc2020", "validation"): {"true": 111, "false": 193},
}
# Beginnings of entities in the files: B and S.
ENTITIES = {
  ("resume", "train"): 13343 + 95,
  ("msra", "validation"): 984 + 884 + 1951,
  ("msra", "test"): 3658 + 1864 + 2185,
}
LABEL_COUNTS = {
  ("tnews", "train"): 15, ("csldcp", "train_0"): 67, ("iflytekf", "train_0"): 119, ("tnewsf", "dev_0"): 15
}


def first_examples(loaded) -> str:
  return hashlib.sha256(json.dumps(loaded.examples[:3], sort_keys=True).encode()).hexdigest()


def loaded_or_skip(name, split):
  if not (DATA_DIR / "README.md").is_file():
    pytest.skip(f"the published files are not under {DATA_DIR} (set FSB_DATA_DIR)")
  return load_split(known_tasks()[name], split, DATA_DIR)


@pytest.mark.parametrize("name", ROWS)
def test_rows_labels_and_first_examples(name):
  task = known_tasks()[name]
  for split, rows in ROWS[name].items():
    loaded = loaded_or_skip(name, split)
    assert len(loaded.examples) == len(loaded.fields) == rows, split
    assert first_examples(loaded) == SNAPSHOTS[name][split], split
    if "label" in loaded.examples[0] and task.label_names:
      labels = collections.Counter(task.label_names[row["label"]] for row in loaded.examples if row["label"] >= 0)
      assert labels == LABELS.get((name, split), labels), split
      assert len(labels) == LABEL_COUNTS.get((name, split), len(labels)), split
      hidden = name in (*MIXTURES["clue"], *MIXTURES["fewclue"]) and split in ("test", "test1.0", "unlabeled")
      assert bool(labels) != hidden, split
    if (name, split) in ENTITIES:
      assert sum(len(row["entity_labels"]) for row in loaded.examples) == ENTITIES[name, split]


@pytest.mark.parametrize("name", MIXTURES["fewclue"])
def test_the_five_parts_make_up_the_whole(name):
  """Of train_0..4 and dev_0..4, no row is missing in train_few_all and dev_few_all."""
  for part in ("train", "dev"):
    whole, parts = set(), set()
    for found, splits in ((whole, [f"{part}_few_all"]), (parts, [f"{part}_{number}" for number in range(5)])):
      for row in (row for split in splits for row in loaded_or_skip(name, split).fields):
        found.add(json.dumps({**row, "id": 0, "idx": 0}, sort_keys=True))
    assert parts == whole


def test_entities_stand_in_their_text():
  for name in ("cluener", "resume", "msra"):
    for row, fields in zip(*(getattr(loaded_or_skip(name, "validation"), what) for what in ("examples", "fields"))):
      if name == "cluener":
        written = [surface for places in fields["label"].values() for surface, each in places.items() for _ in each]
      else:
        written = ["".join(fields["tokens"][start:end]) for _, start, end in fields["entities"]]
      found = [row["text"][start:end] for start, end in zip(row["entity_starts"], row["entity_ends"])]
      assert sorted(found) == sorted(written)


def test_answers_stand_in_their_passage_where_they_say():
  for split, moved in (("train", 21), ("validation", 7)):
    rows = loaded_or_skip("cmrc2018", split)
    others = 0
    for row, fields in zip(rows.examples, rows.fields):
      assert len(row["answers"]) == len(row["starts"]) == len(fields["answers"])
      for answer, start, given in zip(row["answers"], row["starts"], fields["answers"]):
        assert start < 0 or row["text"][start : start + len(answer)] == answer
        others += start != given["answer_start"]
    assert others == moved
  assert not any(row["answers"] for row in loaded_or_skip("cmrc2018", "test").examples)


def test_ten_thousand_lines_have_the_tokenizers_ids(tmp_path):
  from fsb_jax.tasks.preprocessors import CutPair, TokenizePair
  from fsb_jax.tasks.vocabularies import TokenizerVocabulary

  examples = loaded_or_skip("tnews", "train").examples[:5000], loaded_or_skip("lcqmc", "test").examples[:5000]
  (tmp_path / "vocab.txt").write_bytes((DATA_DIR / "tokenizers" / "bert_base_chinese_vocab.txt").read_bytes())
  tokenizer = load_tokenizer(tmp_path)
  from transformers.models.bert.tokenization_bert import BertTokenizer

  reference = BertTokenizer(str(tmp_path / "vocab.txt"))
  vocabulary = TokenizerVocabulary(tokenizer)
  for rows in examples:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    encoded = CutPair(vocabulary).apply(TokenizePair(vocabulary).apply(columns), 64)
    texts = [[row[name] for row in rows] for name in ("text", "text_pair") if name in rows[0]]
    expected = reference(*texts, truncation="longest_first", max_length=64)
    assert [ids.tolist() for ids in encoded["input_ids"]] == expected["input_ids"]
    assert [ids.tolist() for ids in encoded["token_type_ids"]] == expected["token_type_ids"]


def test_published_files_are_well():
  loaded_or_skip("eprstmt", "train_0")
  found = list(check_data(["afqmc", "eprstmt", "resume", "stsb"], str(DATA_DIR)))
  assert len(found) == 3 + 17 + 3 + 3 and all(fine and line.endswith("; the known file") for fine, line in found), found
