"""Questions about passages, answered with a span of the passage."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import encodings, models
from fsb_jax.errors import UserError
from fsb_jax.pipelines.batches import batches, row_length
from fsb_jax.pipelines.lines import json_items
from fsb_jax.pretrained import from_pretrained, require_tokenizer


class QuestionAnswering:
  """Answers with the span of a passage that is likeliest, over all windows that hold the passage between them.

  Args:
    model: a training run's folder, a converted folder, or a Hub folder or id with a question answering head.
    max_length: longest window in tokens; 512, or the model's own limit where that is less, if not given.
    batch_size: windows at a time.
    count: how many answers an item gets, 20 at most; of several all stand in `best`.
    may_have_none: whether a passage may not hold the answer, which is "" then; for models that were trained on such.
    **options: of `from_pretrained`, such as dtype= or mesh=.
  """

  def __init__(
    self, model: str | Path, *, max_length: int | None = None, batch_size: int = 32, count: int = 1,
    may_have_none: bool = False, **options: Any,
  ):  # fmt: skip
    for name, value in (("batch_size", batch_size), ("count", count)):
      if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} {value} must be at least 1")
    loaded = from_pretrained(model, **options)
    if loaded.metadata.head not in encodings.SPAN_HEADS:
      raise UserError(f"{model} has a {loaded.metadata.head} head, not one that answers questions; train one first")
    self.tokenizer = require_tokenizer(loaded, model)
    self._params, self._batch_size, self._count, self._may_have_none = loaded.params, batch_size, count, may_have_none
    self._max_length = row_length(loaded.config, max_length, 512)
    self._inputs = models.input_names(loaded.model)

    def logits(params, inputs):
      outputs = loaded.model.apply({"params": params}, **inputs)
      return outputs.start_logits, outputs.end_logits

    self._logits = jax.jit(logits)

  def __call__(self, items: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    """The answer to an item, or a list of them for several.

    Args:
      items: dicts with `question` and `context`, the passage; other fields are not read.

    Returns:
      For each item `answer`, which is `context[start:end]`, `start`, `end`, and `score`, how likely it is among the 20
      best; where several are asked for also `best`, a list of such dicts with the best first.

    Raises:
      UserError: an item lacks a field, or is of another form.
    """
    if isinstance(items, Mapping):
      return self([items])[0]
    _require_items(items)
    if not items:
      return []
    windows = encodings.encode_windows(
      self.tokenizer, [item["question"] for item in items], [item["context"] for item in items],
      max_length=self._max_length, stride=encodings.WINDOW_STRIDE,
    )  # fmt: skip
    scores: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for rows, batch in batches(self.tokenizer, windows, self._batch_size, self._max_length):
      found = self._logits(self._params, {name: batch[name] for name in self._inputs if name in batch})
      starts, ends = map(np.asarray, found)
      for i, row in enumerate(rows):
        real = batch["attention_mask"][i] > 0
        scores[row] = starts[i, real], ends[i, real]
    own: list[list[int]] = [[] for _ in items]
    for row, number in enumerate(windows["example"]):
      own[number].append(row)
    return [self._answer(item["context"], rows, scores, windows) for item, rows in zip(items, own)]

  def _answer(self, passage: str, rows: list[int], scores: Mapping, windows: Mapping) -> dict[str, Any]:
    answers = encodings.rated_answers(
      *zip(*(scores[row] for row in rows)), [windows["offsets"][row] for row in rows], passage,
      may_have_none=self._may_have_none,
    )  # fmt: skip
    best = [
      {"answer": answer.text, "start": answer.start, "end": answer.end, "score": answer.score}
      for answer in answers[: self._count]
    ]
    return {**best[0], "best": best} if self._count > 1 else best[0]

  @staticmethod
  def items(texts: Sequence[str], lines: Iterable[str], choice: Sequence[str], question: str) -> list[dict[str, Any]]:
    """Items of the command line.

    Args:
      texts: passages.
      lines: items as JSON, one a line; blank ones are passed over.
      choice: must be empty.
      question: what is asked about `texts`.

    Raises:
      UserError: choices, passages without a question, a line that is no item.
    """
    if choice:
      raise UserError("--choice is for zero_shot, not for question_answering")
    if texts and not question:
      raise UserError("question_answering needs a question: give --question for the passage in --text")
    items = [{"question": question, "context": text} for text in texts] + json_items(lines)
    _require_items(items)
    return items


def _require_items(items: Sequence[Any]) -> None:
  for number, item in enumerate(items):
    if not isinstance(item, Mapping) or not all(isinstance(item.get(name), str) for name in ("question", "context")):
      raise UserError(f"item {number} is {item!r}; give a dict with question and context, both text")
