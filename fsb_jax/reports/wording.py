"""How reports write numbers and foreign text."""

import unicodedata
from collections.abc import Mapping, Sequence

from fsb_jax.reports.content import Score
from fsb_jax.reports.published import Reference

# Texts of examples are cut there.
_LONGEST = 500
# Embeddings, overrides and isolates of the other direction, and their ends.
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def percent(value: float) -> str:
  """A share in percent with two digits."""
  return f"{100 * value:.2f}"


def interval(score: Score) -> str:
  """The interval of a score in percent."""
  return f"{percent(score.low)} to {percent(score.high)}"


def seconds(value: float | None) -> str:
  """A time, empty where there is none."""
  return "" if value is None else f"{value:.1f} s"


def one_line(text: str) -> str:
  """Foreign text that can do nothing to the page around it: one line and not too long.

  Control signs, those that turn the direction of writing and halves of characters are shown as a replacement sign.
  """
  text = " ".join(text.split())
  text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
  return "".join("\N{REPLACEMENT CHARACTER}" if _is_unsafe(sign) else sign for sign in text)


def _is_unsafe(sign: str) -> bool:
  return unicodedata.category(sign) in ("Cc", "Cs") or unicodedata.bidirectional(sign) in _TURNS


def ranked(scores: Mapping[str, float], split: str, published: Sequence[Reference]) -> list[Reference]:
  """Published scores and our own of the same metrics (those without a source), metric by metric, the best first."""
  metrics = list(dict.fromkeys(row.metric for row in published))
  own = [Reference("this model", metric, scores[metric], split, "") for metric in metrics if metric in scores]
  return sorted([*own, *published], key=lambda row: (metrics.index(row.metric), -row.value))
