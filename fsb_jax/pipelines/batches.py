"""Rows of tokens as batches of few shapes, so that few are compiled."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fsb_jax.errors import UserError

_LENGTH_MULTIPLE = 16


def row_length(config, max_length: int | None, most: int | None = None) -> int:
  """Longest row in tokens.

  Args:
    config: the model's `TransformerConfig`.
    max_length: what was asked for; None for what the model has positions for.
    most: of these no more than so many.

  Raises:
    UserError: the model has no positions for as many as were asked for.
  """
  usable = getattr(config.positions, "usable_length", None)
  if max_length is None:
    return min(usable or 512, most or usable or 512)
  if usable is not None and max_length > usable:
    raise UserError(f"max_length={max_length} is more tokens than the model has positions for; give {usable} at most")
  return max_length


def padded(
  tokenizer, encoded: Mapping[str, Sequence[np.ndarray]], rows: Sequence[int], max_length: int
) -> dict[str, np.ndarray]:
  """Some rows as a batch.

  Args:
    tokenizer: says what padding is, and on which side it stands.
    encoded: `input_ids` and `token_type_ids` of every row, int32 `[tokens]`.
    rows: which ones.
    max_length: lengths are not rounded up beyond it.

  Returns:
    `input_ids`, `token_type_ids` and `attention_mask`, int32 `[batch, length]`: the length a multiple of 16, and as
    many rows as the next power of two, those at the end copies of the first, for attention over padding alone has no
    answer.
  """
  longest = max(len(encoded["input_ids"][row]) for row in rows)
  length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, max(max_length, longest))
  filled = [*rows, *[rows[0]] * ((1 << (len(rows) - 1).bit_length()) - len(rows))]
  names = ("input_ids", "token_type_ids", "attention_mask")
  batch = {name: np.zeros((len(filled), length), np.int32) for name in names}
  batch["input_ids"][:] = tokenizer.pad_token_id or 0
  batch["token_type_ids"][:] = tokenizer.pad_token_type_id
  for i, row in enumerate(filled):
    tokens = len(encoded["input_ids"][row])
    place = slice(length - tokens, None) if tokenizer.padding_side == "left" else slice(tokens)
    batch["attention_mask"][i, place] = 1
    for name in names[:2]:
      batch[name][i, place] = encoded[name][row]
  return batch


def batches(
  tokenizer, encoded: Mapping[str, Sequence[np.ndarray]], batch_size: int, max_length: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
  """All rows in batches of at most `batch_size`, those of one length together: which ones, and `padded` of them."""
  order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable").tolist()
  for first in range(0, len(order), batch_size):
    rows = order[first : first + batch_size]
    yield rows, padded(tokenizer, encoded, rows, max_length)
