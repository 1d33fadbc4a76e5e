"""What the encodings of Ubert and UniEX share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fsb_jax.errors import UserError

# Added to the score of what is no answer, whatever the model says.
NEVER = -10000


def field(of: Mapping, name: str, what: str) -> Any:
  """A field of an item; UserError where it lacks it."""
  if name not in of:
    raise UserError(f"{what} has no {name!r}, only {', '.join(map(repr, of)) or 'nothing'}; add it.")
  return of[name]


def token_ids(tokenizer, text: str) -> list[int]:
  """A text's ids without special tokens around it."""
  return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def token_offsets(tokenizer, text: str) -> list[tuple[int, int]]:
  """(first character, the one behind the last) of every token of a text."""
  encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
  return encoded["offset_mapping"]


def probability(logits: np.ndarray) -> np.ndarray:
  """The logistic function, in float64, of scores of any size."""
  return (1 + np.tanh(np.asarray(logits, np.float64) / 2)) / 2
