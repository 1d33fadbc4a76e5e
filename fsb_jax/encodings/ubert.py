"""Ubert's items as arrays, and its scores as answers.

An item is a dict: `task_type`, `subtask_type`, `text`, and `choices`, each with an `entity_type`. For training a choice
has an `entity_list` whose entities have `entity_idx`, a list of [first, last] characters; of a classification it has
`label`, 1 or 0. Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/ubert.
"""

from collections.abc import Mapping

import numpy as np

from fsb_jax.encodings._extraction import NEVER, field, probability, token_ids, token_offsets
from fsb_jax.errors import UserError

CLASSIFICATION, READING = "分类任务", "抽取式阅读理解"
ALWAYS = 10000


def encode_ubert(tokenizer, item: Mapping, *, max_length: int) -> dict[str, np.ndarray]:
  """A row for every choice, in their order: `[CLS] task [SEP] subtask [SEP] entity type [SEP] text [SEP]`.

  Rows are cut token by token from the longer of the two parts, from the text where they are equally long.

  Args:
    tokenizer: a transformers fast tokenizer of BERT's form, which knows [SEP] within a text.
    item: see the module's docstring; it is left as it is.
    max_length: tokens of a row; shorter ones are padded.

  Returns:
    `input_ids`, `token_type_ids` and `attention_mask`, int32 `[choices, max_length]`.

  Raises:
    UserError: a field is missing, or `max_length` leaves no room for text.
  """
  if max_length < 4:
    raise UserError(f"max_length {max_length} leaves no room for text beside 3 special tokens; raise it.")
  text, choices = token_ids(tokenizer, field(item, "text", "the item")), field(item, "choices", "the item")
  rows = {name: np.zeros((len(choices), max_length), np.int32) for name in _INPUTS}
  rows["input_ids"][:] = tokenizer.pad_token_id
  for row, choice in enumerate(choices):
    question = token_ids(tokenizer, _question(item, choice))
    kept = _longest_first(len(question), len(text), max_length - 3)
    first = [tokenizer.cls_token_id, *question[: kept[0]], tokenizer.sep_token_id]
    ids = [*first, *text[: kept[1]], tokenizer.sep_token_id]
    rows["input_ids"][row, : len(ids)] = ids
    rows["token_type_ids"][row, len(first) : len(ids)] = 1
    rows["attention_mask"][row, : len(ids)] = 1
  return rows


