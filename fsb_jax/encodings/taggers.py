"""What every kind of tagger is taught about a text, and the entities in what it says; entities are in characters.

Names of entities are half-open, as in `tagging.py`. A tagger is called as its head is.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from fsb_jax.encodings.masking import IGNORED
from fsb_jax.encodings.tagging import (
  OUTSIDE,
  SPECIAL_LABELS,
  Entity,
  entities_of_chunks,
  entities_of_spans,
  entities_of_surest,
  label_names,
  pair_labels,
  span_labels,
  tag_labels,
  tags_of_entities,
  to_characters,
  to_tokens,
)

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tagger:
  """A kind of tagger.

  Attributes:
    classes: kinds of entities -> the names of the head's outputs for them, in their order.
    kind: the name of an output -> its kind of entity.
    nothing: the name of the output that says that there is none.
    padding: what fills up every target where a row has no token.
    targets: `(entities, text, offsets, names)` -> arrays by name, `[tokens]` or `[tokens, tokens]`; `offsets` are those
      of `encode_characters`, `names` all of the head's outputs.
    entities: `(said, offsets, names)` -> the entities in what `models.said_by_tagger` gives of a row, its tokens alone.
  """

  classes: Callable[[Sequence[str]], tuple[str, ...]]
  kind: Callable[[str], str]
  nothing: str
  padding: Mapping[str, int]
  targets: Callable[[Sequence[Entity], str, np.ndarray, Sequence[str]], Arrays]
  entities: Callable[[Arrays, np.ndarray, Sequence[str]], list[Entity]]

  def names(self, kinds: Sequence[str]) -> tuple[str, ...]:
    """The names of all outputs of a head that finds these kinds of entities."""
    return label_names((OUTSIDE, *self.classes(kinds)))

  def label_mask(self, names: Sequence[str], kinds: Collection[str] | None = None) -> np.ndarray:
    """Which outputs may be answers where only these `kinds` may be (all, if not given): bool `[labels]`."""

    def may_be(name: str) -> bool:
      if name in (*SPECIAL_LABELS, OUTSIDE):
        return name == self.nothing
      return kinds is None or self.kind(name) in kinds

    return np.array([may_be(name) for name in names])


def _tag_classes(kinds: Sequence[str]) -> tuple[str, ...]:
  """B and I of every kind of entity."""
  return tuple(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")


def _tag_targets(entities, text, offsets, names) -> Arrays:
  return {"labels": tag_labels(tags_of_entities(entities, len(text), "bio"), offsets, names)}


def _entities_in_tags(said, offsets, names) -> list[Entity]:
  # Of the tokens of one character the first speaks.
  first = np.flatnonzero((offsets[:, 0] >= 0) & (np.diff(offsets[:, 0], prepend=-1) != 0))
  tags = [names[label] for label in said["predictions"][first]]
  return to_characters(entities_of_chunks(tags), offsets[first])


def _span_targets(entities, text, offsets, names) -> Arrays:
  starts, ends = span_labels(to_tokens(entities, offsets), len(offsets), names)
  return {"start_positions": starts, "end_positions": ends}


def _entities_in_spans(said, offsets, names) -> list[Entity]:
  text = np.flatnonzero(offsets[:, 0] >= 0)
  found = entities_of_spans(said["starts"][text], said["ends"][text], names)
  return to_characters(found, offsets[text])


def _pair_targets(entities, text, offsets, names) -> Arrays:
  labels, mask = pair_labels(to_tokens(entities, offsets), len(offsets), names)
  return {"span_labels": labels, "span_mask": mask}


def _entities_in_pairs(said, offsets, names) -> list[Entity]:
  return to_characters(entities_of_surest(said["pairs"], said["sureness"], offsets, names), offsets)


_TAGS = Tagger(
  _tag_classes, lambda name: name.partition("-")[2], OUTSIDE, {"labels": IGNORED}, _tag_targets, _entities_in_tags
)
_SPANS = Tagger(
  tuple, str, SPECIAL_LABELS[0], {"start_positions": 0, "end_positions": 0}, _span_targets, _entities_in_spans
)
_PAIRS = Tagger(tuple, str, OUTSIDE, {"span_labels": 0, "span_mask": 0}, _pair_targets, _entities_in_pairs)

TAGGERS: dict[str, Tagger] = {
  "token_classification": _TAGS, "crf": _TAGS, "span": _SPANS, "span_hard": _SPANS, "biaffine": _PAIRS
}
