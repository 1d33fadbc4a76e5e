"""Prompts as arrays of few shapes: checked, moved to the right end of their rows, and filled up at the left."""

import dataclasses
from typing import Any

import numpy as np

from fsb_jax.errors import UserError

# Lengths grow in these steps, so that a handful of compiled functions serve all.
_STEPS = (16, 32, 64, 128, 192, 256, 320, 384, 448, 512)
_LONG_STEP = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """Prompts ready to be read.

  Attributes:
    given: int `[rows, length]` as the caller gave them.
    tokens: int `[rows, filled]`, each row's real tokens at its right end.
    mask: bool `[rows, filled]`, which are real.
  """

  given: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray

  @property
  def first(self) -> int:
    """Index in `tokens` of the column where the caller's text begins."""
    return self.tokens.shape[1] - self.given.shape[1]


def rounded_up(length: int) -> int:
  """The least length of those in use that is no less."""
  return next((step for step in _STEPS if step >= length), -(-length // _LONG_STEP) * _LONG_STEP)


def read_prompts(input_ids: Any, attention_mask: Any, vocab_size: int, padding: int, what: str = "input_ids") -> tuple[
  np.ndarray, np.ndarray
]:
  """A caller's ids and mask as arrays; UserError where they cannot be.

  Args:
    input_ids: int `[rows, length]`, a list of lists as long as each other, or one text's `[length]`.
    attention_mask: 1 for real tokens, on either side; None for all.
    vocab_size: how many ids there are.
    padding: the id that stands where the mask is 0, whatever the caller put there.
    what: the name of the argument.
  """
  try:
    ids = np.asarray(input_ids)
  except ValueError:
    raise UserError(f"the rows of {what} differ in length; fill them up and pass attention_mask") from None
  if ids.dtype == object or ids.size and not np.issubdtype(ids.dtype, np.integer):
    raise UserError(f"{what} must be token ids in rows of one length; fill them up and pass attention_mask")
  ids = ids[None] if ids.ndim == 1 else ids
  if ids.ndim != 2:
    raise UserError(f"{what} has shape {ids.shape}; give [rows, length]")
  mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
  mask = mask[None] if mask.ndim == 1 else mask
  if mask.shape != ids.shape:
    raise UserError(f"attention_mask has shape {mask.shape}, {what} {ids.shape}; they must be the same")
  if not ids.size or not mask.any(axis=1).all():
    raise UserError("a prompt is empty: it holds no real token; give each at least one, such as the start token")
  wrong = mask & ((ids < 0) | (ids >= vocab_size))
  if wrong.any():
    row, place = np.argwhere(wrong)[0]
    raise UserError(
      f"{what}[{row}, {place}] is {ids[row, place]}, but the model knows ids from 0 to {vocab_size - 1} only: do "
      "tokenizer and model belong together?"
    )
  return np.where(mask, ids, padding).astype(np.int32), mask


def left_filled(ids: np.ndarray, mask: np.ndarray, length: int, padding: int) -> Prompts:
  """Prompts in rows of `length`, padding that a caller put at the right moved to the left."""
  tokens, real = np.full((len(ids), length), padding, np.int32), np.zeros((len(ids), length), bool)
  for row in range(len(ids)):
    end = np.flatnonzero(mask[row])[-1] + 1
    tokens[row, length - end :], real[row, length - end :] = ids[row, :end], mask[row, :end]
  return Prompts(given=ids, tokens=tokens, mask=real)


def right_filled(ids: np.ndarray, mask: np.ndarray, length: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of `length`, filled up at the right: what an encoder reads."""
  missing = ((0, 0), (0, length - ids.shape[1]))
  return np.pad(ids, missing, constant_values=padding), np.pad(mask, missing)
