"""UniEX's items as arrays: a row holds a task, everything that may be found, and the text.

An item is a dict: `task_type`, `text`, and `choice`, a list of what may be found: names of types; or [type of the
subject, relation, type of the object] each; or one dict from a type of event to its roles. For training it has
`entity_list`, `spo_list` or `event_list`, whose entities have an `entity_type` and an `entity_index`, a list of [first,
last] characters. Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/uniex.

Positions of a row: q is the [SEP] before the text, text token t stands at q + 1 + t.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fsb_jax.encodings._extraction import NEVER, field, token_ids, token_offsets
from fsb_jax.errors import UserError

TRIGGER, ARGUMENTS = "触发词", "触发词与要素"
_ENTITY, _RELATION = "[unused1]", "[unused2]"


@dataclasses.dataclass(frozen=True)
class Choices:
  """What an item asks for, in order.

  Attributes:
    entities: types of entities, or roles of events, or classes.
    others: relations, or types of events and at last `ARGUMENTS`, which ties a trigger to its arguments; else empty.
    allowed: for a relation the (subject, object) types, for a type of event its (role,)s.
    events: whether `others` are of events.
  """

  entities: tuple[str, ...]
  others: tuple[str, ...] = ()
  allowed: Mapping[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)
  events: bool = False


def read_choices(choice: Sequence) -> Choices:
  """Reads an item's `choice`; UserError where its parts are of no known form."""
  parts = list(choice) if isinstance(choice, (list, tuple)) else []

  def all_are(*kinds):
    return bool(parts) and all(isinstance(part, kinds) for part in parts)

  if all_are(str):
    return Choices(tuple(choice))
  if all_are(Mapping):
    roles = {event: tuple((role,) for role in names) for part in choice for event, names in part.items()}
    return Choices(_distinct(role for named in roles.values() for (role,) in named), (*roles, ARGUMENTS), roles, True)
  if all_are(list, tuple) and all(len(part) == 3 for part in parts):
    relations = _distinct(relation for _, relation, _ in choice)
    pairs = {
      relation: _distinct((subject, target) for subject, name, target in choice if name == relation)
      for relation in relations
    }
    return Choices(_distinct(name for subject, _, target in choice for name in (subject, target)), relations, pairs)
  raise UserError(
    f"choice {choice!r} is neither types, nor [subject, relation, object] lists, nor a dict from events to roles"
  )


def position_ids(
  length: int, entity_bounds: Sequence[int], other_bounds: Sequence[int] = (), max_length: int = 512
) -> np.ndarray:
  """Positions: every option of a block begins anew, what follows a block goes on from its longest option.

  Args:
    length: tokens of the row.
    entity_bounds: where the options of the first block begin, and where the last one ends.
    other_bounds: the same of the second block, or empty.
    max_length: where it is above 512, positions beyond 511 are 511.

  Returns:
    int32 `[length]`.
  """
  positions = np.arange(length, dtype=np.int32)
  for bounds in (entity_bounds, other_bounds):
    if len(bounds) == 0:
      continue
    base = positions[bounds[0]]
    for first, end in zip(bounds[:-1], bounds[1:]):
      positions[first:end] = base + np.arange(end - first)
    following = positions[bounds[0] : bounds[-1]].max() + 1
    positions[bounds[-1] :] = following + np.arange(length - bounds[-1])
  return np.minimum(positions, 511) if max_length > 512 else positions


def attention_mask(
  length: int, entity_bounds: Sequence[int], other_bounds: Sequence[int], choices: Choices
) -> np.ndarray:
  """Who sees whom, both ways: options see each other only where one may be part of the other.

  [CLS] and what stands before the text's [SEP] do not see each other.

  Args:
    length: tokens of the row.
    entity_bounds: see `position_ids`.
    other_bounds: see `position_ids`.
    choices: the options.

  Returns:
    int8 `[length, length]`, 1 where row sees column.
  """
  options = [slice(*pair) for bounds in (entity_bounds, other_bounds) for pair in zip(bounds[:-1], bounds[1:])]
  names = [*choices.entities, *choices.others]
  mask = np.ones((length, length), np.int8)
  for name, row in zip(names, options, strict=True):
    for other, column in zip(names, options, strict=True):
      mask[row, column] = row == column or _together(name, other, row, column, entity_bounds, choices)
  before = (other_bounds if len(other_bounds) else entity_bounds)[-1]
  mask[0, 1:before] = mask[1:before, 0] = 0
  return mask


