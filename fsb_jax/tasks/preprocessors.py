"""From raw examples to token ids: the same code inside tf.data and outside it."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from fsb_jax.encodings import encode_documents, encode_pairs
from fsb_jax.tasks.text_task import NO_LABEL
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Encode(abc.ABC):
  """A SeqIO preprocessor (`__call__`) that is a plain function over a list of examples too (`encode_batch`).

  Attributes:
    vocabulary: the tokenizer.
    sequence_length: set by SeqIO; `input_ids` is the longest row in tokens. None cuts nothing.
  """

  vocabulary: TokenizerVocabulary
  sequence_length: Mapping[str, int] | None = None

  # What `encode_batch` gives: per row an int32 array `[tokens]`, or one int32 number.
  tokens = ()
  numbers = ()

  @abc.abstractmethod
  def encode_batch(self, examples: Sequence[Mapping], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Encodes a batch of raw examples, in rows of at most `max_length` tokens; None cuts nothing."""

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Encodes a dataset of raw examples; columns of other names are dropped."""
    max_length = (self.sequence_length or {}).get("input_ids")
    names = [name for name in ("id", "text", "text_pair", "label") if name in dataset.element_spec]

    def encode(*columns):
      # TensorFlow hands strings over as bytes.
      columns = [[v.decode() for v in column] if column.dtype == object else column.tolist() for column in columns]
      encoded = self.encode_batch([dict(zip(names, row)) for row in zip(*columns)], max_length)
      lengths = np.array([len(row) for row in encoded["input_ids"]], np.int64)
      flat = [np.concatenate([*encoded[name], np.array([], np.int32)]) for name in self.tokens]
      return (lengths, *flat, *(encoded[name] for name in self.numbers))

    def encode_columns(batch):
      given = (*self.tokens, *self.numbers)
      lengths, *outputs = tf.numpy_function(
        encode, [batch[name] for name in names], [tf.int64, *(tf.int32 for _ in given)]
      )
      for output in (lengths, *outputs):
        output.set_shape([None])
      outputs = dict(zip(given, outputs))
      return outputs | {name: tf.RaggedTensor.from_row_lengths(outputs[name], lengths) for name in self.tokens}

    return dataset.batch(_BATCH).map(encode_columns).unbatch()


@dataclasses.dataclass(frozen=True)
class EncodePair(Encode):
  """Encodes `text`, or `text` and `text_pair`, and hands `label` on.

  Attributes:
    label_offset: added to every label; the place of the task's labels in the head of a mixture.
  """

  label_offset: int = 0

  tokens = ("input_ids", "token_type_ids")
  numbers = ("label", "id")

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


@dataclasses.dataclass(frozen=True)
class EncodeDocument(Encode):
  """Encodes each document's `text` as one row or more; see `fsb_jax.encodings.encode_documents`.

  Attributes:
    whole_words: whether `word_ids` counts words, or every token.
  """

  whole_words: bool = True

  tokens = ("input_ids", "token_type_ids", "word_ids")

  def encode_batch(self, examples: Sequence[Mapping], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Encodes a batch.

    Args:
      examples: raw examples with `text`.
      max_length: longest row in tokens, or None.

    Returns:
      `input_ids`, `token_type_ids`, `word_ids`: an int32 array `[tokens]` per row.
    """
    texts = [example["text"] for example in examples]
    return encode_documents(
      self.vocabulary.tokenizer, texts, max_length=max_length, whole_words=self.whole_words
    )
