"""What a UNet reads of a prompt: the states of a text encoder."""

import functools
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fsb_jax.partitioning import Partitioner
from fsb_jax.pretrained import require_readable

# Marks that NFKC leaves as they are.
_MARKS = str.maketrans("。、“”‘’「」『』【】《》〈〉—…·", ".,\"\"''\"\"\"\"[]<><>-.,")


def ascii_punctuation(text: str) -> str:
  """Chinese punctuation and full-width letters as ASCII ones; Chinese characters stay."""
  marks = "".join(unicodedata.normalize("NFKC", c) if "！" <= c <= "～" or c == "\u3000" else c for c in text)
  return marks.translate(_MARKS)


class PromptEncoder:
  """A text encoder and its tokenizer.

  Args:
    tokenizer: a fast tokenizer.
    model: the text encoder's module.
    params: its parameters.
    penultimate: read the states before the last layer, and the vector of the whole text where the encoder makes one, as
      SDXL does; else the last layer's alone.
    partitioner: whose mesh holds the parameters.
  """

  def __init__(self, tokenizer: Any, model: Any, params: Any, *, penultimate: bool, partitioner: Partitioner | None):
    require_readable(tokenizer, model)
    self._tokenizer, self._params = tokenizer, params
    self._rows = 1 if partitioner is None else partitioner.batch_multiple
    usable = getattr(model.config.positions, "usable_length", None)
    self.length = min(tokenizer.model_max_length, usable or tokenizer.model_max_length)

    def encode(params, ids):
      # No padding mask: the models were trained, and are published, to read padding as text.
      out = model.apply({"params": params}, ids, output_hidden_states=penultimate)
      if not penultimate:
        return out.last_hidden_state, None
      return out.hidden_states[-2], getattr(out, "text_embeds", None)

    self._encode = (jax.jit if partitioner is None else partitioner.jit)(encode)
    self.read = functools.lru_cache(maxsize=64)(self._read)

  def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """States `[prompts, length, embed]`, and vectors `[prompts, embed]` of the whole texts or None."""
    states, vectors = zip(*map(self.read, prompts))
    return np.stack(states), None if vectors[0] is None else np.stack(vectors)

  def _read(self, prompt: str) -> tuple[np.ndarray, np.ndarray | None]:
    arguments = dict(padding="max_length", max_length=self.length, truncation=True)
    ids = self._tokenizer(prompt, **arguments)["input_ids"]
    whole = self._tokenizer(prompt, verbose=False)["input_ids"]
    if len(whole) > self.length:
      cut = self._tokenizer.decode(whole[self.length - 1 : -1])
      warnings.warn(f"the prompt is longer than the {self.length} tokens that are read; cut off: {cut}", stacklevel=4)
    # One prompt a call (or as many as a mesh must have): few shapes to compile.
    states, vector = self._encode(self._params, np.repeat(np.asarray([ids], np.int32), self._rows, axis=0))
    return np.asarray(states[0], np.float32), None if vector is None else np.asarray(vector[0], np.float32)
