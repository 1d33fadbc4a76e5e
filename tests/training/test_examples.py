"""Where a loader's examples come from: tasks and mixtures of ours, CLUE's files, and SeqIO tasks of others."""

import collections
import os
import time
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
from small_tasks import CHARACTERS, declare_table, served

from fsb_jax import tasks
from fsb_jax.encodings import bert_tokenizer_from_characters, load_tokenizer
from fsb_jax.errors import UserError
from fsb_jax.training.data import Loader

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def clue_like(tokenizer, tmp_path, monkeypatch):
  """A mixture of three tables with 30, 10 and 5 rows, given to SeqIO by its user."""
  members = {"large": 30, "middle": 10, "small": 5}
  for name, size in members.items():
    path = tmp_path / f"{name}.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{CHARACTERS[: 1 + row % 8]}\tab"[:-1] + "\n" for row in range(size)))
    tasks.table_task(name, {"train": path}, "text", label_names=["a", "b"])
  tasks.register(tokenizer)

  def add(rates):
    seqio.MixtureRegistry.remove("three")
    if rates is None:
      seqio.MixtureRegistry.add("three", list(members), default_rate=seqio.mixing_rate_num_examples)
    else:
      seqio.MixtureRegistry.add("three", list(zip(members, rates)))
    return "three"

  yield add
  seqio.MixtureRegistry.remove("three")


def test_proportional_mixture_serves_each_example_once(tokenizer, clue_like):
  loader = Loader(clue_like(None), "train", tokenizer, 16, 4, shuffle=True)
  assert loader.label_names == ("a", "b") and loader.label_slice == (0, 2)
  assert [loader.raw(index)["text"] for index in (0, 29, 30, 39, 40, 44)] == [
    CHARACTERS[: 1 + row % 8] for row in (0, 29, 0, 9, 0, 4)
  ]
  for epoch in (0, 1):
    assert sorted(served(loader, epoch)) == list(range(45))


def test_mixture_follows_its_rates_and_wastes_no_example(tokenizer, clue_like):
  loader = Loader(clue_like([1.0, 1.0, 1.0]), "train", tokenizer, 16, 4, shuffle=True)
  counts = collections.Counter()
  for epoch in range(2):
    examples = served(loader, epoch)
    members = np.searchsorted([30, 40], examples, side="right")
    assert np.bincount(members).tolist() == [15, 15, 15]
    counts.update(examples)
  # Two epochs take 30 from each: one pass over the large table, three over the middle one, six over the small one.
  assert counts == {**dict.fromkeys(range(30), 1), **dict.fromkeys(range(30, 40), 3), **dict.fromkeys(range(40, 45), 6)}
  evaluation = Loader("three", "train", tokenizer, 16, 4, shuffle=False)
  assert sorted(served(evaluation, 0)) == list(range(45))


def through_seqio(name, split, max_length):
  lengths = {"input_ids": max_length, "token_type_ids": max_length}
  dataset = seqio.get_mixture_or_task(name).get_dataset(lengths, split, shuffle=False, num_epochs=1)
  return [
    (tuple(row["input_ids"].tolist()), tuple(row["token_type_ids"].tolist()), int(row["label"]))
    for row in dataset.as_numpy_iterator()
  ]


def through_loader(loader):
  rows = {}
  for batch in loader.batches(0):
    for row in np.flatnonzero(batch["weights"]):
      length = batch["attention_mask"][row].sum()
      ids, types = (tuple(batch[name][row, :length].tolist()) for name in ("input_ids", "token_type_ids"))
      rows[int(batch["example_ids"][row])] = (ids, types, int(batch["labels"][row]))
  return [rows[index] for index in sorted(rows)]


@pytest.mark.parametrize("pairs", [True, False])
def test_loader_equals_the_seqio_pipeline(tokenizer, tmp_path, pairs):
  name = declare_table(tmp_path / "rows.jsonl", range(1, 31), pairs)
  loader = Loader(name, "train", tokenizer, 16, 4, shuffle=False)
  assert through_loader(loader) == through_seqio(name, "train", 16)


