"""A report as Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence

from fsb_jax.reports.content import Report, Spread, TaskReport
from fsb_jax.reports.published import Reference
from fsb_jax.reports.wording import interval, one_line, percent, ranked, seconds

# Signs that Markdown or the HTML inside it would read as its own.
_SIGNS = re.compile(r"([\\`*_\[\]|~<>&$])")


def to_markdown(report: Report) -> str:
  """The report as Markdown; texts of examples are shown as they are, whatever signs they hold."""
  parts = [f"# {_plain(report.title)}", _table(("", ""), _facts(report))]
  if report.tasks:
    parts += [
      "## Scores",
      f"In percent, with {report.confidence:.0%} bootstrap intervals over the examples.",
      _table(
        ("task", "split", "examples", "score", "", "interval", "most common label", "time"),
        ([*_summary(task)] for task in report.tasks),
      ),
    ]
  if report.spreads:
    parts += ["## Training sets", _spreads(report.spreads)]
    for each in report.spreads:
      parts += _published({each.metric: each.mean}, "", each.references)
  for task in report.tasks:
    parts += _task(task)
  return "\n\n".join(parts) + "\n"


def _facts(report: Report) -> Iterable[tuple[str, str]]:
  return [("model", report.model), ("created", report.created), *report.settings.items()]


def _summary(task: TaskReport) -> tuple[str, ...]:
  score = task.scores[task.metric]
  baseline = "" if task.majority_baseline is None else percent(task.majority_baseline)
  return (
    task.task, task.split, f"{task.examples:,}", task.metric, percent(score.value), interval(score), baseline,
    seconds(task.seconds),
  )  # fmt: skip


def _spreads(spreads: Sequence[Spread]) -> str:
  count = len(spreads[0].values)
  return _table(
    ("task", "score", "mean", "standard deviation", *map(str, range(count))),
    (
      (each.task, each.metric, percent(each.mean), percent(each.standard_deviation), *map(percent, each.values))
      for each in spreads
    ),
  )


def _task(task: TaskReport) -> list[str]:
  parts = [f"## {_plain(task.task)}"]
  parts.append(
    _table(
      ("score", "", "interval"), ((name, percent(score.value), interval(score)) for name, score in task.scores.items())
    )
  )
  parts += _published({name: score.value for name, score in task.scores.items()}, task.split, task.references)
  if task.confusion:
    # As pairs: a matrix of a hundred labels is no table to read.
    pairs = sorted(
      ((count, i, j) for i, row in enumerate(task.confusion) for j, count in enumerate(row) if count and i != j),
      key=lambda pair: (-pair[0], pair[1:]),
    )[:20]
    rows = ((task.label_names[i], task.label_names[j], str(count)) for count, i, j in pairs)
    parts += ["### Most frequent confusions", _table(("target", "predicted", "times"), rows)]
  if task.worst_errors:
    rows = ((error.id, error.target, error.prediction, percent(error.score), error.text) for error in task.worst_errors)
    parts += ["### Worst errors", _table(("id", "target", "predicted", task.score_kind, "text"), rows)]
  return parts


def _published(scores: Mapping[str, float], split: str, references: Sequence[Reference]) -> list[str]:
  if not references:
    return []
  rows = (
    (row.model, row.metric, percent(row.value), row.split, row.source) for row in ranked(scores, split, references)
  )
  return ["### Beside published scores", _table(("model", "score", "", "split", "source"), rows)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *([_plain(cell) for cell in row] for row in rows)]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
  return _SIGNS.sub(r"\\\1", one_line(text))
