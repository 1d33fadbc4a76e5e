"""Answers to questions as spans of a passage that is too long for one row: windows over it, and the way back.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805, sections 4.2 and 4.3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.errors import UserError

# Where a window that does not hold the answer points: its first token, which is special.
NO_ANSWER = 0
# The head that finds answers, as transformers names it of most models, and of XLNet.
SPAN_HEADS = ("question_answering", "question_answering_simple")
# Tokens from where a window begins to where the next one does, as in the original's reading tasks.
WINDOW_STRIDE = 128
# Among so many answers the scores of `rated_answers` are shared out, as in BERT's own code for SQuAD.
_RATED = 20


class Answer(NamedTuple):
  """A span of a passage: its text, `passage[start:end]`, and what start and end score together."""

  text: str
  start: int
  end: int
  score: float


def encode_windows(
  tokenizer,
  questions: Sequence[str],
  passages: Sequence[str],
  *,
  max_length: int,
  stride: int,
  max_question: int = 64,
) -> dict[str, list]:
  """Encodes questions, each with as many windows over its passage as hold all of it.

  Args:
    tokenizer: a transformers fast tokenizer whose rows begin with a special token; every text goes through it once.
    questions: the questions.
    passages: as many passages.
    max_length: longest row in tokens, special tokens included.
    stride: tokens from where a window begins to where the next one does; fewer where a window has less room.
    max_question: longest question in tokens; a longer one is cut at its end.

  Returns:
    An item for every window: `input_ids`, `token_type_ids` int32 `[tokens]`; `offsets` int32 `[tokens, 2]`, where in
    the passage a token begins and ends, both -1 outside it; `example`, the number of its question. A passage without
    tokens has one window.

  Raises:
    UserError: there is no room for the passage, stride is below 1, or the two lists differ in length.
  """
  if len(questions) != len(passages):
    raise UserError(f"{len(questions)} questions and {len(passages)} passages do not make pairs.")
  if stride < 1:
    raise UserError(f"stride must be at least 1 token, not {stride}.")
  with borrowed_backend(tokenizer) as backend:
    # What stands around two texts, found out instead of asked for: every tokenizer has its own template.
    frame = backend.encode("一", "一")
    asked = backend.encode_batch(list(questions), add_special_tokens=False)
    told = backend.encode_batch(list(passages), add_special_tokens=False)
  sequences, types = np.array([-1 if i is None else i for i in frame.sequence_ids]), np.array(frame.type_ids, np.int32)
  special = int((sequences < 0).sum())
  if max_length <= special + max_question:
    raise UserError(
      f"max_length {max_length} leaves no room for the passage beside {special} special tokens and a question of "
      f"{max_question}; raise it or lower max_question."
    )
  # Of several tokens of a stand-in the first is enough.
  stand_ins = [np.flatnonzero(sequences == i)[0] for i in (0, 1)]
  places = [i for i, sequence in enumerate(sequences) if sequence < 0 or i in stand_ins]
  windows = {"input_ids": [], "token_type_ids": [], "offsets": [], "example": []}
  for example, (question, passage) in enumerate(zip(asked, told)):
    question_ids, passage_ids = question.ids[:max_question], np.array(passage.ids, np.int32)
    passage_offsets = np.array(passage.offsets, np.int32).reshape(-1, 2)
    room = max_length - special - len(question_ids)
    for start in _starts(len(passage_ids), room, min(stride, room)):
      part = passage_ids[start : start + room]
      pieces = [([frame.ids[i]], question_ids, part)[sequences[i] + 1] for i in places]
      lengths = [len(piece) for piece in pieces]
      offsets = np.full((sum(lengths), 2), -1, np.int32)
      begin = sum(lengths[: places.index(stand_ins[1])])
      offsets[begin : begin + len(part)] = passage_offsets[start : start + room]
      windows["input_ids"].append(np.concatenate(pieces).astype(np.int32))
      windows["token_type_ids"].append(np.repeat(types[places], lengths))
      windows["offsets"].append(offsets)
      windows["example"].append(example)
  return windows


def answer_positions(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
  """The first and the last token of an answer in a window.

  Args:
    offsets: `[tokens, 2]` of the window.
    start: the answer's first character in the passage.
    end: the one after its last.

  Returns:
    The two positions, both of which are `NO_ANSWER` where the window does not hold all tokens of the answer.
  """
  touched = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
  held = np.flatnonzero(offsets[:, 0] >= 0)
  if not len(touched) or offsets[held[0], 0] > start or offsets[held[-1], 1] < end:
    return NO_ANSWER, NO_ANSWER
  return int(touched[0]), int(touched[-1])


def best_answers(
  start_logits: Sequence[np.ndarray],
  end_logits: Sequence[np.ndarray],
  offsets: Sequence[np.ndarray],
  passage: str,
  *,
  count: int = 20,
  max_tokens: int = 30,
) -> list[Answer]:
  """The spans of a passage that score best, over all its windows; found exactly, not among the best ends alone.

  Args:
    start_logits: for every window of one question, `[tokens]`; tokens beyond the window's offsets are padding.
    end_logits: the same.
    offsets: `[tokens, 2]` of every window.
    passage: the text the offsets are about.
    count: how many answers.
    max_tokens: tokens of the longest answer.

  Returns:
    At most `count` answers, the best first; of equal scores the one that begins, then that ends first. A span that
    several windows hold is there once, with its best score.
  """
  scores, spans = [], []
  for starts, ends, places in zip(start_logits, end_logits, offsets):
    text = np.flatnonzero(places[:, 0] >= 0)
    starts, ends = (np.asarray(x, np.float64)[text] for x in (starts, ends))
    first, width = np.indices((len(text), min(max_tokens, len(text))))
    last = first + width
    fits = last < len(text)
    first, last = first[fits], last[fits]
    scores.append(starts[first] + ends[last])
    spans.append(np.stack([places[text[first], 0], places[text[last], 1]], axis=-1))
  scores, spans = np.concatenate(scores), np.concatenate(spans)
  found: dict[tuple[int, int], float] = {}
  considered = count
  while len(found) < count:
    # More than were asked for, where some of the best are one span in several windows.
    best = _largest(scores, considered)
    order = np.lexsort((spans[best, 1], spans[best, 0], -scores[best]))
    for i in best[order]:
      found.setdefault(tuple(spans[i].tolist()), float(scores[i]))
    if len(best) == len(scores):
      break
    considered *= 2
  return [Answer(passage[start:end], start, end, score) for (start, end), score in list(found.items())[:count]]


def no_answer_score(start_logits: Sequence[np.ndarray], end_logits: Sequence[np.ndarray]) -> float:
  """How surely a passage does not hold the answer: what its least sure window says; arguments as in `best_answers`."""
  return min(float(starts[NO_ANSWER]) + float(ends[NO_ANSWER]) for starts, ends in zip(start_logits, end_logits))


def rated_answers(
  start_logits: Sequence[np.ndarray],
  end_logits: Sequence[np.ndarray],
  offsets: Sequence[np.ndarray],
  passage: str,
  *,
  may_have_none: bool = False,
  max_tokens: int = 50,
) -> list[Answer]:
  """What is answered: the 20 best spans, each with its probability among them for a score.

  Args:
    start_logits: see `best_answers`.
    end_logits: see `best_answers`.
    offsets: see `best_answers`.
    passage: see `best_answers`.
    may_have_none: whether the passage may not hold the answer. Then "", which says so, is one of the answers, with
      `no_answer_score`.
    max_tokens: tokens of the longest answer; 50 are CLUE's.

  Returns:
    The best first, never none: of a passage without tokens the answer is "".
  """
  found = best_answers(start_logits, end_logits, offsets, passage, count=_RATED, max_tokens=max_tokens)
  if may_have_none or not found:
    found.append(Answer("", 0, 0, no_answer_score(start_logits, end_logits)))
    found.sort(key=lambda answer: -answer.score)
  scores = np.array([answer.score for answer in found])
  shares = np.exp(scores - scores.max())
  return [answer._replace(score=float(share)) for answer, share in zip(found, shares / shares.sum())]


def _starts(tokens: int, room: int, stride: int) -> list[int]:
  """Where windows of `room` tokens begin."""
  return [0, *range(stride, tokens - room + stride, stride)] if tokens > room else [0]


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
  """Where the `count` largest are, and all that are as large as the smallest of them."""
  if count >= len(scores):
    return np.arange(len(scores))
  return np.flatnonzero(scores >= np.partition(scores, -count)[-count])
