"""What a tokenizer puts around a text or two, and the room that it leaves for them."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.errors import UserError


class Part(NamedTuple):
  """A part of a row: the tokens of a text (`text` is its number), or special tokens (`text` is None)."""

  text: int | None
  ids: np.ndarray
  types: np.ndarray


class Frame:
  """The template of a tokenizer's rows, found out instead of asked for: every tokenizer has its own.

  Attributes:
    special_tokens: how many a row has.
  """

  def __init__(self, tokenizer, pairs: bool):
    with borrowed_backend(tokenizer) as backend:
      encoding = backend.encode(*("一", "一")[: 1 + pairs])
    ids, types = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
    groups = itertools.groupby(range(len(ids)), encoding.sequence_ids.__getitem__)
    self._parts = [Part(text, ids[places], types[places]) for text, each in groups for places in [list(each)]]
    self.special_tokens = sum(len(part.ids) for part in self._parts if part.text is None)

  def room(self, max_length: int | None) -> int | None:
    """Tokens of text in a row of `max_length`, None for no limit; UserError where it is none."""
    require_room(max_length, self.special_tokens)
    return None if max_length is None else max_length - self.special_tokens

  def ids(self, texts: Sequence[np.ndarray]) -> np.ndarray:
    """A row of these texts: int32 `[tokens]`."""
    return np.concatenate([part.ids if part.text is None else texts[part.text] for part in self._parts])

  def types(self, texts: Sequence[np.ndarray]) -> np.ndarray:
    """The row's token types: int32 `[tokens]`."""
    return np.concatenate(
      [part.types if part.text is None else np.full(len(texts[part.text]), part.types[0]) for part in self._parts]
    )

  def filled(self, values: np.ndarray, special: int) -> np.ndarray:
    """A row of a single text's `values`, with `special` at special tokens."""
    return np.concatenate([np.full(len(part.ids), special) if part.text is None else values for part in self._parts])


def require_room(max_length: int | None, special_tokens: int) -> None:
  """UserError where `max_length` leaves no room for text beside the special tokens; None is no limit."""
  if max_length is not None and max_length <= special_tokens:
    raise UserError(
      f"max_length {max_length} leaves no room for text beside {special_tokens} special tokens; raise it."
    )
