"""What a report says, as plain values: scores with intervals, baselines, confusions and the worst errors."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.reports.published import Reference, references
from fsb_jax.tasks.metrics import accuracy, confusion_matrix, macro_f1, majority_baseline
from fsb_jax.tasks.metrics_bootstrap import Measured, intervals

# How many of the worst errors are shown.
WORST = 20


@dataclasses.dataclass(frozen=True)
class Score:
  """A score between 0 and 1 and the ends of its interval."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class WorstError:
  """An example that went wrong.

  Attributes:
    id: its published id.
    text: what the model read.
    target: the right answer.
    prediction: the model's.
    score: for classes how likely the model held its answer; else the example's own score.
  """

  id: str
  text: str
  target: str
  prediction: str
  score: float


@dataclasses.dataclass(frozen=True)
class TaskReport:
  """How well a model does a task.

  Attributes:
    task: its name.
    split: what was scored.
    examples: how many, each counted once.
    metric: the name of the score that counts.
    scores: all scores by name.
    score_kind: what the numbers of `worst_errors` are, in a word.
    majority_baseline: the accuracy of always answering the most common label; None where there are no labels.
    label_names: names of the labels, for `confusion`.
    confusion: how often each target (a row) was predicted as each label; empty where there are no labels.
    worst_errors: the most confident wrong answers, or the lowest scores, worst first.
    references: published scores of the task.
    seconds: how long scoring took; None where it was not timed.
  """

  task: str
  split: str
  examples: int
  metric: str
  scores: dict[str, Score]
  score_kind: str
  majority_baseline: float | None = None
  label_names: tuple[str, ...] = ()
  confusion: tuple[tuple[int, ...], ...] = ()
  worst_errors: tuple[WorstError, ...] = ()
  references: tuple[Reference, ...] = ()
  seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Spread:
  """A score over several training sets, such as the five of FewCLUE.

  Attributes:
    task: the task's name, or `average` over tasks.
    metric: the score's name.
    values: the score for each training set.
    mean: their mean.
    standard_deviation: of the sample, which divides by one less than there are values.
    references: published means; those of single tasks stand in their `TaskReport`.
  """

  task: str
  metric: str
  values: tuple[float, ...]
  mean: float
  standard_deviation: float
  references: tuple[Reference, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
  """A report as a whole.

  Attributes:
    title: its heading.
    model: the model's name or folder.
    created: when, as people read it.
    tasks: the tasks.
    spreads: scores over several training sets.
    confidence: of the intervals.
    settings: what else should be known of the run, by name.
  """

  title: str
  model: str
  created: str
  tasks: tuple[TaskReport, ...]
  spreads: tuple[Spread, ...] = ()
  confidence: float = 0.95
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


def classification_report(
  task: str,
  split: str,
  label_names: Sequence[str],
  targets: Sequence[int],
  probabilities: np.ndarray,
  *,
  ids: Sequence[str | int],
  texts: Sequence[str],
  options: Sequence[Sequence[str]] | None = None,
  metric: str = "accuracy",
  seconds: float | None = None,
  **bootstrap,
) -> TaskReport:
  """Accuracy, macro-F1, confusions and worst errors of a classification; of a choice no macro-F1 and confusions.

  Args:
    task: its name.
    split: what was scored.
    label_names: the names of the task's labels; none where every example has `options` of its own.
    targets: label ids `[examples]`, among the task's own; of a choice the places of the right options.
    probabilities: `[examples, labels]`, the task's own; each row sums to 1.
    ids: the examples' published ids.
    texts: what the model read, as people read it.
    options: the answers to choose from, for each example, where it is a choice.
    metric: the score that counts, `accuracy` or `macro_f1`.
    seconds: how long scoring took.
    **bootstrap: see `intervals`.

  Raises:
    UserError: there is nothing to score, or the split has no labels.
  """
  targets, probabilities = np.asarray(targets), np.asarray(probabilities)
  predictions = probabilities.argmax(axis=-1)
  scores = {}
  for measured in (accuracy, macro_f1) if options is None else (accuracy,):
    scores |= _scores(measured(targets, predictions), bootstrap)
  confidence = probabilities.max(axis=-1)
  wrong = np.flatnonzero(predictions != targets)
  worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:WORST]
  names = {i: label_names if options is None else options[i] for i in worst}
  errors = [
    WorstError(str(ids[i]), texts[i], own[targets[i]], own[predictions[i]], round(float(confidence[i]), 6))
    for i, own in names.items()
  ]
  confusion = () if options is not None else confusion_matrix(targets, predictions, len(label_names)).tolist()
  return TaskReport(
    task, split, len(targets), metric, scores,
    score_kind="confidence",
    majority_baseline=majority_baseline(targets),
    label_names=tuple(label_names),
    confusion=tuple(map(tuple, confusion)),
    worst_errors=tuple(errors),
    references=references(task),
    seconds=seconds,
  )  # fmt: skip


