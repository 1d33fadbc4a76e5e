"""Entities of a text as tags, as ends of spans or as pairs of tokens, and back.

An entity is half-open, `text[start:end]`, in characters or in tokens. Label 0 fills padding; what every encoding takes
as `names` is `label_names` of a task's labels.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.errors import UserError

SPECIAL_LABELS = ("[PAD]", "[START]", "[END]")
OUTSIDE = "O"
# Tokens of the longest entity that pairs of tokens can be.
MAX_WIDTH = 11

Scheme = Literal["bio", "bios", "bioes"]
# What continues an entity. In BIO a single token is B, in the others S.
_CONTINUES = {"bio": ("I",), "bios": ("I",), "bioes": ("I", "E")}


class Entity(NamedTuple):
  """A kind of entity and its place: the first character or token, and the one after its last."""

  label: str
  start: int
  end: int


def label_names(labels: Iterable[str]) -> tuple[str, ...]:
  """All classes of a task: `SPECIAL_LABELS`, then its labels in order; the M of BMES becomes I."""
  return (*SPECIAL_LABELS, *map(_inner_as_i, labels))


def entities_of_tags(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
  """Reads the entities of a sequence of tags, well-formed or not, as the original's scorer does.

  An entity begins at B and ends at the last tag of its own label that continues it; continuing tags of other labels are
  passed over. One that nothing continues is an entity in BIO alone. S is one in the others.

  Args:
    tags: "O", "B-PER", ...; anything unknown counts as "O".
    scheme: what the tags are.
  """
  _require_scheme(scheme)
  found, label, start, end = [], None, 0, None
  for i, tag in enumerate((*tags, OUTSIDE)):
    prefix, _, kind = tag.partition("-")
    if label is not None and prefix in _CONTINUES[scheme]:
      end = i + 1 if kind == label else end
      continue
    if label is not None and end is not None:
      found.append(Entity(label, start, end))
    label = None
    if prefix == "B":
      label, start, end = kind, i, i + 1 if scheme == "bio" else None
    elif prefix == "S" and scheme != "bio":
      found.append(Entity(kind, i, i + 1))
  return found


def entities_of_chunks(tags: Sequence[str]) -> list[Entity]:
  """Reads the entities of a sequence of tags as CoNLL's scorer and seqeval do: also ill-formed tags make entities.

  A tag begins an entity where it is B or S, or follows O, E, S, or a tag of another label; it goes on with the one
  before it otherwise. M counts as I.

  Args:
    tags: "O", "B-PER", ... of BIO, BIOES or BMES.
  """
  found: list[Entity] = []
  before, label = OUTSIDE, None
  for i, tag in enumerate(tags):
    prefix, _, kind = tag.partition("-")
    if prefix != OUTSIDE:
      if prefix in ("B", "S") or before in (OUTSIDE, "E", "S") or kind != label:
        found.append(Entity(kind, i, i + 1))
      else:
        found[-1] = found[-1]._replace(end=i + 1)
    before, label = prefix, kind
  return found


def tags_of_entities(entities: Iterable[Entity], length: int, scheme: Scheme) -> list[str]:
  """Writes entities as `length` tags; UserError where they overlap or lie outside."""
  _require_scheme(scheme)
  tags = [OUTSIDE] * length
  for label, start, end in entities:
    if not 0 <= start < end <= length:
      raise UserError(f"the entity {label} from {start} to {end} does not lie in a text of {length} characters")
    if set(tags[start:end]) != {OUTSIDE}:
      raise UserError(f"the entity {label} from {start} to {end} overlaps another, which tags cannot say")
    prefixes = ["B", *"I" * (end - start - 1)]
    if scheme == "bioes" and end - start > 1:
      prefixes[-1] = "E"
    if scheme != "bio" and end - start == 1:
      prefixes = ["S"]
    tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
  return tags


def encode_characters(tokenizer, texts: Sequence[str], *, max_length: int | None) -> dict[str, list[np.ndarray]]:
  """Encodes texts character by character, so that every tag and every end of an entity has a token.

  A character without a token (a space) is left out. A text too long is cut at its end.

  Args:
    tokenizer: a transformers fast tokenizer.
    texts: the texts.
    max_length: longest row in tokens, special tokens included; None cuts nothing.

  Returns:
    `input_ids`, `token_type_ids`: int32 `[tokens]`, and `offsets`: int32 `[tokens, 2]`, where in the text the token's
    character begins and ends, both -1 at special tokens; one array per row.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  special_tokens = tokenizer.backend_tokenizer.num_special_tokens_to_add(False)
  if max_length is not None and max_length <= special_tokens:
    raise UserError(
      f"max_length {max_length} leaves no room for text beside {special_tokens} special tokens; raise it."
    )
  with borrowed_backend(tokenizer, max_length) as backend:
    encodings = backend.encode_batch([list(text) for text in texts], is_pretokenized=True)
  rows = {"input_ids": [], "token_type_ids": [], "offsets": []}
  for encoding in encodings:
    rows["input_ids"].append(np.array(encoding.ids, np.int32))
    rows["token_type_ids"].append(np.array(encoding.type_ids, np.int32))
    first = np.array([-1 if character is None else character for character in encoding.word_ids], np.int32)
    rows["offsets"].append(np.stack([first, np.where(first < 0, -1, first + 1)], axis=-1))
  return rows


