"""What a decoder reads of the text that it is to write."""

import numpy as np

from fsb_jax.encodings.masking import IGNORED


def shift_right(labels: np.ndarray, start_token_id: int, pad_token_id: int) -> np.ndarray:
  """A decoder's inputs: the text one token late, so that each position is asked for a token that it has not seen.

  Args:
    labels: int `[..., length]`, the text; -100 where nothing is asked for.
    start_token_id: what comes before the first token.
    pad_token_id: what is read in the place of -100.

  Returns:
    int `[..., length]`; the last token is not read.
  """
  labels = np.asarray(labels)
  shifted = np.concatenate([np.full_like(labels[..., :1], start_token_id), labels[..., :-1]], axis=-1)
  return np.where(shifted == IGNORED, pad_token_id, shifted).astype(labels.dtype)
