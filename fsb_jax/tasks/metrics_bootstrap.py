"""Scores that know what each example added to them, their intervals, and whether one system is better than another.

Every score is a function of sums over examples: an accuracy of two, BLEU of ten, macro-F1 of three for each label. So
the score of any resample comes from sums alone, and so does that of examples that were scored apart.

Sources: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals); Koehn,
"Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004 (paired comparison).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fsb_jax.errors import UserError

# Examples drawn at a time; bounds the memory.
_DRAWS = 2**22


class Measured(dict):
  """Scores by name, between 0 and 1, and what they were made from.

  Args:
    statistics: what each example adds, `[examples, statistics]`.
    of_sums: from sums of them, `[..., statistics]`, to scores by name, each `[...]`.

  Raises:
    UserError: there are no examples.
  """

  def __init__(self, statistics: np.ndarray, of_sums: Callable[[np.ndarray], Mapping[str, np.ndarray]]):
    self.statistics = np.asarray(statistics, np.float64)
    self.of_sums = of_sums
    if not len(self.statistics):
      raise UserError("There is nothing to score: the split has no examples.")
    super().__init__({name: float(value) for name, value in of_sums(self.statistics.sum(axis=0)).items()})

  def by_example(self) -> dict[str, np.ndarray]:
    """The scores of each example alone: float64 `[examples]` by name."""
    return {name: np.asarray(values) for name, values in self.of_sums(self.statistics).items()}


class Interval(NamedTuple):
  """The ends of an interval of a score."""

  low: float
  high: float


class Comparison(NamedTuple):
  """A score of one system less that of another, its interval, and how likely that much is by chance alone."""

  difference: float
  low: float
  high: float
  p_value: float


def averages(values: Mapping[str, Sequence[float]]) -> Measured:
  """Scores that are means over the examples, such as hits at rank k.

  Args:
    values: the examples' own scores by name, each `[examples]`.
  """
  columns = [np.asarray(column, np.float64) for column in values.values()]
  statistics = np.stack([*columns, np.ones_like(columns[0])], axis=-1)

  def of_sums(sums):
    return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(values)}

  return Measured(statistics, of_sums)


def intervals(
  measured: Measured, *, seed: int = 0, confidence: float = 0.95, resamples: int = 1000
) -> dict[str, Interval]:
  """Percentile bootstrap intervals of all scores, over the choice of examples.

  One method serves every score. Where all examples agree (an accuracy of 1) it has no width, however few they are.

  Args:
    measured: the scores.
    seed: of the resamples; the same seed gives the same intervals.
    confidence: share of such intervals that hold the true score.
    resamples: how many sets of examples are drawn, with replacement, as many examples in each as there are.
  """
  drawn = measured.of_sums(_resampled_sums(measured.statistics, seed, resamples))
  return {name: _interval(values, confidence) for name, values in drawn.items()}


def mean_intervals(
  several: Sequence[Measured], *, seed: int = 0, confidence: float = 0.95, resamples: int = 1000
) -> dict[str, Interval]:
  """Intervals of the means of scores over several tasks; the examples of each are resampled by themselves.

  Args:
    several: the tasks' scores, all by the same names.
    seed: of the resamples.
    confidence: see `intervals`.
    resamples: see `intervals`.
  """
  drawn = [
    each.of_sums(_resampled_sums(each.statistics, seed + number, resamples)) for number, each in enumerate(several)
  ]
  return {name: _interval(np.mean([each[name] for each in drawn], axis=0), confidence) for name in several[0]}


def compare(
  first: Measured, second: Measured, *, seed: int = 0, confidence: float = 0.95, resamples: int = 1000
) -> dict[str, Comparison]:
  """How much better `first` is than `second` on the same examples, which both must have in the same order.

  Both are scored on the same resamples (paired bootstrap). `p_value` is two-sided: twice the share of resamples in
  which the difference is zero or of the other sign, with one added to both counts, at most 1.

  Args:
    first: scores of a system.
    second: scores of another by the same metric.
    seed: of the resamples.
    confidence: of the intervals.
    resamples: how many sets of examples are drawn.

  Raises:
    UserError: the numbers of examples or the names of the scores differ.
  """
  if len(first.statistics) != len(second.statistics) or first.keys() != second.keys():
    raise UserError(
      f"Two systems are compared on the same examples by the same scores, not on {len(first.statistics)} examples by "
      f"{', '.join(first)} and on {len(second.statistics)} by {', '.join(second)}."
    )
  drawn = [each.of_sums(_resampled_sums(each.statistics, seed, resamples)) for each in (first, second)]
  found = {}
  for name in first:
    differences = np.asarray(drawn[0][name] - drawn[1][name])
    rarer = min(np.sum(differences <= 0), np.sum(differences >= 0))
    p_value = min(1.0, 2 * (1 + rarer) / (1 + resamples))
    found[name] = Comparison(first[name] - second[name], *_interval(differences, confidence), float(p_value))
  return found


def _resampled_sums(statistics: np.ndarray, seed: int, resamples: int) -> np.ndarray:
  """Sums over resamples, `[resamples, statistics]`; those of equally many examples draw the same ones."""
  examples, random = len(statistics), np.random.default_rng(seed)
  at_once = max(1, _DRAWS // examples)
  sums = []
  for start in range(0, resamples, at_once):
    rows = min(at_once, resamples - start)
    drawn = random.integers(examples, size=(rows, examples)) + examples * np.arange(rows)[:, None]
    times = np.bincount(drawn.ravel(), minlength=rows * examples).reshape(rows, examples)
    sums.append(times @ statistics)
  return np.concatenate(sums)


def _interval(values: np.ndarray, confidence: float) -> Interval:
  low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
  return Interval(float(low), float(high))
