"""Questions about passages: the answer is a span, found in one of the windows that hold the passage between them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsb_jax.encodings import SPAN_HEADS, WINDOW_STRIDE, Answer, encode_windows, rated_answers
from fsb_jax.errors import UserError
from fsb_jax.tasks.kinds import READING, window_span
from fsb_jax.tasks.metrics_bootstrap import Measured
from fsb_jax.tasks.metrics_text import reading_comprehension
from fsb_jax.training.questions import Results


@dataclasses.dataclass(frozen=True)
class Passages:
  """Asks every window of a passage where the answer begins and ends, and takes the best span of all.

  Attributes:
    head: one of `encodings.SPAN_HEADS`.
    starts: int32 `[rows]`, see `tasks.kinds.window_span`; a row is a window.
    ends: int32 `[rows]`, the same.
    offsets: of every row, see `encodings.encode_windows`.
    first_rows: int64 `[examples]`, where the windows of each question begin.
    items: what every question is about: `text`, `question`, `answers`, and whether it `may_have_none`.
  """

  head: str
  starts: np.ndarray
  ends: np.ndarray
  offsets: Sequence[np.ndarray]
  first_rows: np.ndarray
  items: Sequence[Mapping[str, Any]]

  objective = READING.head
  features = ("input_ids", "token_type_ids")
  padding = {}
  label_names = ()
  label_slice = (0, 0)
  best_in = "f1"
  score_names = ("exact_match", "f1")

  @property
  def answered(self) -> bool:
    """Whether every question's answers are known."""
    return all(item["answers"] for item in self.items)

  def arrays(self) -> dict[str, np.ndarray]:
    """What decides the answers."""
    return {
      "start_positions": self.starts, "end_positions": self.ends, "offsets": np.concatenate(self.offsets),
      "first_rows": self.first_rows,
    }  # fmt: skip

  def ask(self, batch: dict[str, np.ndarray], rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
    """The batch of these rows with `start_positions` and `end_positions` `[rows]`."""
    del epoch
    padding = batch["attention_mask"].argmax(axis=1)  # on the left
    spans = {"start_positions": self.starts[rows], "end_positions": self.ends[rows]}
    return {**batch, **{name: np.where(at < 0, at, at + padding).astype(np.int32) for name, at in spans.items()}}

  def answers(self, results: Results) -> list[Answer]:
    """The best answer to every question, its probability among the 20 best for a score."""
    scores = {}
    for result in results:
      real = result["attention_mask"] > 0
      for row, kept, starts, ends in zip(result["example_ids"], real, result["start_logits"], result["end_logits"]):
        scores[int(row)] = starts[kept], ends[kept]
    found = []
    for item, first, last in zip(self.items, self.first_rows, [*self.first_rows[1:], len(self.starts)]):
      starts, ends = zip(*(scores[row] for row in range(first, last)))
      found += rated_answers(
        starts, ends, self.offsets[first:last], item["text"], may_have_none=item["may_have_none"]
      )[:1]
    return found

  def predictions(self, results: Results) -> list[dict[str, Any]]:
    """Every question's answer, `prediction`, "" where the passage holds none, and how likely it is, `score`."""
    return [{"prediction": answer.text, "score": round(answer.score, 6)} for answer in self.answers(results)]

  def measured(self, predictions: Sequence[str]) -> Measured:
    """`exact_match` and `f1`, see `tasks.metrics_text.reading_comprehension`."""
    return reading_comprehension([item["answers"] for item in self.items], predictions)

  def scores(self, results: Results, loss: float) -> dict[str, float]:
    """See `measured`."""
    del loss
    return dict(self.measured([answer.text for answer in self.answers(results)]))


def encode_passages(task, split: str, tokenizer, max_length: int) -> dict[str, list]:
  """The windows of a split's questions as rows, with what is asked of them.

  Args:
    task: a SeqIO task of ours, of the kind `READING`.
    split: which split.
    tokenizer: the checkpoint's tokenizer.
    max_length: longest row in tokens.

  Returns:
    Of every row `input_ids`, `token_type_ids`, `offsets`, its answer's `start` and `end`; `first`, whether it is the
    first of its question; `item`, what it was made from.

  Raises:
    UserError: there is no room for a passage beside the longest question.
  """
  examples, fields = task.source.examples(split), task.source.fields(split)
  texts = ([example[name] for example in examples] for name in ("question", "text"))
  windows = encode_windows(tokenizer, *texts, max_length=max_length, stride=WINDOW_STRIDE)
  # SQuAD 2.0's form says of every question whether its passage answers it, a form without that of none.
  items = [{**example, "may_have_none": "is_impossible" in row} for example, row in zip(examples, fields)]
  numbers = windows.pop("example")
  starts, ends = zip(*(window_span(items[i], offsets) for i, offsets in zip(numbers, windows["offsets"])))
  first = np.diff(numbers, prepend=-1) > 0
  return {**windows, "start": starts, "end": ends, "first": first, "item": [items[i] for i in numbers]}


def passages_of(
  rows: Mapping[str, Sequence], tokenizer, *, seed: int, training: bool, head: str | None
) -> Passages:
  """What is asked about the rows of `encode_passages`; UserError where the head is for something else."""
  del tokenizer, seed, training
  if head not in (None, *SPAN_HEADS):
    raise UserError(f"questions about passages are for the heads {' and '.join(SPAN_HEADS)}, not for {head}")
  first_rows = np.flatnonzero(rows["first"])
  return Passages(
    head=head or READING.head,
    starts=np.array(rows["start"], np.int32),
    ends=np.array(rows["end"], np.int32),
    offsets=rows["offsets"],
    first_rows=first_rows,
    items=[rows["item"][row] for row in first_rows],
  )
