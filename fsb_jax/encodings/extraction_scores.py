"""How much of what items hold was found: F1, recall and precision of entities, relations, events and single cells.

Repetitions within an item count once. Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/ubert and
fengshen/models/uniex.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fsb_jax.encodings.uniex import TRIGGER


class Scores(NamedTuple):
  """All between 0 and 1; 0 where there was nothing to find, or nothing was found."""

  f1: float
  recall: float
  precision: float


def scores(correct: int, true: int, predicted: int) -> Scores:
  """Of counts: how many were found rightly, how many there are, how many were found."""
  both = true + predicted
  return Scores(
    2 * correct / both if both else 0.0, correct / true if true else 0.0, correct / predicted if predicted else 0.0
  )


def entity_scores(true: Sequence[Mapping], predicted: Sequence[Mapping]) -> Scores:
  """An entity of `entity_list` is right with its text, type and place."""
  return _compared(true, predicted, lambda item: map(_entity, item.get("entity_list", [])))


def relation_scores(true: Sequence[Mapping], predicted: Sequence[Mapping], *, types: bool = True) -> Scores:
  """A relation of `spo_list` is right with its predicate and both texts, and with `types` with their types."""

  def ends(relation):
    names = ("entity_text", "entity_type") if types else ("entity_text",)
    return (relation[part][name] for part in ("subject", "object") for name in names)

  return _compared(
    true, predicted, lambda item: ((relation["predicate"], *ends(relation)) for relation in item.get("spo_list", []))
  )


def event_scores(true: Sequence[Mapping], predicted: Sequence[Mapping]) -> tuple[Scores, Scores]:
  """Of triggers, and of the other arguments: each is right with its event's type, its role, text and place.

  The original reports the sum of the two F1, which can exceed 1.
  """

  def parts(trigger):
    return lambda item: (
      (event["event_type"], *_entity(part))
      for event in item.get("event_list", [])
      for part in event["args"]
      if (part["entity_type"] == TRIGGER) == trigger
    )

  return _compared(true, predicted, parts(True)), _compared(true, predicted, parts(False))


def cell_scores(logits: np.ndarray, labels: np.ndarray) -> Scores:
  """Of single scores, which say yes above zero: arrays of one shape, labels 0 and 1."""
  said, right = logits > 0, labels > 0
  return scores(int((said & right).sum()), int(right.sum()), int(said.sum()))


def _entity(entity: Mapping) -> tuple:
  return entity["entity_text"], entity["entity_type"], tuple(map(tuple, entity["entity_index"]))


def _compared(
  true: Sequence[Mapping], predicted: Sequence[Mapping], facts: Callable[[Mapping], Iterable[Hashable]]
) -> Scores:
  pairs = [(set(facts(one)), set(facts(other))) for one, other in zip(true, predicted, strict=True)]
  return scores(
    sum(len(one & other) for one, other in pairs),
    sum(len(one) for one, _ in pairs),
    sum(len(other) for _, other in pairs),
  )
