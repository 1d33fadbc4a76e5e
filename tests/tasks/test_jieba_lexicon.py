import collections
import subprocess
import sys

from fsb_jax import tasks
from fsb_jax.tasks.jieba_lexicon import TASK
from fsb_jax.tasks.text_task import load_split


def test_splits_hold_every_word_once():
  splits = {split: load_split(TASK, split, None).fields for split in TASK.splits}
  sizes = {split: len(rows) for split, rows in splits.items()}
  assert sum(sizes.values()) == 349_046
  assert 0.895 < sizes["train"] / 349_046 < 0.905 and 0.045 < sizes["test"] / 349_046 < 0.055
  words = {split: {row["word"] for row in rows} for split, rows in splits.items()}
  assert not words["train"] & words["validation"] and not (words["train"] | words["validation"]) & words["test"]


def test_classes():
  rows = [row for split in TASK.splits for row in load_split(TASK, split, None).examples]
  counts = collections.Counter(TASK.label_names[row["label"]] for row in rows)
  print(counts)
  assert set(counts) == set(TASK.label_names)
  assert 0.30 < max(counts.values()) / len(rows) < 0.37
  class_of = {row["text"]: TASK.label_names[row["label"]] for row in rows}
  expected = {"上海": "place", "画蛇添足": "phrase", "苹果": "noun", "奔跑": "verb", "北京大学": "organisation"}
  assert {word: class_of[word] for word in expected} == expected


def test_characters():
  characters = tasks.lexicon_characters()
  assert len(characters) == 12_045 and characters == sorted(set("".join(characters)))


def test_reading_does_not_import_jieba():
  program = (
    "import sys; from fsb_jax import tasks; tasks.lexicon_characters()\n"
    "print(sorted({'jieba', 'tensorflow'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
  assert done.stdout.strip() == "[]"
