"""From raw examples to token ids: the same code inside tf.data and outside it."""

import abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from fsb_jax.encodings import encode_documents, encode_pairs
from fsb_jax.tasks.kinds import Kind
from fsb_jax.tasks.text_task import NO_LABEL
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

_BATCH = 1024
_NUMBER = {int: np.int32, float: np.float32}


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


@dataclasses.dataclass(frozen=True)
class EncodeKind(Encode):
  """Encodes the examples of a kind of tasks; see `fsb_jax.tasks.kinds`.

  Attributes:
    kind: the kind.
    label_names: of a tagging task all kinds of entities that the head knows.
    label_offset: where the task's own begin among them.
  """

  kind: Kind | None = None
  label_names: tuple[str, ...] = ()
  label_offset: int = 0

  @property
  def tokens(self) -> tuple[str, ...]:
    """See `Encode`."""
    return self.kind.tokens

  @property
  def numbers(self) -> tuple[str, ...]:
    """See `Encode`."""
    return tuple(self.kind.numbers)

  def encode_batch(self, examples: Sequence[Mapping], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Encodes a batch; returns the kind's `tokens` and `numbers`, one item for each encoded row."""
    if self.label_offset:
      examples = [
        {**each, "entity_labels": [self.label_offset + label for label in each["entity_labels"]]} for each in examples
      ]
    encoded = self.kind.encode(self.vocabulary.tokenizer, examples, self.label_names, max_length)
    numbers = {name: np.array(encoded[name], _NUMBER[form]) for name, form in self.kind.numbers.items()}
    return {name: encoded[name] for name in self.tokens} | numbers

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Encodes a dataset of raw examples, whose lists a graph of batches could not hold."""
    max_length = (self.sequence_length or {}).get("input_ids")

    def rows():
      examples = map(_as_python, dataset.as_numpy_iterator())
      while batch := list(itertools.islice(examples, _BATCH)):
        encoded = self.encode_batch(batch, max_length)
        for values in zip(*encoded.values()):
          yield dict(zip(encoded, values))

    signature = {name: tf.TensorSpec([None], tf.int32) for name in self.tokens}
    signature |= {name: tf.TensorSpec([], _NUMBER[form]) for name, form in self.kind.numbers.items()}
    return tf.data.Dataset.from_generator(rows, output_signature=signature)


def _as_python(example: Mapping) -> dict:
  """TensorFlow hands strings over as bytes, lists as arrays."""

  def plain(value):
    if isinstance(value, np.ndarray):
      return [plain(each) for each in value.tolist()]
    return value.decode() if isinstance(value, bytes) else value

  return {name: plain(value) for name, value in example.items()}
