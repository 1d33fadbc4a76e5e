import collections
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsb_jax import tasks
from fsb_jax.encodings import bert_tokenizer_from_characters, load_tokenizer
from fsb_jax.errors import UserError
from fsb_jax.training.data import Loader, choose_buckets

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
CHARACTERS = "今天气真好不知道"
FIELDS = {"input_ids", "attention_mask", "token_type_ids", "labels", "weights", "example_ids"}
slow_setup = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def declare(tmp_path):
  """Declares the task `table` with texts of the given lengths and returns its name."""

  def write(lengths, pairs=False):
    rows = [
      {
        "text": "".join(itertools.islice(itertools.cycle(CHARACTERS[number % 8 :]), length)),
        "second": CHARACTERS[: 1 + number % 8],
        "label": f"class{number % 3}",
      }
      for number, length in enumerate(lengths)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    names = ["class0", "class1", "class2"]
    tasks.table_task("table", {"train": path}, "text", "second" if pairs else None, label_names=names)
    return "table"

  return write


def same(batch, other):
  assert batch.keys() == other.keys() == FIELDS
  for name in FIELDS:
    assert batch[name].dtype == other[name].dtype
    np.testing.assert_array_equal(batch[name], other[name])


# Drawn by size first: lists alone are nearly always short.
LENGTHS = st.integers(1, 40).flatmap(lambda size: st.lists(st.integers(0, 40), min_size=size, max_size=size))


@slow_setup
@given(
  lengths=LENGTHS,
  batch_size=st.sampled_from([1, 4, 8]),
  buckets=st.one_of(st.integers(1, 4), st.just((7, 16, 24))),
  shuffle=st.booleans(),
  pairs=st.booleans(),
  epoch=st.integers(0, 3),
)
def test_every_example_once_in_batches_as_a_naive_reference(
  tokenizer, declare, lengths, batch_size, buckets, shuffle, pairs, epoch
):
  loader = Loader(declare(lengths, pairs), "train", tokenizer, 24, batch_size, shuffle=shuffle, buckets=buckets)
  assert loader.num_examples == len(lengths)
  batches = list(loader.batches(epoch))
  assert len(batches) == loader.steps_per_epoch(epoch) == -(-len(lengths) // batch_size)
  served = np.concatenate([batch["example_ids"][batch["weights"] > 0] for batch in batches])
  assert sorted(served.tolist()) == list(range(len(lengths)))
  tokens = 0
  for batch in batches:
    length = batch["input_ids"].shape[1]
    assert length in loader.buckets
    for name in ("input_ids", "attention_mask", "token_type_ids"):
      assert batch[name].shape == (batch_size, length) and batch[name].dtype == np.int32
    for row in range(batch_size):
      if batch["weights"][row] == 0:
        assert batch["example_ids"][row] == -1 and batch["attention_mask"][row].any()
        continue
      fields = loader.raw(batch["example_ids"][row])
      expected = tokenizer(
        fields["text"],
        fields["second"] if pairs else None,
        truncation="longest_first",
        max_length=24,
        padding=False,
      )
      tokens += len(expected["input_ids"])
      for name in ("input_ids", "attention_mask", "token_type_ids"):
        padded = expected[name] + [0] * (length - len(expected[name]))
        assert batch[name][row].tolist() == padded, name
      assert batch["labels"][row] == int(fields["label"][-1])
      assert batch["weights"][row] == 1
  positions = sum(batch["input_ids"].size for batch in batches)
  assert loader.real_token_share(epoch) == pytest.approx(tokens / positions)
  filled = [batch for batch in batches if (batch["weights"] == 0).any()]
  assert len(filled) == (len(lengths) % batch_size > 0)


@slow_setup
@given(lengths=LENGTHS, part=st.integers(0, 8), shuffle=st.booleans(), epoch=st.integers(0, 2))
def test_starting_at_a_step_equals_advancing_to_it(tokenizer, declare, lengths, part, shuffle, epoch):
  name = declare(lengths)
  whole = list(Loader(name, "train", tokenizer, 24, 4, seed=3, shuffle=shuffle).batches(epoch))
  start = len(whole) * part // 8
  # A new loader: nothing is remembered but (seed, epoch, step).
  resumed = list(Loader(name, "train", tokenizer, 24, 4, seed=3, shuffle=shuffle).batches(epoch, start))
  assert len(resumed) == len(whole) - start
  for batch, other in zip(resumed, whole[start:]):
    same(batch, other)


@slow_setup
@given(lengths=LENGTHS, process_count=st.sampled_from([2, 4]), shuffle=st.booleans())
def test_hosts_together_serve_the_global_batches(tokenizer, declare, lengths, process_count, shuffle):
  name = declare(lengths)

  def batches(index, count):
    options = {"seed": 5, "shuffle": shuffle, "process_index": index, "process_count": count}
    return list(Loader(name, "train", tokenizer, 24, 8, **options).batches(1))

  hosts = [batches(index, process_count) for index in range(process_count)]
  for batch, *parts in zip(batches(0, 1), *hosts, strict=True):
    assert len({part["input_ids"].shape for part in parts}) == 1
    same(batch, {name: np.concatenate([part[name] for part in parts]) for name in FIELDS})


def test_order_depends_on_seed_and_epoch_and_nothing_else(tokenizer, declare):
  name = declare([5] * 64)

  def order(seed, epoch, shuffle=True):
    loader = Loader(name, "train", tokenizer, 24, 8, seed=seed, shuffle=shuffle)
    return tuple(np.concatenate([batch["example_ids"] for batch in loader.batches(epoch)]).tolist())

  orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
  assert len(set(orders)) == 4 and orders == [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
  assert order(0, 0, shuffle=False) == order(1, 2, shuffle=False) == tuple(range(64))


def test_training_shuffles_the_buckets_and_evaluation_sorts_them(tokenizer, declare):
  name = declare([2, 30] * 64)
  shapes = {
    shuffle: [
      batch["input_ids"].shape[1]
      for batch in Loader(name, "train", tokenizer, 40, 8, shuffle=shuffle, buckets=2).batches(0)
    ]
    for shuffle in (True, False)
  }
  assert shapes[False] == [8] * 8 + [32] * 8
  assert sorted(shapes[True]) == shapes[False] and shapes[True] != shapes[False]


def test_leftovers_move_up_and_only_the_last_batch_is_filled(tokenizer, declare):
  # Tokens are the characters and two special ones; four rows a batch.
  loader = Loader(declare([4] * 5 + [12] * 4 + [20] * 1), "train", tokenizer, 24, 4, shuffle=False, buckets=(8, 16, 24))
  batches = list(loader.batches(0))
  assert [batch["input_ids"].shape[1] for batch in batches] == [8, 16, 24]
  assert [batch["example_ids"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
  assert batches[2]["weights"].tolist() == [1, 1, 0, 0]
  np.testing.assert_array_equal(batches[2]["input_ids"][2], batches[2]["input_ids"][0])


@settings(max_examples=60, deadline=None)
@given(
  lengths=st.lists(st.integers(2, 60), min_size=1, max_size=30),
  count=st.integers(1, 4),
  max_length=st.sampled_from([60, 61, 64]),
)
def test_buckets_are_the_best_of_all(lengths, count, max_length):
  def padded(edges):
    return sum(min(edge for edge in edges if edge >= length) for length in lengths)

  chosen = choose_buckets(np.array(lengths), count, max_length)
  largest = min(max_length, -(-max(lengths) // 8) * 8)
  assert chosen[-1] == largest and len(chosen) <= count and list(chosen) == sorted(set(chosen))
  smaller = range(8, largest, 8)
  every = [(*edges, largest) for size in range(count) for edges in itertools.combinations(smaller, size)]
  assert padded(chosen) == min(map(padded, every))


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


def served(loader, epoch):
  batches = list(loader.batches(epoch))
  return np.concatenate([batch["example_ids"][batch["weights"] > 0] for batch in batches]).tolist()


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
def test_loader_equals_the_seqio_pipeline(tokenizer, declare, pairs):
  name = declare(range(30), pairs)
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


def test_resuming_does_not_serve_what_came_before(tokenizer, declare, monkeypatch):
  loader = Loader(declare([5] * 400), "train", tokenizer, 24, 4, shuffle=True)
  built = []
  original = Loader._batch
  monkeypatch.setattr(Loader, "_batch", lambda self, plan, step: built.append(step) or original(self, plan, step))
  next(loader.batches(0, 90))
  assert min(built) == 90


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


def test_mistakes_are_named(tokenizer, declare, foreign, tmp_path):
  name = declare([3] * 9)
  cases = [
    ({"batch_size": 6, "process_count": 4}, "batch_size 6 must be a positive multiple of the number of hosts, 4"),
    ({"batch_size": 0}, "batch_size 0 must be"),
    ({"process_index": 2, "process_count": 2}, r"process_index 2 is outside 0\.\.1"),
    ({"seed": -1}, "seed -1"),
    ({"buckets": 0}, "buckets 0 must be at least 1"),
    ({"buckets": (16, 8)}, r"buckets \(16, 8\) must be positive lengths in ascending order"),
    ({"buckets": (2, 4)}, r"buckets \(2, 4\) end before the longest example, 5 tokens"),
    ({"max_length": 2}, "max_length 2 leaves no room"),
    ({"split": "validation"}, "no split 'validation'; its splits are train"),
    ({"task_name": "absent"}, "There is no task 'absent'; the known ones are tnews"),
    ({"task_name": foreign("unlabelled", ["input_ids"], None)}, "gives no feature 'label'"),
    (
      {"task_name": foreign("unsized", ["input_ids", "label"], seqio.PassThroughVocabulary(0))},
      "does not say how many labels",
    ),
  ]
  for change, message in cases:
    options = {"task_name": name, "split": "train", "max_length": 24, "batch_size": 4, "shuffle": True, **change}
    with pytest.raises(UserError, match=message):
      Loader(options.pop("task_name"), options.pop("split"), tokenizer, **options)
  loader = Loader(name, "train", tokenizer, 24, 4, shuffle=True)
  assert list(loader.batches(0, 3)) == []
  with pytest.raises(UserError, match="Step 4 is outside epoch 0, which has 3 steps"):
    loader.batches(0, 4)
  for index in (-1, 9):
    with pytest.raises(UserError, match=f"Example {index} is outside"):
      loader.raw(index)


def test_a_users_mixture_keeps_the_tokenizer_it_was_registered_with(tokenizer, clue_like, tmp_path):
  name = clue_like(None)
  other = bert_tokenizer_from_characters("今", tmp_path / "other")
  with pytest.raises(UserError, match="is registered with another tokenizer"):
    Loader(name, "train", other, 16, 4, shuffle=True)
