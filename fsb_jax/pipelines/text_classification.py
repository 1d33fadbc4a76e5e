"""Classes of texts or pairs of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import encodings
from fsb_jax.errors import UserError
from fsb_jax.pipelines.batches import padded, row_length
from fsb_jax.pretrained import from_pretrained, require_tokenizer

_PAIR = "[SEP]"


class TextClassification:
  """Answers with a label and its probability.

  Args:
    model: a training run's folder, a converted folder, or a Hub folder or id with a sequence classification head whose
      labels exclude each other.
    max_length: longest text in tokens; the model's own limit if not given.
    batch_size: texts at a time.
    **options: of `from_pretrained`, such as dtype= or mesh=.
  """

  def __init__(self, model: str | Path, *, max_length: int | None = None, batch_size: int = 32, **options: Any):
    if not isinstance(batch_size, int) or batch_size < 1:
      raise UserError(f"batch_size {batch_size} must be at least 1")
    loaded = from_pretrained(model, **options)
    if loaded.metadata.head != "sequence_classification":
      raise UserError(f"{model} has a {loaded.metadata.head} head, not one that classifies texts; train one first")
    problem = loaded.hf_config.get("problem_type")
    if loaded.metadata.num_labels == 1 or problem not in (None, "single_label_classification"):
      raise UserError(
        f"{model} does not answer with one of several labels (num_labels={loaded.metadata.num_labels}, "
        f"problem_type={problem!r} in config.json); take its logits from fsb_jax.from_pretrained"
      )
    self.tokenizer = require_tokenizer(loaded, model)
    self.label_names = loaded.metadata.label_names or tuple(f"LABEL_{i}" for i in range(loaded.metadata.num_labels))
    self._params = loaded.params
    self._max_length = row_length(loaded.config, max_length)
    self._batch_size = batch_size

    def scores(params, input_ids, attention_mask, token_type_ids):
      logits = loaded.model.apply({"params": params}, input_ids, attention_mask, token_type_ids).logits
      return jax.nn.softmax(logits.astype(np.float32), axis=-1)

    self._scores = jax.jit(scores)

  def __call__(self, texts: str | Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
    """{"label", "score"} for a text, or a list of them for several; "one[SEP]two" is a pair."""
    if isinstance(texts, str):
      return self([texts])[0]
    answers = []
    for first in range(0, len(texts), self._batch_size):
      answers += self._answer(texts[first : first + self._batch_size])
    return answers

  def _answer(self, texts: Sequence[str]) -> list[dict[str, Any]]:
    parts = [text.split(_PAIR, 1) for text in texts]
    if len({len(part) for part in parts}) > 1:
      raise UserError(f"some texts are pairs ({_PAIR}) and some are not; ask for them separately")
    seconds = [part[1] for part in parts] if len(parts[0]) == 2 else None
    encoded = encodings.encode_pairs(self.tokenizer, [part[0] for part in parts], seconds, max_length=self._max_length)
    batch = padded(self.tokenizer, encoded, range(len(texts)), self._max_length)
    scores = np.asarray(self._scores(self._params, **batch))[: len(texts)]
    return [{"label": self.label_names[int(row.argmax())], "score": float(row.max())} for row in scores]