def encode_ubert_labels(
  tokenizer, item: Mapping, *, max_length: int, num_labels: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
  """`encode_ubert` with labels, for training: choices that have an answer first, then a random draw of the others.

  A span of characters goes from as many tokens as the text before it has to as many as the text up to its end has,
  counted from behind the question, uncut even where the row's is cut. Spans beyond `max_length` are left out. An item
  none of whose choices has an answer is given one in the last cell of the last label, which the mask makes certain: the
  loss of labels is about something then.

  Args:
    tokenizer: see `encode_ubert`.
    item: see the module's docstring; it is left as it is.
    max_length: tokens of a row.
    num_labels: rows of the item; choices beyond are left out, missing ones are rows of zeros.
    random: shuffles the choices without an answer.

  Returns:
    `encode_ubert`'s arrays of `num_labels` rows, `span_labels` int8 and `span_labels_mask` int16
    `[num_labels, max_length, max_length]`; the mask is added to the scores.

  Raises:
    UserError: as `encode_ubert`, or a choice cannot be encoded. The original left such a choice out in silence.
  """
  choices = field(item, "choices", "the item")
  spans = [_spans(tokenizer, item, choice, max_length) for choice in choices]
  answered = [i for i, found in enumerate(spans) if found]
  others = [i for i, found in enumerate(spans) if not found]
  random.shuffle(others)
  order = (answered + others)[:num_labels]
  rows = encode_ubert(tokenizer, {**item, "choices": [choices[i] for i in order]}, max_length=max_length)
  missing = num_labels - len(order)
  arrays = {name: np.pad(x, [(0, missing), (0, 0)]) for name, x in rows.items()}
  labels = np.zeros((num_labels, max_length, max_length), np.int8)
  mask = np.full(labels.shape, NEVER, np.int16)
  for row, i in enumerate(order):
    first = _first_cell(tokenizer, item, choices[i])
    mask[row][(0, 0) if first == 0 else np.s_[first:, first:]] = 0
    for cell in spans[i]:
      labels[row][cell] = 1
  if not answered:
    labels[-1, -1, -1], mask[-1, -1, -1] = 1, ALWAYS
  return {**arrays, "span_labels": labels, "span_labels_mask": mask}


def decode_ubert(tokenizer, item: Mapping, logits: np.ndarray, *, threshold: float = 0.5) -> dict:
  """What scores say of an item.

  Args:
    tokenizer: see `encode_ubert`.
    item: what was encoded; it is left as it is.
    logits: `[choices, length, length]`, the model's `span_logits` of `encode_ubert`'s rows.
    threshold: probability above which a span is an answer.

  Returns:
    A copy of the item. The likeliest choice of a classification has `label` 1 and a `score`, no other has the label
    it was given with. Other choices have an
    `entity_list` of `entity_name` and `score`: of a reading comprehension the likeliest span alone, else every span,
    each name once with its first score. Spans that end behind the text have the name "", as in the original.
  """
  choices = [dict(choice) for choice in field(item, "choices", "the item")]
  text = field(item, "text", "the item")
  offsets = token_offsets(tokenizer, text)
  if item["task_type"] == CLASSIFICATION:
    scores = probability(logits[:, 0, 0])
    best = int(np.argmax(scores))
    choices = [{**choice, "label": 0} if "label" in choice else choice for choice in choices]
    choices[best] |= {"label": 1, "score": float(scores[best])}
    return {**item, "choices": choices}

  def name(start, end):
    return text[offsets[start][0] : offsets[end][1]] if max(start, end) < len(offsets) else ""

  for choice, scores in zip(choices, logits, strict=True):
    first = _first_cell(tokenizer, item, choice)
    # One more than the text: the [SEP] behind it, too, is asked about.
    cells = probability(scores[first:, first:][: len(offsets) + 1, : len(offsets) + 1])
    found = np.argwhere(np.triu(cells > threshold))
    if item["subtask_type"] == READING:
      found = sorted(found, key=lambda cell: -cells[tuple(cell)])[:1]
    entities = {}
    for start, end in found:
      entities.setdefault(name(start, end), float(cells[start, end]))
    choice["entity_list"] = [{"entity_name": entity, "score": score} for entity, score in entities.items()]
  return {**item, "choices": choices}


_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def _question(item: Mapping, choice: Mapping) -> str:
  kinds = (field(item, name, "the item") for name in ("task_type", "subtask_type"))
  return "[SEP]".join([*kinds, field(choice, "entity_type", "a choice")])


def _first_cell(tokenizer, item: Mapping, choice: Mapping) -> int:
  """Where the text begins in an uncut row; 0 for a classification, which asks its first cell alone."""
  if item["task_type"] == CLASSIFICATION:
    return 0
  return len(token_ids(tokenizer, _question(item, choice))) + 2


def _longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
  """How much of two lengths is kept where one is taken from the longer (the second if equal) until they fit."""
  over = first + second - budget
  if over <= 0:
    return first, second
  taken = min(over, abs(first - second))
  first, second = (first - taken, second) if first > second else (first, second - taken)
  rest = over - taken
  return first - rest // 2, second - (rest + 1) // 2


def _spans(tokenizer, item: Mapping, choice: Mapping, max_length: int) -> list[tuple[int, int]]:
  """The cells that are a choice's answers."""
  if item["task_type"] == CLASSIFICATION:
    return [(0, 0)] if choice.get("label", 0) else []
  text, first = item["text"], _first_cell(tokenizer, item, choice)
  cells = []
  for entity in choice.get("entity_list", []):
    for span in entity.get("entity_idx", []):
      if not span:
        continue
      if len(span) != 2 or not 0 <= span[0] <= span[1] < len(text):
        raise UserError(
          f"choice {choice['entity_type']!r} has entity_idx {list(span)}, which is no [first, last] in a text of "
          f"{len(text)} characters; correct it."
        )
      before, through = (len(token_ids(tokenizer, text[:end])) for end in (span[0], span[1] + 1))
      if through <= before:
        raise UserError(f"choice {choice['entity_type']!r} has entity_idx {list(span)}, where the text has no token.")
      if first + through <= max_length:
        cells.append((first + before, first + through - 1))
  return cells