def _together(name, other, row, column, entity_bounds, choices) -> bool:
  """Whether an entity's option and a relation's or event's belong together; the two may come in either order."""
  if (row.start < entity_bounds[-1]) == (column.start < entity_bounds[-1]):
    return False
  entity, owner = (name, other) if row.start < column.start else (other, name)
  return any(entity in types for types in choices.allowed.get(owner, ()))


def encode_uniex(tokenizer, item: Mapping, *, max_length: int, cover_last_token: bool = False) -> dict[str, np.ndarray]:
  """A row to predict from: `[CLS] task [SEP] [unused1] type ... ([SEP] [unused2] relation ...) [SEP] text [SEP]`.

  Types of events are marked as entities are. What is longer than `max_length` is cut from the text's end.

  Args:
    tokenizer: a transformers fast tokenizer of BERT's form, whose vocabulary has [unused1] and [unused2].
    item: see the module's docstring; it is left as it is.
    max_length: longest row in tokens.
    cover_last_token: `text_positions` reach the last token of the text. The original's begin at q and are as many as
      the text has tokens, so that no span can reach it.

  Returns:
    `input_ids`, `token_type_ids` (zeros) and `position_ids`, int32 `[length]`; `attention_mask`, int8 `[length,
    length]`; `label_positions`, int32 `[1 + options]`, [CLS] and every option's mark; `text_positions`, int32, q and
    the text's tokens after it; `query_length`, q.

  Raises:
    UserError: a field is missing, `choice` is of no known form, or `max_length` leaves no room for text.
  """
  choices = read_choices(field(item, "choice", "the item"))
  text = token_ids(tokenizer, field(item, "text", "the item"))
  separator = tokenizer.sep_token_id
  ids = [tokenizer.cls_token_id, *token_ids(tokenizer, field(item, "task_type", "the item")), separator]
  bounds = []
  for mark, names in ((_ENTITY, choices.entities), (_ENTITY if choices.events else _RELATION, choices.others)):
    bounds.append([])
    mark_id = tokenizer.convert_tokens_to_ids(mark)
    if mark_id == tokenizer.unk_token_id:
      raise UserError(f"the tokenizer does not know {mark}, which marks what may be found; take a BERT vocabulary.")
    for name in names:
      bounds[-1].append(len(ids))
      ids += [mark_id, *token_ids(tokenizer, name)]
    if names:
      bounds[-1].append(len(ids))
      ids.append(separator)
  query = len(ids) - 1
  kept = min(len(text), max_length - len(ids) - 1)
  if kept < min(len(text), 1):
    raise UserError(
      f"max_length {max_length} leaves no room for text: task and choice of {field(item, 'task_type', 'the item')} "
      f"take {len(ids)} tokens; raise it, or ask for less at once."
    )
  ids += [*text[:kept], separator]
  return {
    "input_ids": np.array(ids, np.int32),
    "token_type_ids": np.zeros(len(ids), np.int32),
    "position_ids": position_ids(len(ids), *bounds, max_length),
    "attention_mask": attention_mask(len(ids), *bounds, choices),
    "label_positions": np.array([0, *bounds[0][:-1], *bounds[1][:-1]], np.int32),
    "text_positions": np.arange(query, query + kept + cover_last_token, dtype=np.int32),
    "query_length": np.array(query, np.int32),
  }


