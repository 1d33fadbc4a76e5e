"""Any question with options, answered by UniMC without training on it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import encodings, models
from fsb_jax.errors import UserError
from fsb_jax.pipelines.batches import row_length
from fsb_jax.pipelines.lines import json_items
from fsb_jax.pretrained import from_pretrained, require_tokenizer

_PAIR = "[SEP]"
_LENGTH_MULTIPLE = 32


class ZeroShot:
  """Answers with one of an item's options and the probability of each.

  Args:
    model: a Hub folder or id of a UniMC model (any masked language model is one in form), a converted folder, or the
      folder of a training run with VIEW="unimc".
    max_length: longest row in tokens; 512, or the model's own limit where that is less, if not given.
    batch_size: items at a time.
    language: of the words that mean yes and no, one of `encodings.unimc.ANSWERS`.
    **options: of `from_pretrained`, such as dtype= or mesh=.
  """

  def __init__(
    self, model: str | Path, *, max_length: int | None = None, batch_size: int = 32, language: str = "chinese",
    **options: Any,
  ):  # fmt: skip
    if batch_size < 1:
      raise UserError(f"batch_size {batch_size} must be at least 1")
    loaded = from_pretrained(model, head="masked_lm", **options)
    fresh = [path for path in loaded.newly_initialised if path.startswith("head/")]
    if fresh:
      raise UserError(f"{model} has no masked language model's head ({fresh[0]} is missing); name a UniMC model")
    self.tokenizer = require_tokenizer(loaded, model)
    self._params, self._language, self._batch_size = loaded.params, language, batch_size
    self._max_length = row_length(loaded.config, max_length, 512)
    self._inputs = models.input_names(loaded.model)

    def probabilities(params, inputs, option_mask, yes_token):
      logits = loaded.model.apply({"params": params}, **inputs).logits
      return models.option_probabilities(logits, option_mask, yes_token)

    self._probabilities = jax.jit(probabilities)

  def __call__(self, items: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    """The answer to an item, or a list of them for several; no item is changed.

    Args:
      items: dicts with `texta`, `choice` (the options), and if wanted `textb`, `question` and `task_type`, see
        `encodings.encode_unimc`. Other fields, a `label` among them, are not read.

    Returns:
      For each item `label` (which option), `answer` (its text) and `score` (the probability of each option).
      An option that is given twice has the sum of both.

    Raises:
      UserError: an item lacks a field, or its options do not fit.
    """
    if isinstance(items, Mapping):
      return self([items])[0]
    items = [_asked(item, number) for number, item in enumerate(items)]
    if not items:
      return []
    encoded = encodings.encode_unimc(
      self.tokenizer, items, max_length=self._max_length, language=self._language
    )
    # Rows of one length together.
    order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")
    answers: dict[int, dict[str, Any]] = {}
    for first in range(0, len(order), self._batch_size):
      rows = order[first : first + self._batch_size].tolist()
      answers |= zip(rows, self._answers([items[row] for row in rows], encoded, rows))
    return [answers[number] for number in range(len(items))]

  def _answers(self, items: list[dict], encoded: Mapping[str, list], rows: list[int]) -> list[dict[str, Any]]:
    # Few shapes, few compilations. Rows are filled up with copies, for attention over padding alone has no answer.
    filled = rows + rows[:1] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
    part = {name: [values[row] for row in filled] for name, values in encoded.items()}
    longest = max(map(len, part["input_ids"]))
    length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self._max_length)
    batch = encodings.batch_unimc(part, pad_id=self.tokenizer.pad_token_id or 0, length=length)
    options = max(len(item["choice"]) for item in items)
    batch = encodings.only_asked_unimc(batch, min(1 << (options - 1).bit_length(), length))
    inputs = {name: batch[name] for name in self._inputs if name in batch}
    found = np.asarray(self._probabilities(self._params, inputs, batch["option_mask"], batch["yes_token"]))[: len(rows)]
    return [_as_the_original(item, answer) for item, answer in zip(items, encodings.answers_unimc(items, found))]

  @staticmethod
  def items(texts: Sequence[str], lines: Iterable[str], choice: Sequence[str], question: str) -> list[dict[str, Any]]:
    """Items of the command line.

    Args:
      texts: what to ask about; "one[SEP]two" is a pair.
      lines: items as JSON, one a line; blank ones are passed over.
      choice: the options, for `texts`.
      question: what is asked about `texts`.

    Raises:
      UserError: texts without options, a line that is no item.
    """
    if texts and len(choice) < 2:
      raise UserError("zero_shot chooses between options: give --choice several times for the --text")
    items = []
    for text in texts:
      first, _, second = text.partition(_PAIR)
      items.append({"texta": first, "textb": second, "question": question, "choice": list(choice)})
    items += json_items(lines)
    encodings.require_unimc([_asked(item, number) for number, item in enumerate(items)])
    return items


def _asked(item: Any, number: int) -> dict[str, Any]:
  """The item without what is not asked: the right answer need not be there, nor be one."""
  if not isinstance(item, Mapping):
    raise UserError(f"item {number} is {item!r}; give a dict with texta and choice")
  return {name: value for name, value in item.items() if name != "label"}


def _as_the_original(item: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
  score: dict[str, float] = {}
  for option, probability in zip(item["choice"], answer["scores"]):
    score[option] = score.get(option, 0.0) + probability
  return {"label": answer["label"], "answer": answer["answer"], "score": score}
