"""From raw examples to token ids: the same code inside tf.data and outside it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from fsb_jax.encodings import encode_pairs
from fsb_jax.tasks.text_task import NO_LABEL
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class EncodePair:
  """Encodes `text`, or `text` and `text_pair`, as `input_ids` and `token_type_ids`.

  It is a SeqIO preprocessor (`__call__`) and a plain function over a list of examples (`encode_batch`).

  Attributes:
    vocabulary: the tokenizer.
    label_offset: added to every label; the place of the task's labels in the head of a mixture.
    sequence_length: set by SeqIO; `input_ids` is the longest row in tokens. None cuts nothing.
  """

  vocabulary: TokenizerVocabulary
  label_offset: int = 0
  sequence_length: Mapping[str, int] | None = None

  def encode_batch(self, examples: Sequence[Mapping], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Encodes a batch.

    Args:
      examples: raw examples with `id`, `text`, `label` and, all or none, `text_pair`.
      max_length: longest row in tokens, or None.

    Returns:
      `input_ids` and `token_type_ids`: an int32 array `[tokens]` per example; `label` and `id`: int32 `[batch]`.
    """
    texts = [example["text"] for example in examples]
    pairs = [example["text_pair"] for example in examples] if examples and "text_pair" in examples[0] else None
    encoded = encode_pairs(self.vocabulary.tokenizer, texts, pairs, max_length=max_length)
    label = np.array([example["label"] for example in examples], np.int32)
    label[label != NO_LABEL] += self.label_offset
    return {**encoded, "label": label, "id": np.array([example["id"] for example in examples], np.int32)}

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Encodes a dataset of raw examples; columns of other names are dropped."""
    max_length = (self.sequence_length or {}).get("input_ids")
    names = [name for name in ("id", "text", "text_pair", "label") if name in dataset.element_spec]

    def encode(*columns):
      # TensorFlow hands strings over as bytes.
      columns = [[v.decode() for v in column] if column.dtype == object else column.tolist() for column in columns]
      encoded = self.encode_batch([dict(zip(names, row)) for row in zip(*columns)], max_length)
      lengths = np.array([len(row) for row in encoded["input_ids"]], np.int64)
      flat = (np.concatenate(encoded[name]) for name in ("input_ids", "token_type_ids"))
      return (*flat, lengths, encoded["label"], encoded["id"])

    def encode_columns(batch):
      types = [tf.int32, tf.int32, tf.int64, tf.int32, tf.int32]
      outputs = tf.numpy_function(encode, [batch[name] for name in names], types)
      for output in outputs:
        output.set_shape([None])
      input_ids, token_type_ids, lengths, label, row_id = outputs
      return {
        "input_ids": tf.RaggedTensor.from_row_lengths(input_ids, lengths),
        "token_type_ids": tf.RaggedTensor.from_row_lengths(token_type_ids, lengths),
        "label": label,
        "id": row_id,
      }

    return dataset.batch(_BATCH).map(encode_columns).unbatch()
