"""Single texts and pairs of texts as token ids, batched."""

from collections.abc import Sequence

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.encodings.framing import Frame, require_room
from fsb_jax.errors import UserError

_ROWS_PER_CALL = 8192  # bounds the memory of the tokenizer's own result objects


def encode_pairs(
  tokenizer, texts: Sequence[str], second_texts: Sequence[str] | None = None, *, max_length: int | None
) -> dict[str, list[np.ndarray]]:
  """Encodes texts, or pairs of texts, without padding.

  The special tokens are the tokenizer's own: `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]` for BERT. A row longer than
  `max_length` is cut token by token from the end of its longer text, as transformers' `longest_first` does.

  Args:
    tokenizer: a transformers fast tokenizer; the Rust tokenizer under it encodes the whole batch in parallel.
    texts: the first texts.
    second_texts: as many second texts, or None.
    max_length: longest row in tokens, special tokens included; None cuts nothing.

  Returns:
    `input_ids` and `token_type_ids`: one int32 array of shape `[tokens]` per row.

  Raises:
    UserError: `max_length` leaves no room for text, or the two lists differ in length.
  """
  pairs = second_texts is not None
  if pairs and len(texts) != len(second_texts):
    raise UserError(f"{len(texts)} texts and {len(second_texts)} second texts do not make pairs.")
  special_tokens = tokenizer.backend_tokenizer.num_special_tokens_to_add(pairs)
  require_room(max_length, special_tokens)
  inputs = list(zip(texts, second_texts)) if pairs else list(texts)
  input_ids, token_type_ids = [], []
  cut = {"strategy": "longest_first", "direction": tokenizer.truncation_side}
  with borrowed_backend(tokenizer, max_length, **cut) as backend:
    for start in range(0, len(inputs), _ROWS_PER_CALL):
      for encoding in backend.encode_batch(inputs[start : start + _ROWS_PER_CALL]):
        input_ids.append(np.array(encoding.ids, np.int32))
        token_type_ids.append(np.array(encoding.type_ids, np.int32))
  return {"input_ids": input_ids, "token_type_ids": token_type_ids}


def encode_bare(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
  """Each text's token ids without special tokens, uncut: int32 `[tokens]`; see `cut_pairs`."""
  rows = []
  with borrowed_backend(tokenizer) as backend:
    for start in range(0, len(texts), _ROWS_PER_CALL):
      chunk = list(texts[start : start + _ROWS_PER_CALL])
      rows += [np.array(each.ids, np.int32) for each in backend.encode_batch(chunk, add_special_tokens=False)]
  return rows


def cut_pairs(
  tokenizer, texts: Sequence[np.ndarray], second_texts: Sequence[np.ndarray] | None = None, *, max_length: int | None
) -> dict[str, list[np.ndarray]]:
  """The rows of `encode_pairs`, from texts that `encode_bare` made once for rows of any length.

  Args:
    tokenizer: the tokenizer that made them.
    texts: the first texts, int32 `[tokens]` each.
    second_texts: as many second texts, or None.
    max_length: longest row in tokens, special tokens included; None cuts nothing.

  Returns:
    See `encode_pairs`.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  frame = Frame(tokenizer, pairs=second_texts is not None)
  room = frame.room(max_length)
  from_left = tokenizer.truncation_side == "left"
  rows = {"input_ids": [], "token_type_ids": []}
  for row in zip(texts, second_texts) if second_texts is not None else zip(texts):
    lengths = [len(each) for each in row]
    if room is not None and sum(lengths) > room:
      kept = _longest_first(lengths, room)
      row = [each[len(each) - count :] if from_left else each[:count] for each, count in zip(row, kept)]
    rows["input_ids"].append(frame.ids(row))
    rows["token_type_ids"].append(frame.types(row))
  return rows


def _longest_first(lengths: Sequence[int], room: int) -> list[int]:
  """How many tokens of one text or two are kept, of the longer one fewer, as the `tokenizers` library counts them."""
  if len(lengths) == 1:
    return [room]
  shorter, longer = sorted(lengths)
  longer = max(shorter, room - shorter)
  if shorter + longer > room:
    shorter, longer = room // 2, room - room // 2
  return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]
