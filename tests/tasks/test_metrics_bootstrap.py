import numpy as np
import pytest
import sklearn.metrics

from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics import accuracy, macro_f1
from fsb_jax.tasks.metrics_bootstrap import Measured, averages, compare, intervals, mean_intervals


def labels(examples, classes=4, right=0.7, seed=0):
  random = np.random.default_rng(seed)
  targets = random.integers(classes, size=examples)
  return targets, np.where(random.random(examples) < right, targets, random.integers(classes, size=examples))


def test_the_interval_of_an_accuracy_is_that_of_its_standard_error():
  targets = np.zeros(1000, int)
  low, high = intervals(accuracy(targets, np.arange(1000) < 200), resamples=4000)["accuracy"]
  width = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
  assert (low, high) == pytest.approx((0.8 - width, 0.8 + width), abs=0.002)
  narrow = intervals(accuracy(targets, np.arange(1000) < 200), confidence=0.5)["accuracy"]
  assert low < narrow.low < 0.8 < narrow.high < high


def test_intervals_hold_the_truth_as_often_as_they_say():
  random, held = np.random.default_rng(0), 0
  for seed in range(200):
    low, high = intervals(averages({"hits": random.random(150) < 0.7}), seed=seed, resamples=300)["hits"]
    held += low <= 0.7 <= high
  assert 0.89 <= held / 200 <= 0.99


def test_the_interval_of_macro_f1_is_that_of_resampled_examples():
  targets, predictions = labels(300)
  random = np.random.default_rng(7)
  slow = []
  for _ in range(400):
    rows = random.integers(300, size=300)
    slow.append(sklearn.metrics.f1_score(targets[rows], predictions[rows], average="macro", zero_division=0))
  found = intervals(macro_f1(targets, predictions), resamples=4000)["macro_f1"]
  assert found == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.01)


def test_resamples_depend_on_the_seed_alone(monkeypatch):
  measured = macro_f1(*labels(50))
  once = intervals(measured, seed=3, resamples=100)
  assert intervals(measured, seed=3, resamples=100) == once != intervals(measured, seed=4, resamples=100)
  # However many are drawn at a time.
  monkeypatch.setattr("fsb_jax.tasks.metrics_bootstrap._DRAWS", 350)
  assert intervals(measured, seed=3, resamples=100) == once


def test_a_perfect_score_has_no_width():
  assert intervals(accuracy([0, 1], [0, 1]))["accuracy"] == (1, 1)
  with pytest.raises(UserError, match="no examples"):
    Measured(np.zeros([0, 2]), lambda sums: {})


def test_two_systems_on_the_same_examples():
  targets, weak = labels(400, right=0.6)
  better = np.where(np.arange(400) < 60, targets, weak)  # never worse than the weak one
  first, second = accuracy(targets, better), accuracy(targets, weak)
  found = compare(first, second)["accuracy"]
  assert found.difference == pytest.approx(first["accuracy"] - second["accuracy"])
  assert 0 < found.low < found.difference < found.high and found.p_value == pytest.approx(2 / 1001)
  other_way = compare(second, first)["accuracy"]
  assert (other_way.low, other_way.high) == pytest.approx((-found.high, -found.low))
  # Apart, the intervals of the two overlap: only the paired comparison tells them apart.
  assert intervals(first)["accuracy"].low < intervals(second)["accuracy"].high
  assert compare(first, first)["accuracy"] == (0, 0, 0, 1)
  # 2 of 400 examples are no evidence.
  close = np.where(np.arange(400) < 399, weak, (targets + 1) % 4)
  assert compare(second, accuracy(targets, close))["accuracy"].p_value > 0.3
  with pytest.raises(UserError, match="on 400 examples by accuracy and on 3"):
    compare(first, accuracy([0, 1, 2], [0, 1, 2]))
  with pytest.raises(UserError, match="macro_f1"):
    compare(first, macro_f1(targets, weak))


def test_the_mean_of_tasks_is_of_each_tasks_own_resamples():
  several = [accuracy(*labels(size)) for size in (30, 400)]
  found = mean_intervals(several, seed=7, resamples=4000)["accuracy"]
  random = np.random.default_rng(0)
  slow = [
    np.mean([np.mean(random.choice(each.by_example()["accuracy"], len(each.statistics))) for each in several])
    for _ in range(4000)
  ]
  assert found == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.01)
  assert mean_intervals(several[:1], seed=3, resamples=100) == intervals(several[0], seed=3, resamples=100)