def tag_labels(tags: Sequence[str], offsets: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """The label of every token: that of its character, "O" at special tokens.

  Args:
    tags: one per character; the M of BMES counts as I.
    offsets: `[tokens, 2]`, see `encode_characters`.
    names: see the module's docstring.

  Returns:
    int32 `[tokens]`.

  Raises:
    UserError: a tag is none of `names`, or there are fewer tags than characters.
  """
  if offsets.max() > len(tags):
    raise UserError(f"a text has {offsets.max()} characters or more but {len(tags)} tags; give one for each")
  labels = np.full(len(offsets), _number(OUTSIDE, names), np.int32)
  text = offsets[:, 0] >= 0
  said = [tags[character] for character in offsets[text, 0]]
  numbers = {tag: _number(_inner_as_i(tag), names) for tag in {*said}}
  labels[text] = [numbers[tag] for tag in said]
  return labels


def to_tokens(entities: Iterable[Entity], offsets: np.ndarray) -> list[Entity]:
  """Entities in characters as entities in tokens; those that the row does not hold whole are left out."""
  text = np.flatnonzero(offsets[:, 0] >= 0)
  starts, ends = offsets[text].T
  found = []
  for label, start, end in entities:
    inside = text[(starts >= start) & (ends <= end)]
    if len(inside) and ends[-1] >= end:
      found.append(Entity(label, int(inside[0]), int(inside[-1]) + 1))
  return found


def to_characters(entities: Iterable[Entity], offsets: np.ndarray) -> list[Entity]:
  """Entities in tokens as entities in characters; undoes `to_tokens`."""
  return [Entity(label, int(offsets[start, 0]), int(offsets[end - 1, 1])) for label, start, end in entities]


def span_labels(entities: Iterable[Entity], length: int, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """What begins and what ends at every token.

  Args:
    entities: in tokens.
    length: tokens of the row.
    names: see the module's docstring.

  Returns:
    `start_positions`, `end_positions`: int32 `[length]`, 0 where nothing does.
  """
  starts, ends = np.zeros((2, length), np.int32)
  for label, start, end in entities:
    starts[start] = ends[end - 1] = _number(label, names)
  return starts, ends


def entities_of_spans(starts: Sequence[int], ends: Sequence[int], names: Sequence[str]) -> list[Entity]:
  """Joins every beginning with the nearest end of the same label at it or after it.

  Args:
    starts: the label of every token's beginning, `[tokens]`.
    ends: the label of every token's end.
    names: see the module's docstring; its special labels and "O" are no entities.

  Returns:
    Entities in tokens, in the order of their beginnings; they may overlap.
  """
  starts, ends = np.asarray(starts), np.asarray(ends)
  found = []
  for start in np.flatnonzero(np.isin(starts, _kinds(names))):
    same = np.flatnonzero(ends[start:] == starts[start])
    if len(same):
      found.append(Entity(names[starts[start]], int(start), int(start + same[0]) + 1))
  return found


def pair_labels(
  entities: Iterable[Entity], length: int, names: Sequence[str], max_width: int = MAX_WIDTH
) -> tuple[np.ndarray, np.ndarray]:
  """What lies between every two tokens, and which pairs are asked about.

  Args:
    entities: in tokens.
    length: tokens of the row, special tokens included.
    names: see the module's docstring.
    max_width: tokens of the longest span that is asked about.

  Returns:
    `span_labels`: int32 `[length, length]`, by first and last token, "O" where there is no entity. `span_mask`: int32
    of the same shape, 1 where the last token is the first or one of the `max_width - 1` after it. Padding of both is 0.
  """
  labels = np.full((length, length), _number(OUTSIDE, names), np.int32)
  for label, start, end in entities:
    labels[start, end - 1] = _number(label, names)
  return labels, _band(length, max_width).astype(np.int32)


def entities_of_pairs(
  scores: np.ndarray,
  offsets: np.ndarray,
  names: Sequence[str],
  *,
  max_width: int = MAX_WIDTH,
  nested: bool = False,
) -> list[Entity]:
  """Chooses entities among the pairs of tokens (Yu et al. 2020, https://arxiv.org/abs/2005.07150, section 3.3).

  A pair is what it is likeliest to be; special labels, which no pair was trained to be, are not considered. Of the
  pairs that are not "O" the surest are taken first, each unless one that is taken clashes with it.

  Args:
    scores: `[tokens, tokens, labels]`, by first and last token, of one row; more tokens than `offsets` are padding.
    offsets: `[tokens, 2]`, see `encode_characters`; no entity begins or ends at a special token.
    names: see the module's docstring.
    max_width: tokens of the longest entity.
    nested: entities clash where they cross; otherwise where they overlap at all.

  Returns:
    Entities in tokens, in the order of the text.
  """
  length, considered = len(offsets), np.array([_number(OUTSIDE, names), *_kinds(names)])
  scores = np.asarray(scores, np.float64)[:length, :length][..., considered]
  scores = scores - scores.max(-1, keepdims=True)
  sureness = -np.log(np.exp(scores).sum(-1))  # the log probability of the likeliest, whose score is now 0
  first, width = np.indices((length, min(max_width, length)))
  last = np.minimum(first + width, length - 1)
  labels = considered[scores.argmax(-1)]
  return entities_of_surest(labels[first, last], sureness[first, last], offsets, names, nested=nested)


def entities_of_surest(
  labels: np.ndarray, sureness: np.ndarray, offsets: np.ndarray, names: Sequence[str], *, nested: bool = False
) -> list[Entity]:
  """`entities_of_pairs` of what every span is likeliest to be.

  Args:
    labels: int `[tokens, width]`, of the span of 1, 2, ... tokens that begins at each token; what would end beyond the
      last is not read.
    sureness: `[tokens, width]`, the larger the surer.
    offsets: see `entities_of_pairs`.
    names: see `entities_of_pairs`.
    nested: see `entities_of_pairs`.
  """
  text = np.append(offsets[:, 0] >= 0, np.zeros(labels.shape[1], bool))
  lasts = np.arange(len(offsets))[:, None] + np.arange(labels.shape[1])
  starts, widths = np.nonzero((labels != _number(OUTSIDE, names)) & text[: len(offsets), None] & text[lasts])
  order = np.lexsort((widths, starts, -sureness[starts, widths]))
  taken: list[Entity] = []
  for start, width in zip(starts[order].tolist(), widths[order].tolist()):
    end = start + width + 1
    if not any(_clash(start, end, other.start, other.end, nested) for other in taken):
      taken.append(Entity(names[labels[start, width]], start, end))
  return sorted(taken, key=lambda entity: (entity.start, entity.end))


def _inner_as_i(label: str) -> str:
  return "I" + label[1:] if label.startswith("M-") else label


def _band(length: int, max_width: int) -> np.ndarray:
  distance = np.arange(length) - np.arange(length)[:, None]
  return (distance >= 0) & (distance < max_width)


def _clash(start: int, end: int, other_start: int, other_end: int, nested: bool) -> bool:
  if nested:
    return start < other_start < end < other_end or other_start < start < other_end < end
  return start < other_end and other_start < end


def _kinds(names: Sequence[str]) -> list[int]:
  """The numbers of the labels that are kinds of entities."""
  return [i for i, name in enumerate(names) if name not in (*SPECIAL_LABELS, OUTSIDE)]


def _number(label: str, names: Sequence[str]) -> int:
  if label not in names:
    raise UserError(f"the label {label!r} is none of the task's labels {', '.join(names)}")
  return list(names).index(label)


def _require_scheme(scheme: str) -> None:
  if scheme not in _CONTINUES:
    raise UserError(f"unknown tagging scheme {scheme!r}; known: {', '.join(_CONTINUES)}")
