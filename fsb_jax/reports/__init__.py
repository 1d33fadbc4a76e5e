"""Reports of evaluations: scores with intervals beside baselines and published ones, as JSON, Markdown and HTML."""

import dataclasses
import json
from pathlib import Path

from fsb_jax.reports.content import (
  Report,
  Score,
  Spread,
  TaskReport,
  WorstError,
  classification_report,
  spreads,
  task_report,
)
from fsb_jax.reports.markdown import to_markdown
from fsb_jax.reports.page import to_html
from fsb_jax.reports.published import Reference, references
from fsb_jax.tasks.new_files import require_new, write_new

__all__ = [
  "Reference",
  "Report",
  "Score",
  "Spread",
  "TaskReport",
  "WorstError",
  "classification_report",
  "references",
  "spreads",
  "task_report",
  "to_html",
  "to_json",
  "to_markdown",
  "write_report",
]


def to_json(report: Report) -> str:
  """The report as JSON, with the names of its attributes."""
  text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=2, allow_nan=False)
  # Half a character, which UTF-8 cannot hold, is written as JSON escapes it.
  return text.encode(errors="backslashreplace").decode() + "\n"


def write_report(report: Report, folder: Path, name: str = "report") -> tuple[Path, Path, Path]:
  """Writes `name`.json, `name`.md and `name`.html.

  Raises:
    UserError: one of them exists, or there is no such folder; then none is written.
  """
  contents = {
    folder / f"{name}.json": to_json(report),
    folder / f"{name}.md": to_markdown(report),
    folder / f"{name}.html": to_html(report),
  }
  for path in contents:
    require_new(path)
  return tuple(write_new(path, content) for path, content in contents.items())
