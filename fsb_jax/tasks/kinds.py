"""Kinds of tasks beside classification and plain text: what their examples hold and how they become token ids.

Every kind is one `Kind`; a task of it is a `RowsTask`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsb_jax.encodings import (
  IGNORED,
  NO_ANSWER,
  TAGGERS,
  WINDOW_STRIDE,
  Entity,
  answer_positions,
  encode_characters,
  encode_pairs,
  encode_windows,
)
from fsb_jax.tasks.files import DataFile, Row
from fsb_jax.tasks.published import Published
from fsb_jax.tasks.text_task import Split, require_new_id, require_task_name, row_id

_UNCUT = 2**30

Encoded = dict[str, list]


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
  """A kind of task.

  Attributes:
    name: for people.
    head: the head of a model that it trains.
    fields: what an example holds beside `id`: `str`, `int`, `float`, or a list of one of them.
    tokens: of an encoded row, the arrays `[tokens]`.
    numbers: of an encoded row, the numbers, with their type; `id` is the example's.
    encode: `(tokenizer, examples, label_names, max_length)` -> every name of `tokens` and `numbers`, a row or more for
      each example.
  """

  name: str
  head: str
  fields: Mapping[str, Any]
  tokens: tuple[str, ...]
  numbers: Mapping[str, type]
  encode: Callable[[Any, Sequence[Mapping], Sequence[str], int | None], Encoded]


@dataclasses.dataclass(frozen=True)
class RowsTask:
  """A task of one of the kinds below.

  Attributes:
    name: the task's name, under which it is registered.
    summary: what it is about, in a few words.
    kind: its kind.
    splits: names of the splits.
    read: `(split, data_dir) -> Split`; examples hold `id` and what the kind says.
    label_names: of a tagging task the kinds of entities.
    published: its files.
  """

  name: str
  summary: str
  kind: Kind
  splits: tuple[str, ...]
  read: Callable[[str, Path | None], Split]
  label_names: tuple[str, ...] = ()
  published: Published | None = None

  has_pair = False

  def __post_init__(self):
    require_task_name(self.name)

  @property
  def head(self) -> str:
    """The head of a model that it trains."""
    return self.kind.head


def rows_task(
  name: str,
  summary: str,
  kind: Kind,
  published: Published,
  rows: Callable[[DataFile], Iterator[Row]],
  example: Callable[[str, dict, str], dict],
  *,
  label_names: tuple[str, ...] = (),
  submitted: tuple[str, ...] = ("test",),
) -> RowsTask:
  """A task of published files.

  Args:
    name: see `RowsTask`.
    summary: see `RowsTask`.
    kind: see `RowsTask`.
    published: its files.
    rows: reads a file.
    example: `(where, fields, split)` -> what the kind says an example holds.
    label_names: see `RowsTask`.
    submitted: splits that answers are handed in for, by id; no two rows of theirs may have the same.
  """

  def read(split: str, data_dir: Path | None) -> Split:
    examples, kept, first_with_id = [], [], {}
    read_rows = itertools.chain.from_iterable(map(rows, published.locate(name, split, data_dir)))
    for number, (where, fields) in enumerate(read_rows):
      if split in submitted:
        require_new_id(first_with_id, where, fields.get("id"))
      examples.append({"id": row_id(fields.get("id"), number), **example(where, fields, split)})
      kept.append(fields)
    return Split(examples, kept)

  return RowsTask(name, summary, kind, published.splits, read, label_names, published)


def tag_classes(kinds_of_entities: Sequence[str]) -> tuple[str, ...]:
  """The classes of a token in a tagging task: see `encodings.label_names`; B and I of every kind of entity."""
  return TAGGERS[TAGGING.head].names(kinds_of_entities)


def _encode_choices(tokenizer, examples, names, max_length) -> Encoded:
  del names
  texts, seconds, found = [], [], {"label": [], "option": [], "id": []}
  for example in examples:
    for number, option in enumerate(example["options"]):
      texts.append(example["text"])
      seconds.append(f"{example['question']} {option}".strip())
      for name, value in (("label", example["label"]), ("option", number), ("id", example["id"])):
        found[name].append(value)
  return {**encode_pairs(tokenizer, texts, seconds, max_length=max_length), **found}


def _encode_reading(tokenizer, examples, names, max_length) -> Encoded:
  del names
  windows = encode_windows(
    tokenizer,
    [example["question"] for example in examples],
    [example["text"] for example in examples],
    max_length=max_length or _UNCUT,
    stride=WINDOW_STRIDE,
  )
  found = {"start_positions": [], "end_positions": [], "id": []}
  for offsets, number in zip(windows.pop("offsets"), windows.pop("example")):
    start, end = window_span(examples[number], offsets)
    for name, value in (("start_positions", start), ("end_positions", end), ("id", examples[number]["id"])):
      found[name].append(value)
  return {**windows, **found}


def window_span(example: Mapping, offsets: np.ndarray) -> tuple[int, int]:
  """The first and the last token of a reading example's answer in a window, which a model is to find.

  Args:
    example: of `READING`; the first of its answers that stands in the passage counts.
    offsets: `[tokens, 2]` of the window, see `encodings.encode_windows`.

  Returns:
    The two positions. Both are `NO_ANSWER` where the window does not hold the answer, and `IGNORED` where there is
    nothing to find: the answers are not known, or are words that do not stand in the passage.
  """
  for start, answer in zip(example["starts"], example["answers"]):
    if start >= 0:
      return answer_positions(offsets, start, start + len(answer))
  return (NO_ANSWER, NO_ANSWER) if "" in example["answers"] else (IGNORED, IGNORED)


def _encode_tags(tokenizer, examples, names, max_length) -> Encoded:
  rows = encode_characters(tokenizer, [example["text"] for example in examples], max_length=max_length)
  tagger, classes, labels = TAGGERS[TAGGING.head], tag_classes(names), []
  for example, offsets in zip(examples, rows.pop("offsets")):
    targets = tagger.targets(tagged_entities(example, names), example["text"], offsets, classes)
    labels.append(targets["labels"])
  return {**rows, "labels": labels, "id": [example["id"] for example in examples]}


def tagged_entities(example: Mapping, names: Sequence[str]) -> list[Entity]:
  """An example's entities that tags can say: of two that overlap the longer, of two as long the first."""
  places = zip(example["entity_starts"], example["entity_ends"], example["entity_labels"])
  taken: list[Entity] = []
  for start, end, label in sorted(places, key=lambda place: (place[0] - place[1], place[0])):
    if all(end <= other.start or other.end <= start for other in taken):
      taken.append(Entity(names[label], start, end))
  return sorted(taken, key=lambda entity: entity.start)