def test_a_mixtures_examples_equal_the_seqio_pipelines(tokenizer, clue_like):
  loader = Loader(clue_like(None), "train", tokenizer, 16, 4, shuffle=True)
  expected = [row for name in ("large", "middle", "small") for row in through_seqio(name, "train", 16)]
  assert through_loader(loader) == expected


@pytest.fixture(scope="module")
def bert_tokenizer(tmp_path_factory):
  vocabulary = DATA_DIR / "tokenizers" / "bert_base_chinese_vocab.txt"
  if not vocabulary.is_file():
    pytest.skip(f"CLUE's files and the BERT vocabulary are not under {DATA_DIR} (set FSB_DATA_DIR)")
  folder = tmp_path_factory.mktemp("bert")
  (folder / "vocab.txt").write_bytes(vocabulary.read_bytes())
  return load_tokenizer(folder)


@pytest.mark.parametrize("name", ["iflytek", "clue_classification.ocnli"])
def test_loader_equals_the_seqio_pipeline_on_clue(bert_tokenizer, name):
  loader = Loader(name, "validation", bert_tokenizer, 64, 32, shuffle=False, data_dir=DATA_DIR)
  assert through_loader(loader) == through_seqio(name, "validation", 64)


@pytest.mark.slow
def test_clue_mixture_equals_the_seqio_pipeline(bert_tokenizer):
  start = time.perf_counter()
  loader = Loader("clue_classification", "train", bert_tokenizer, 64, 32, shuffle=True, data_dir=DATA_DIR)
  print(f"read and tokenised {loader.num_examples / (time.perf_counter() - start):.0f} examples/s")
  assert loader.num_examples == 53_360 + 34_334 + 9_985 + 928 and loader.label_slice == (0, 139)
  assert sorted(served(loader, 0)) == list(range(loader.num_examples))
  assert sorted(through_loader(loader)) == sorted(through_seqio("clue_classification", "train", 64))


@pytest.fixture
def foreign():
  names = []

  def add(name, columns, label_vocabulary):
    names.append(name)
    integers = seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False)
    rows = [{"input_ids": list(range(2, 3 + row)), "label": row % 2} for row in range(9)]

    def dataset(split, shuffle_files):
      del split, shuffle_files
      return tf.data.Dataset.from_generator(
        lambda: ({column: row[column] for column in columns} for row in rows),
        output_signature={
          column: tf.TensorSpec([None] if column == "input_ids" else [], tf.int32) for column in columns
        },
      )

    label = seqio.Feature(label_vocabulary, add_eos=False, rank=0)
    features = {"input_ids": integers, "label": label}
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(dataset, splits=["train"]),
      output_features={column: features[column] for column in columns},
    )
    return name

  yield add
  for name in names:
    seqio.TaskRegistry.remove(name)


def test_a_foreign_seqio_task_runs_its_own_pipeline(tokenizer, foreign):
  name = foreign("their_task", ["input_ids", "label"], seqio.PassThroughVocabulary(2))
  loader = Loader(name, "train", tokenizer, 6, 3, shuffle=False)
  assert loader.label_names == ("0", "1") and loader.num_examples == 9
  assert through_loader(loader) == [
    (tuple(range(2, min(3 + row, 8))), (0,) * min(1 + row, 6), row % 2) for row in range(9)
  ]
  assert loader.raw(4)["label"] == 0


def test_tasks_that_the_loader_cannot_serve(tokenizer, foreign):
  cases = [
    (foreign("unlabelled", ["input_ids"], None), "gives the features input_ids; the loader needs input_ids, and label"),
    (foreign("unsized", ["input_ids", "label"], seqio.PassThroughVocabulary(0)), "does not say how many labels"),
    ("absent", "There is no task 'absent'; the known ones are tnews"),
  ]
  for name, message in cases:
    with pytest.raises(UserError, match=message):
      Loader(name, "train", tokenizer, 24, 4, shuffle=True)


def test_a_users_mixture_keeps_the_tokenizer_it_was_registered_with(tokenizer, clue_like, tmp_path):
  name = clue_like(None)
  other = bert_tokenizer_from_characters("今", tmp_path / "other")
  with pytest.raises(UserError, match="is registered with another tokenizer"):
    Loader(name, "train", other, 16, 4, shuffle=True)
