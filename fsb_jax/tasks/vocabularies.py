"""A checkpoint's own tokenizer as a SeqIO vocabulary."""

import functools
import hashlib
import json

import numpy as np
import seqio
import tensorflow as tf


class TokenizerVocabulary(seqio.Vocabulary):
  """Wraps a transformers fast tokenizer.

  Encoding adds no special tokens; decoding leaves them out. `bos_id`, `eos_id` and `unk_id` are None where the
  tokenizer has none (BERT's has no end of sequence, so `add_eos` must be False).

  Attributes:
    tokenizer: the wrapped tokenizer.
  """

  def __init__(self, tokenizer):
    super().__init__()
    self.tokenizer = tokenizer

  @property
  def bos_id(self) -> int | None:
    """Id of the token that begins a sequence."""
    return self.tokenizer.bos_token_id

  @property
  def eos_id(self) -> int | None:
    """Id of the token that ends a sequence."""
    return self.tokenizer.eos_token_id

  @property
  def pad_id(self) -> int:
    """Id of the padding; 0 where the tokenizer has none."""
    pad = self.tokenizer.pad_token_id
    return super().pad_id if pad is None else pad

  @property
  def unk_id(self) -> int | None:
    """Id of the token that stands for unknown text."""
    return self.tokenizer.unk_token_id

  @property
  def _base_vocab_size(self) -> int:
    return len(self.tokenizer)

  def _encode(self, s: str) -> list[int]:
    return self.tokenizer.encode(s, add_special_tokens=False)

  def _decode(self, ids) -> str:
    return self.tokenizer.decode(ids, skip_special_tokens=True)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text):
      # Bytes inside a graph, an array of one object outside.
      return np.array(self._encode(np.asarray(text, object).item().decode()), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows):
      texts = [self._decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
      return np.array(texts, object).reshape(rows.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string)
    texts.set_shape(ids.shape[:-1])
    return texts

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of what the tokenizer does; vocabularies with the same one are equal."""
    content = json.loads(self.tokenizer.backend_tokenizer.to_str())
    # These two are what the last call asked for, not what the tokenizer is.
    content.pop("truncation", None)
    content.pop("padding", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

  def __eq__(self, other) -> bool:
    if not isinstance(other, TokenizerVocabulary):
      return False
    return self.tokenizer is other.tokenizer or self.fingerprint == other.fingerprint

  def __hash__(self) -> int:
    return hash(self.fingerprint)

  def __repr__(self) -> str:
    return f"TokenizerVocabulary({type(self.tokenizer).__name__}, {len(self.tokenizer)} tokens)"