def _encode_scored(tokenizer, examples, names, max_length) -> Encoded:
  del names
  texts, seconds = ([example[name] for example in examples] for name in ("text", "text_pair"))
  numbers = {name: [example[name] for example in examples] for name in ("score", "id")}
  return {**encode_pairs(tokenizer, texts, seconds, max_length=max_length), **numbers}


_TOKENS = ("input_ids", "token_type_ids")

# `label` is the number of the right option, `NO_LABEL` in a split without; an encoded row is one option.
MULTIPLE_CHOICE = Kind(
  "multiple choice", "multiple_choice",
  {"text": str, "question": str, "options": list[str], "label": int},
  _TOKENS, {"label": int, "option": int, "id": int}, _encode_choices,
)
# `starts` are characters of `text`, -1 for an answer that does not stand there; no answers are known where there are
# none, and "" says that the text does not hold any. An encoded row is one window.
READING = Kind(
  "reading", "question_answering",
  {"text": str, "question": str, "answers": list[str], "starts": list[int]},
  _TOKENS, {"start_positions": int, "end_positions": int, "id": int}, _encode_reading,
)
# Entities are half-open in characters of `text`; `entity_labels` number the task's label names.
TAGGING = Kind(
  "tagging", "token_classification",
  {"text": str, "entity_labels": list[int], "entity_starts": list[int], "entity_ends": list[int]},
  (*_TOKENS, "labels"), {"id": int}, _encode_tags,
)
SCORED_PAIRS = Kind(
  "scored pairs", "sequence_regression",
  {"text": str, "text_pair": str, "score": float},
  _TOKENS, {"score": float, "id": int}, _encode_scored,
)
