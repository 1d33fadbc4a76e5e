"""Named entities of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import encodings, models
from fsb_jax.encodings import TAGGERS
from fsb_jax.errors import UserError
from fsb_jax.pipelines.batches import batches, row_length
from fsb_jax.pretrained import from_pretrained, require_tokenizer


class TokenClassification:
  """Answers with the entities that stand in a text; one too long for the model is read in windows that overlap.

  Args:
    model: a training run's folder, a converted folder, or a Hub folder or id with a linear, CRF, span or biaffine
      tagging head.
    max_length: longest window in tokens; 512, or the model's own limit where that is less, if not given.
    batch_size: windows at a time.
    **options: of `from_pretrained`, such as dtype= or mesh=.
  """

  def __init__(self, model: str | Path, *, max_length: int | None = None, batch_size: int = 32, **options: Any):
    if not isinstance(batch_size, int) or batch_size < 1:
      raise UserError(f"batch_size {batch_size} must be at least 1")
    loaded = from_pretrained(model, **options)
    head, names = loaded.metadata.head, loaded.metadata.label_names
    if head not in TAGGERS:
      raise UserError(f"{model} has a {head} head, not one that finds entities; train one first")
    if names is None or TAGGERS[head].nothing not in names:
      raise UserError(
        f"{model} does not say what its labels are: id2label of its config.json must hold "
        f"{', '.join(TAGGERS[head].names(['PER'])[3:])} and so on"
      )
    self.tokenizer, self.label_names = require_tokenizer(loaded, model), names
    if head == "crf" and self.tokenizer.padding_side == "left":
      raise UserError(
        f"the crf head of {model} reads rows from their first token, where its tokenizer pads; set padding_side to "
        "right in its tokenizer_config.json"
      )
    self._tagger, self._params, self._batch_size = TAGGERS[head], loaded.params, batch_size
    self._max_length = row_length(loaded.config, max_length, 512)
    label_mask = self._tagger.label_mask(names)
    inputs = models.input_names(loaded.model)

    def said(params, batch):
      output = loaded.model.apply({"params": params}, **{name: batch[name] for name in inputs if name in batch})
      mask = np.tile(label_mask, (len(batch["input_ids"]), 1))
      return models.said_by_tagger(output, batch["attention_mask"], mask, encodings.MAX_WIDTH)

    self._said = jax.jit(said)

  def __call__(self, texts: str | Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
    """{"entities": [...]} for a text, or a list of them for several; of each `label`, `start`, `end` and `text`.

    `text` is the text from character `start` to before `end`.
    """
    if isinstance(texts, str):
      return self([texts])[0]
    windows = encodings.encode_character_windows(self.tokenizer, texts, max_length=self._max_length)
    found = {}
    for rows, batch in batches(self.tokenizer, windows, self._batch_size, self._max_length):
      said = {name: np.asarray(values) for name, values in self._said(self._params, batch).items()}
      for i, row in enumerate(rows):
        kept = batch["attention_mask"][i] > 0
        of_row = {name: values[i][kept] for name, values in said.items()}
        found[row] = self._tagger.entities(of_row, windows["offsets"][row], self.label_names)
    by_row = [found[row] for row in range(len(found))]
    whole = encodings.entities_of_windows(by_row, windows["example"], windows["own"], len(texts))
    return [
      {"entities": [{**entity._asdict(), "text": text[entity.start : entity.end]} for entity in entities]}
      for text, entities in zip(texts, whole)
    ]
