"""Single texts and pairs of texts as token ids, batched."""

from collections.abc import Sequence

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
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
  if max_length is not None and max_length <= special_tokens:
    raise UserError(
      f"max_length {max_length} leaves no room for text beside {special_tokens} special tokens; raise it."
    )
  inputs = list(zip(texts, second_texts)) if pairs else list(texts)
  input_ids, token_type_ids = [], []
  cut = {"strategy": "longest_first", "direction": tokenizer.truncation_side}
  with borrowed_backend(tokenizer, max_length, **cut) as backend:
    for start in range(0, len(inputs), _ROWS_PER_CALL):
      for encoding in backend.encode_batch(inputs[start : start + _ROWS_PER_CALL]):
        input_ids.append(np.array(encoding.ids, np.int32))
        token_type_ids.append(np.array(encoding.type_ids, np.int32))
  return {"input_ids": input_ids, "token_type_ids": token_type_ids}