def task_report(
  task: str,
  split: str,
  measured: Measured,
  metric: str,
  *,
  ids: Sequence[str | int],
  texts: Sequence[str],
  targets: Sequence[str],
  predictions: Sequence[str],
  seconds: float | None = None,
  **bootstrap,
) -> TaskReport:
  """Scores and worst errors of any other task: entities, answers to questions, written text.

  Args:
    task: its name.
    split: what was scored.
    measured: its scores.
    metric: the score that counts; the examples with the lowest are shown.
    ids: the examples' published ids.
    texts: what the model read, as people read it.
    targets: the right answers, likewise.
    predictions: the model's answers, likewise.
    seconds: how long scoring took.
    **bootstrap: see `intervals`.
  """
  own = measured.by_example()[metric]
  # Where there is nothing to find and nothing was found, F1 is 0 and nothing is wrong.
  wrong = [i for i in np.argsort(own, kind="stable") if own[i] < 1 and targets[i] != predictions[i]]
  errors = [
    WorstError(str(ids[i]), texts[i], targets[i], predictions[i], round(float(own[i]), 6)) for i in wrong[:WORST]
  ]
  return TaskReport(
    task, split, len(own), metric, _scores(measured, bootstrap),
    score_kind=metric, worst_errors=tuple(errors), references=references(task), seconds=seconds,
  )  # fmt: skip


def spreads(runs: Sequence[Sequence[TaskReport]], benchmark: str = "fewclue") -> tuple[Spread, ...]:
  """Mean and standard deviation of each task over several training sets, then of their average.

  Args:
    runs: for each training set the reports of the same tasks in the same order.
    benchmark: of which the published averages are shown: `fewclue` or `zeroclue`.

  Raises:
    UserError: there is one run only, or the runs have different tasks.
  """
  if len(runs) < 2:
    raise UserError(f"A spread needs at least two training sets, not {len(runs)}; FewCLUE has five.")
  tasks = [[report.task for report in run] for run in runs]
  for number, other in enumerate(tasks[1:], 1):
    if other != tasks[0]:
      raise UserError(f"Training set 0 was scored on {', '.join(tasks[0])}, and set {number} on {', '.join(other)}.")
  values = np.array([[report.scores[report.metric].value for report in run] for run in runs])
  found = [_spread(report.task, report.metric, values[:, i]) for i, report in enumerate(runs[0])]
  metrics = sorted({report.metric for report in runs[0]})
  return (*found, _spread("average", " and ".join(metrics), values.mean(axis=-1), references(benchmark)))


def _spread(task: str, metric: str, values: np.ndarray, published: tuple[Reference, ...] = ()) -> Spread:
  values = tuple(map(float, values))
  return Spread(task, metric, values, statistics.mean(values), statistics.stdev(values), published)


def _scores(measured: Measured, bootstrap: Mapping) -> dict[str, Score]:
  found = intervals(measured, **bootstrap)
  return {name: Score(value, *found[name]) for name, value in measured.items()}
