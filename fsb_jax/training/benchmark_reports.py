"""What a report says of a benchmark: its tasks, their average, and the spread over training sets."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fsb_jax import reports, tasks
from fsb_jax.encodings.clue_answers import JOINT
from fsb_jax.reports.wording import interval, percent
from fsb_jax.tasks.metrics_bootstrap import Measured, averages, intervals, mean_intervals
from fsb_jax.tasks.metrics_text import reading_comprehension
from fsb_jax.tasks.text_task import Split
from fsb_jax.training.answers import Answers, Spans
from fsb_jax.training.batching import spread

METRIC = "accuracy"
BY_RULE = "accuracy_by_rule"
# What a report says of scores that are not those of its other tasks.
_RULES = {
  BY_RULE: "of answers as they are handed in, where the benchmark's rule makes one depend on others: the better half "
  "of an abstract's keyword lists, no idiom twice in a line; accuracy is that of each answer by itself",
  "exact_match": "of answers in a passage's words; it is what averages with the accuracies of other tasks count",
}


class Scored(NamedTuple):
  """A task's report, and the accuracy that an average over tasks is made of; of reading it is the exact match."""

  report: reports.TaskReport
  accuracy: Measured


def scored(task: str, split: str, answers: Answers | Spans, published: Sequence[int | str], read: Split) -> Scored:
  """The report of a split with labels.

  Args:
    task: its name.
    split: its name.
    answers: of the model.
    published: the same as they are handed in.
    read: the split as it was read; of it `answers` are evenly spread where they are fewer.
  """
  kept = spread(len(read.examples), len(published))
  examples, fields = [read.examples[i] for i in kept], [read.fields[i] for i in kept]
  told = dict(
    ids=[row.get("id", number) for number, row in zip(kept, fields)],
    texts=[" / ".join(filter(None, map(row.get, ("text", "text_pair", "question")))) for row in examples],
    seconds=answers.seconds,
  )
  if isinstance(answers, Spans):
    measured = reading_comprehension([row["answers"] for row in examples], published)
    report = reports.task_report(
      task, split, measured, "f1",
      targets=[" / ".join(dict.fromkeys(row["answers"])) for row in examples], predictions=published, **told,
    )  # fmt: skip
    return Scored(report, averages({METRIC: measured.by_example()["exact_match"]}))
  options = [answers.loader.options(i) for i in range(len(examples))]
  is_choice = "options" in examples[0]
  report = reports.classification_report(
    task, split, () if is_choice else _label_names(task, answers, examples), answers.labels, answers.probabilities,
    options=options if is_choice else None, **told,
  )  # fmt: skip
  if task in JOINT and answers.loader.items is not None:
    right = [str(row.get("label", row.get("answer"))) == str(answer) for row, answer in zip(fields, published)]
    measured = averages({BY_RULE: right})
    rule = reports.Score(measured[BY_RULE], *intervals(measured)[BY_RULE])
    report = dataclasses.replace(report, scores={**report.scores, BY_RULE: rule})
  return Scored(report, tasks.accuracy(answers.labels, answers.places))


def describe(report: reports.TaskReport, part: str) -> str:
  """One line for people."""
  score = report.scores[report.metric]
  trained = f", training set {part}" if part else ""
  beside = [f"{name} {percent(each.value)}" for name, each in report.scores.items() if name != report.metric]
  if report.majority_baseline is not None:
    beside = [f"always the most common answer: {percent(report.majority_baseline)}"]
  return (
    f"{report.task} {report.split}{trained}: {report.metric} {percent(score.value)} "
    f"({'; '.join([interval(score), *beside])}), {report.examples:,} examples, {report.seconds:.1f} s"
  )


def report_of_runs(
  name: str, model: str, runs: Mapping[str, Sequence[Scored]], settings: Mapping[str, str]
) -> reports.Report:
  """The report of a benchmark.

  Args:
    name: of the benchmark.
    model: as it was asked for.
    runs: the tasks, by training set; by the empty name where there is one model.
    settings: what else should be known.
  """
  complete = not {"partial", "not scored"} & settings.keys()
  if len(runs) == 1:
    (only,) = runs.values()
    shown = [each.report for each in only]
    for split in dict.fromkeys(each.split for each in shown):
      shown += _average(name, split, [each for each in only if each.report.split == split], complete)
    spreads = ()
  else:
    shown = [
      dataclasses.replace(each.report, split=f"{each.report.split}, training set {part}")
      for part, run in runs.items()
      for each in run
    ]
    first = next((each.report.split for run in runs.values() for each in run), None)
    counted = [[each.report for each in run if each.report.split == first] for run in runs.values()]
    settings = {**settings, "training sets": f"{', '.join(runs)}; mean and deviation are of {first}"}
    spreads = reports.spreads(counted, name if complete else "") if first else ()
  rules = {score: rule for score, rule in _RULES.items() if any(score in each.scores for each in shown)}
  return reports.Report(
    title=name + (" (partial)" if "partial" in settings else ""),
    model=model,
    created=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    tasks=tuple(shown),
    spreads=spreads,
    settings={**settings, **rules},
  )


def _label_names(task: str, answers: Answers, examples: Sequence[Mapping]) -> list[str]:
  """The task's name of every place of an answer; the option itself where no example has it for an answer."""
  names = tasks.info(task).label_names
  by_place = {place: names[row["label"]] for place, row in zip(answers.labels.tolist(), examples)}
  return [by_place.get(place, option) for place, option in enumerate(answers.loader.options(0))]


def _average(name: str, split: str, several: Sequence[Scored], complete: bool) -> list[reports.TaskReport]:
  """The mean of the tasks' accuracies; none of a single task. Published ones stand beside that of whole tasks only.

  What always answering the most common label would get is known where all tasks have labels.
  """
  if len(several) < 2:
    return []
  each = [task.report for task in several]
  ends = mean_intervals([task.accuracy for task in several])[METRIC]
  value = float(np.mean([task.accuracy[METRIC] for task in several]))
  baselines = [report.majority_baseline for report in each]
  return [
    reports.TaskReport(
      f"average of {len(each)} tasks", split, sum(report.examples for report in each), METRIC,
      {METRIC: reports.Score(value, *ends)}, METRIC,
      majority_baseline=None if None in baselines else float(np.mean(baselines)),
      references=reports.references(name) if complete else (),
      seconds=sum(report.seconds for report in each),
    )
  ]  # fmt: skip
