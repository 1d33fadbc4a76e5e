import copy
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tasks import CHARACTERS, declare_table

from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.training import data
from fsb_jax.training.batching import Batching
from fsb_jax.training.data import Loader

FIELDS = {"input_ids", "attention_mask", "token_type_ids", "labels", "weights", "example_ids"}
slow_setup = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def declare(tmp_path):
  return lambda lengths, pairs=False: declare_table(tmp_path / "rows.jsonl", lengths, pairs)


def same(batch, other):
  assert batch.keys() == other.keys() == FIELDS
  for name in FIELDS:
    assert batch[name].dtype == other[name].dtype
    np.testing.assert_array_equal(batch[name], other[name])


# Drawn by size first: lists alone are nearly always short.
LENGTHS = st.integers(1, 40).flatmap(lambda size: st.lists(st.integers(1, 40), min_size=size, max_size=size))


@slow_setup
@given(
  lengths=LENGTHS,
  batch_size=st.sampled_from([1, 4, 8]),
  buckets=st.one_of(st.integers(1, 4), st.just((7, 16, 24))),
  shuffle=st.booleans(),
  pairs=st.booleans(),
  epoch=st.integers(0, 3),
  side=st.sampled_from(["right", "left"]),
)
def test_every_example_once_in_batches_as_a_naive_reference(
  tokenizer, declare, lengths, batch_size, buckets, shuffle, pairs, epoch, side
):
  tokenizer = copy.deepcopy(tokenizer)
  tokenizer.padding_side = side
  loader = Loader(declare(lengths, pairs), "train", tokenizer, 24, batch_size, shuffle=shuffle, buckets=buckets)
  assert loader.num_examples == len(lengths)
  batches = list(loader.batches(epoch))
  assert len(batches) == loader.steps_per_epoch() == -(-len(lengths) // batch_size)
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
        padding = [0] * (length - len(expected[name]))
        padded = expected[name] + padding if side == "right" else padding + expected[name]
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
@given(
  lengths=LENGTHS,
  hosts=st.integers(1, 4).flatmap(
    # Every row at some host; some rows at several.
    lambda count: st.lists(st.sets(st.integers(0, count - 1), min_size=1), min_size=8, max_size=8)
  ),
  order=st.randoms(use_true_random=False),
  shuffle=st.booleans(),
)
def test_hosts_together_serve_the_global_batches(tokenizer, declare, lengths, hosts, order, shuffle):
  name = declare(lengths)

  def loader(rows):
    return Loader(name, "train", tokenizer, 24, 8, seed=5, shuffle=shuffle, rows=rows)

  whole = loader(None)
  parts = []
  for host in sorted(set().union(*hosts)):
    rows = [row for row in range(8) if host in hosts[row]]
    order.shuffle(rows)
    parts.append((rows, loader(rows)))
  assert {part.digest for _, part in parts} == {whole.digest}
  steps = whole.steps_per_epoch()
  served = [list(part.stream(steps - 1, 2 * steps)) for _, part in parts]
  for step, batch in enumerate(whole.stream(steps - 1, 2 * steps)):
    joined = {field: np.full_like(batch[field], -7) for field in FIELDS}
    for (rows, part), batches in zip(parts, served):
      for field in FIELDS:
        joined[field][rows] = batches[step][field]
      epoch, step_of_epoch = divmod(steps - 1 + step, steps)
      np.testing.assert_array_equal(part.example_ids(epoch, step_of_epoch), batch["example_ids"])
    same(batch, joined)


@slow_setup
@given(lengths=LENGTHS, shuffle=st.booleans(), first=st.integers(0, 40), count=st.integers(0, 20))
def test_a_stream_that_goes_on_at_any_step_equals_the_uninterrupted_one(
  tokenizer, declare, lengths, shuffle, first, count
):
  name = declare(lengths)
  whole = Loader(name, "train", tokenizer, 24, 4, seed=3, shuffle=shuffle)
  steps = whole.steps_per_epoch()
  epochs = itertools.chain.from_iterable(whole.batches(epoch) for epoch in range((first + count) // steps + 1))
  resumed = Loader(name, "train", tokenizer, 24, 4, seed=3, shuffle=shuffle).stream(first, first + count)
  for batch, other in zip(resumed, itertools.islice(epochs, first, first + count), strict=True):
    same(batch, other)


def test_the_digest_sees_whatever_decides_the_batches(tokenizer, declare):
  lengths = [3, 5, 9, 14] * 3

  def digest(lengths=lengths, pairs=False, max_length=24, batch_size=4, **options):
    options = {"seed": 1, "shuffle": True, "buckets": (8, 24), **options}
    return Loader(declare(lengths, pairs), "train", tokenizer, max_length, batch_size, **options).digest

  original = digest()
  assert len(original) == 64 and original == digest() == digest(rows=[2, 0])
  others = [
    digest([*lengths[:-1], 13]), digest(lengths[::-1]), digest(lengths[:-1]), digest(pairs=True), digest(max_length=12),
    digest(batch_size=6), digest(seed=2), digest(shuffle=False), digest(buckets=(16, 24)), digest(buckets=(8, 16, 24)),
  ]
  assert len({original, *others}) == 11


def test_a_stream_prepares_the_next_epoch_before_the_last_ends(tokenizer, declare, monkeypatch):
  """An order that takes long to draw does not hold up the batches around an epoch's end."""
  steps, epochs = 20, 3
  begun, served = ([threading.Event() for _ in range(epochs)] for _ in range(2))
  in_time, original = [], Batching._order

  def order(self, epoch):
    begun[epoch].set()
    if epoch:
      in_time.append(served[epoch - 1].wait(60))
    return original(self, epoch)

  monkeypatch.setattr(Batching, "_order", order)
  # A clock that is a second later each time it is looked at: once before a batch, once after.
  monkeypatch.setattr(data, "time", SimpleNamespace(monotonic=itertools.count().__next__))
  loader = Loader(declare([5] * steps * 4), "train", tokenizer, 24, 4, shuffle=True)
  for step, _ in enumerate(loader.stream(0, steps * epochs)):
    epoch, step_of_epoch = divmod(step, steps)
    # Well before the batches that are made ahead would ask for it.
    if step_of_epoch == 5 and epoch + 1 < epochs:
      assert begun[epoch + 1].wait(60)
    if step_of_epoch == steps - 1:
      served[epoch].set()
  assert in_time == [True] * (epochs - 1)
  # Every batch was waited for, and so was the word that there are no more.
  assert loader.waited == steps * epochs + 1


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
  assert batches[2]["labels"].tolist() == [2, 0, -100, -100]
  np.testing.assert_array_equal(batches[2]["input_ids"][2], batches[2]["input_ids"][0])


def test_resuming_does_not_serve_what_came_before(tokenizer, declare, monkeypatch):
  loader = Loader(declare([5] * 400), "train", tokenizer, 24, 4, shuffle=True)
  built = []
  original = Loader._batch
  monkeypatch.setattr(Loader, "_batch", lambda self, *planned: built.append(planned[0]) or original(self, *planned))
  next(loader.batches(0, 90))
  rest = [loader.example_ids(0, step).tolist() for step in range(90, 100)]
  assert built and all(planned.tolist() in rest for planned in built)


def test_mistakes_are_named(tokenizer, declare):
  name = declare([3] * 9)
  cases = [
    ({"batch_size": 0}, "batch_size 0 must be"),
    ({"rows": [0, 4]}, r"rows \[0, 4\] must be some of a batch's rows, 0 to 3"),
    ({"rows": [-1]}, r"rows \[-1\] must be"),
    ({"rows": []}, r"rows \[\] must be"),
    ({"seed": -1}, "seed -1"),
    ({"buckets": 0}, "buckets 0 must be at least 1"),
    ({"buckets": (16, 8)}, r"buckets \(16, 8\) must be positive lengths in ascending order"),
    ({"buckets": (2, 4)}, r"buckets \(2, 4\) end before the longest example, 5 tokens"),
    ({"max_length": 2}, "max_length 2 leaves no room"),
    ({"split": "validation"}, "no split 'validation'; its splits are train"),
    ({"task_name": "absent"}, "There is no task 'absent'; the known ones are tnews"),
  ]
  for change, message in cases:
    options = {"task_name": name, "split": "train", "max_length": 24, "batch_size": 4, "shuffle": True, **change}
    with pytest.raises(UserError, match=message):
      Loader(options.pop("task_name"), options.pop("split"), tokenizer, **options)
  loader = Loader(name, "train", tokenizer, 24, 4, shuffle=True)
  assert list(loader.batches(0, 3)) == []
  with pytest.raises(UserError, match="Step 4 is outside epoch 0, which has 3 steps"):
    loader.batches(0, 4)
  with pytest.raises(UserError, match="Step 3 is outside epoch 1, which has 3 steps"):
    loader.example_ids(1, 3)
  for steps in ((-1, 2), (3, 2)):
    with pytest.raises(UserError, match="are no steps of a run"):
      loader.stream(*steps)
  for index in (-1, 9):
    with pytest.raises(UserError, match=f"Example {index} is outside"):
      loader.raw(index)