def encode_uniex_labels(
  tokenizer, item: Mapping, *, max_length: int, gold_spans_only: bool, cover_last_token: bool = False
) -> dict[str, np.ndarray]:
  """`encode_uniex` with labels, for training.

  Channel 0 is of spans; each option has the next. A span is labelled at (first token, last token). A relation is
  labelled at (first, first) and at (last, last) of subject and object; an event's trigger and argument likewise, in the
  last channel. Entities that are cut off are left out.

  Args:
    tokenizer: see `encode_uniex`.
    item: see the module's docstring; it is left as it is.
    max_length: longest row in tokens.
    gold_spans_only: types are asked of the item's own spans, and of pairs of them, as in a model whose spans are chosen
      before their types; else of everything outside the query. The mask of an item with `span_mask` "mask" is always
      such.
    cover_last_token: see `encode_uniex`.

  Returns:
    `encode_uniex`'s arrays without `text_positions` (training asks everywhere for spans), `span_positions` int32, where
    types are asked for, `span_labels` int8 and `span_labels_mask` int16 `[length, length, 1 + options]`; the mask is
    added to the scores.

  Raises:
    UserError: as `encode_uniex`, or an entity is of a type that `choice` lacks, or no part of the text.
  """
  row = encode_uniex(tokenizer, item, max_length=max_length, cover_last_token=cover_last_token)
  choices, text_positions, query = read_choices(item["choice"]), row.pop("text_positions"), int(row["query_length"])
  length = len(row["input_ids"])
  channels = {name: 1 + i for i, name in enumerate(choices.entities)}
  others = {name: 1 + len(channels) + i for i, name in enumerate(choices.others)}
  labels = np.zeros((length, length, len(row["label_positions"])), np.int8)
  offsets = token_offsets(tokenizer, item["text"])

  def cells(entity):
    """Of one entity, those that are not cut off; their channels are set."""
    channel = _known(channels, field(entity, "entity_type", "an entity"))
    indices = field(entity, "entity_index", "an entity")
    found = [_cell(item["text"], offsets, entity, index) for index in indices if index]
    found = [(query + 1 + first, query + 1 + last) for first, last in found if query + 2 + last < length]
    for cell in found:
      labels[cell][[0, channel]] = 1
    return found

  spans, ties = [], []
  for entity in item.get("entity_list", []):
    spans += cells(entity)
  for relation in item.get("spo_list", []):
    channel = _known(others, field(relation, "predicate", "a relation"))
    subjects, targets = (cells(field(relation, part, "a relation")) for part in ("subject", "object"))
    spans += subjects + targets
    for pair in _ends(subjects, targets):
      labels[pair][channel] = 1
  for event in item.get("event_list", []):
    channel = _known(others, field(event, "event_type", "an event"))
    found = [(entity["entity_type"] == TRIGGER, cell) for entity in event.get("args", []) for cell in cells(entity)]
    for _, cell in found:
      labels[cell][channel] = 1
      spans.append(cell)
    triggers, arguments = ([cell for trigger, cell in found if trigger == wanted] for wanted in (True, False))
    ties += _ends(triggers, arguments)
  for pair in ties:
    labels[pair][-1] = 1

  mask = np.full(labels.shape, NEVER, np.int16)
  if gold_spans_only or item.get("span_mask") == "mask":
    mask[query:, query:, 0] = 0
    for cell in spans:
      mask[cell][1 : None if choices.events else 1 + len(channels)] = 0
    for pair in ties:
      mask[pair][-1] = 0
    if choices.others and not choices.events:
      for one in spans:
        for pair in _ends([one], [other for other in spans if other != one]):
          mask[pair][1 + len(channels) :] = 0
  else:
    mask[query:] = mask[:, query:] = 0
  if gold_spans_only:
    text_positions = np.array(sorted({query, *(end for cell in spans for end in cell)}), np.int32)
  return {**row, "span_positions": text_positions, "span_labels": labels, "span_labels_mask": mask}


def pad_uniex(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Rows of `encode_uniex` or `encode_uniex_labels` as one batch, each array as long as its longest, padding masked."""
  batch = {}
  for name in rows[0]:
    shape = np.max([row[name].shape for row in rows], axis=0).astype(int)
    fill = NEVER if name == "span_labels_mask" else 0
    batch[name] = np.full((len(rows), *shape), fill, rows[0][name].dtype)
    for i, row in enumerate(rows):
      batch[name][(i, *map(slice, row[name].shape))] = row[name]
  return batch


def _distinct(names) -> tuple:
  return tuple(dict.fromkeys(names))


def _known(channels: Mapping[str, int], name: str) -> int:
  if name not in channels:
    raise UserError(f"{name!r} is not in the item's choice, which has {', '.join(map(repr, channels)) or 'no such'}.")
  return channels[name]


def _cell(text: str, offsets: Sequence[tuple[int, int]], entity: Mapping, index: Sequence[int]) -> tuple[int, int]:
  """The first and the last token of characters `index`."""
  if len(index) != 2 or not 0 <= index[0] <= index[1] < len(text):
    raise UserError(
      f"a {entity['entity_type']!r} has entity_index {list(index)}, which is no [first, last] in a text of {len(text)} "
      "characters; correct it."
    )
  inside = [i for i, (start, end) in enumerate(offsets) if start <= index[1] and end > index[0]]
  if not inside:
    raise UserError(f"a {entity['entity_type']!r} has entity_index {list(index)}, where the text has no token.")
  return inside[0], inside[-1]


def _ends(ones: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
  """(first, first) and (last, last) of every two cells."""
  return [(one[end], other[end]) for one in ones for other in others for end in (0, 1)]
