"""UniEX's scores as entities, relations and events, see `uniex.py` for the items.

A span is (first, last), tokens of the text. `text_positions` begin with the [SEP] before the text, so row i of a grid
of scores is about token i - 1.

With `spans` the types of spans chosen before are decoded, the fast way: types cost little, and no type is refused.
Without, every span is looked at. What the two ways leave out is the original's.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fsb_jax.encodings._extraction import field, probability, token_offsets
from fsb_jax.encodings.uniex import TRIGGER, Choices, read_choices

CLASSIFICATION = "分类任务"
Span = tuple[int, int]


def choose_spans(index_logits: np.ndarray, *, threshold: float = 0.5) -> list[Span]:
  """Spans whose probability is above `threshold`; some may end before they begin.

  Args:
    index_logits: `[text, text]`, of the `text_positions` of one item without padding.
    threshold: of the probability.
  """
  found = np.argwhere(probability(index_logits)[1:, 1:] > threshold)
  return [(int(first), int(last)) for first, last in found]


def end_tokens(spans: Sequence[Span]) -> list[int]:
  """The tokens that spans begin and end with, in order: what types are asked of, at `query_length` + 1 + token."""
  return sorted({end for span in spans for end in span})


def given_spans(tokenizer, item: Mapping) -> list[Span]:
  """Of a classification, the spans of its entities, (0, 1) where it has none: they are its texts' place holders."""
  offsets = token_offsets(tokenizer, field(item, "text", "the item"))
  indices = [index for entity in item.get("entity_list", []) for index in entity.get("entity_index", [])] or [(0, 1)]
  inside = [[i for i, (start, end) in enumerate(offsets) if start <= last and end > first] for first, last in indices]
  return [(tokens[0], tokens[-1]) for tokens in inside if tokens]


def decode_uniex(
  tokenizer,
  item: Mapping,
  type_logits: np.ndarray,
  *,
  tokens: Sequence[int] | None = None,
  spans: Sequence[Span] | None = None,
  entity_threshold: float = 0.5,
  event_threshold: float = 0.5,
  relation_threshold: float = 0.5,
) -> dict:
  """What scores say of an item.

  Args:
    tokenizer: see `encode_uniex`.
    item: what was encoded; it is left as it is.
    type_logits: `[rows, rows, options]`, of one item without padding.
    tokens: the text's token of every row, rising; -1, 0, 1, ... if not given.
    spans: from `choose_spans`, all of whose tokens are in `tokens`; None looks at all of them. A classification has
      its own, `given_spans`.
    entity_threshold: probability above which a span is an entity; not asked with `spans`.
    event_threshold: mean probability of role and event above which a span is part of an event; not asked with `spans`.
    relation_threshold: probability above which two entities are related.

  Returns:
    A copy of the item with `entity_list`; `entity_list` (of the related ones, as often as they are) and `spo_list`; or
    `event_list`. Entities have `entity_text`, `entity_type`, `entity_index` and a score, called `type_score` with
    `spans` and `score` without, `score` in relations, and `entity_score` in events. A text with more entities than half
    its tokens has no relations, one with more than a quarter no events. A classification takes the likeliest type of
    `given_spans`.
  """
  choices = read_choices(field(item, "choice", "the item"))
  offsets = token_offsets(tokenizer, field(item, "text", "the item"))
  rows = {token: row for row, token in enumerate(range(-1, len(type_logits) - 1) if tokens is None else tokens)}
  types = probability(type_logits)
  length = len(offsets)

  def at(first, last):
    return types[rows[first], rows[last]]

  def entity(span, name, score_name, score):
    start, end = offsets[span[0]][0], offsets[span[1]][1] - 1
    text = item["text"][start : end + 1]
    return {"entity_text": text, "entity_type": name, score_name: float(score), "entity_index": [[start, end]]}

  chosen = spans is not None
  if item.get("task_type") == CLASSIFICATION:
    chosen, spans = True, [span for span in given_spans(tokenizer, item) if rows.keys() >= set(span)]
  if not chosen:
    spans = [(first, last) for first in rows for last in rows if 0 <= first <= last]

  if choices.events:
    found = _parts_of_events(choices, spans, at, -1.0 if chosen else event_threshold)
    found = found if len(found) <= length / 4 else []
    events = _events(found, at)
    return {
      **item,
      "event_list": [
        {"event_type": event, "args": [entity(span, role, "entity_score", score) for span, role, score in parts]}
        for event, parts in events
      ],
    }
  found = []
  for span in spans:
    scores = at(*span)[: len(choices.entities)]
    if chosen or scores.max() > entity_threshold:
      found.append((span, choices.entities[scores.argmax()], scores.max()))
  if not choices.others:
    name = "type_score" if chosen else "score"
    return {**item, "entity_list": [entity(span, kind, name, score) for span, kind, score in found]}
  related = _relations(choices, found if len(found) <= length / 2 else [], at, relation_threshold)
  relations = [
    {"predicate": relation, "score": float(score), "subject": entity(*_named(one)), "object": entity(*_named(other))}
    for relation, score, one, other in related
  ]
  ends = [relation[part] for relation in relations for part in ("subject", "object")]
  return {**item, "entity_list": ends, "spo_list": relations}


def _named(found: tuple[Span, str, float]) -> tuple[Span, str, str, float]:
  span, kind, score = found
  return span, kind, "score", score


def _relations(choices: Choices, found, at, threshold: float) -> list[tuple]:
  """(relation, score, subject, object) of every two entities whose types some relation allows.

  A relation's score is the larger of those of the first and of the last tokens.
  """
  result = []
  for subject in found:
    for target in found:
      pair = (subject[1], target[1])
      allowed = [i for i, relation in enumerate(choices.others) if pair in choices.allowed[relation]]
      if subject is target or not allowed:
        continue
      ends = [at(subject[0][end], target[0][end])[len(choices.entities) :][allowed] for end in (0, 1)]
      scores = np.max(ends, axis=0)
      if scores.max() > threshold:
        result.append((choices.others[allowed[scores.argmax()]], scores.max(), subject, target))
  return result


def _parts_of_events(choices: Choices, spans: Sequence[Span], at, threshold: float) -> list[tuple]:
  """(event, span, role, the role's score) of the spans: the event and role of it whose scores have the largest mean."""
  roles = {role: i for i, role in enumerate(choices.entities)}
  pairs = [
    (event, role, len(roles) + i, roles[role])
    for i, event in enumerate(choices.others[:-1])
    for (role,) in choices.allowed[event]
  ]
  found = []
  for span in spans:
    scores = at(*span)
    means = [(scores[i] + scores[j]) / 2 for _, _, i, j in pairs]
    event, role, _, channel = pairs[int(np.argmax(means))]
    if span[0] <= span[1] and max(means) > threshold:
      found.append((event, span, role, scores[channel]))
  return found


def _events(found: Sequence[tuple], at) -> list[tuple[str, list]]:
  """Every trigger with its arguments: each goes to the trigger of its event to which its ends are tied best.

  Arguments of an event without a trigger are one event together.
  """
  groups: dict[tuple, list] = {}
  triggers = [(event, span) for event, span, role, _ in found if role == TRIGGER]
  for event, span, role, score in found:
    own = [trigger for name, trigger in triggers if name == event]
    best = max(own, key=lambda t: at(t[0], span[0])[-1] + at(t[1], span[1])[-1], default=None)
    group = (event, span if role == TRIGGER else best)
    groups.setdefault(group, []).append((span, role, score))
  return [(event, parts) for (event, _), parts in groups.items()]
