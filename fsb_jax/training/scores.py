"""The evaluations of a run: which step is the best, and whether it still gets better."""

import json
from collections.abc import Mapping
from pathlib import Path

# Metrics of which less is better; of all others more is.
_LESS_IS_BETTER = ("loss", "perplexity")
# The kind of a line of metrics.jsonl that holds the scores of the whole task.
KIND = "eval"


class Scores:
  """The scores of a run in the order of its steps.

  Args:
    metric: what the best step is best in, one of the scores of every row.
    rows: scores of earlier steps, each with its "step".
  """

  def __init__(self, metric: str, rows: list[dict] = ()):
    self.metric = metric
    self.rows = list(rows)

  def add(self, step: int, metrics: Mapping[str, float]) -> None:
    """Takes in the scores of `step`."""
    self.rows.append({"step": step, **metrics})

  def at(self, step: int) -> dict[str, float] | None:
    """The scores of `step`, None where it was not scored."""
    row = next((row for row in self.rows if row["step"] == step), None)
    return row and {name: value for name, value in row.items() if name != "step"}

  def best_step(self) -> int | None:
    """The first step that no other is better than; None before the first scores."""
    sign = -1 if self.metric in _LESS_IS_BETTER else 1
    best = max(self.rows, key=lambda row: (sign * row[self.metric], -row["step"]), default=None)
    return best and best["step"]

  def without_progress(self) -> int:
    """How many evaluations there were since the best one."""
    best = self.best_step()
    return sum(row["step"] > best for row in self.rows) if self.rows else 0


def read_metrics(path: Path, last_step: int) -> list[dict]:
  """The lines of a metrics file up to `last_step`; what a killed run wrote later, or half, is left out."""
  lines = []
  for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue  # the line at which a run was killed
    if row["step"] <= last_step:
      lines.append(row)
  return lines
