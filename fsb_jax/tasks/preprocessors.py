"""From raw examples to token ids: the same code inside tf.data and outside it."""

import abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from fsb_jax.encodings import cut_documents, cut_pairs, encode_bare, number_words
from fsb_jax.tasks.kinds import Kind
from fsb_jax.tasks.text_task import NO_LABEL
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

_BATCH = 1024
_NUMBER = {int: np.int32, float: np.float32}


@dataclasses.dataclass(frozen=True)
class Step(abc.ABC):
  """A SeqIO preprocessor (`__call__`) that is a plain function over columns too (`apply`).

  Attributes:
    vocabulary: the tokenizer.
    sequence_length: set by SeqIO; `input_ids` is the longest row in tokens. None cuts nothing.
  """

  vocabulary: TokenizerVocabulary
  sequence_length: Mapping[str, int] | None = None

  # What `apply` gives: per row an int32 array `[tokens]`, or one int32 number, where it is given one.
  tokens = ()
  numbers = ()
  # What it makes them of, beside the numbers.
  inputs = ()

  @abc.abstractmethod
  def apply(self, columns: Mapping[str, Sequence], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Makes rows of at most `max_length` tokens, None for no limit, of a batch's columns."""

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Makes a dataset of rows; columns of other names are dropped."""
    max_length = (self.sequence_length or {}).get("input_ids")
    names = [name for name in (*self.inputs, *self.numbers) if name in dataset.element_spec]
    ragged = [name for name in names if dataset.element_spec[name].shape.rank]
    tokens = self.tokens_of(names)
    numbers = [name for name in self.numbers if name in names]

    def run(*arrays):
      columns = dict(zip(names, arrays))
      for name, splits in zip(ragged, arrays[len(names) :]):
        columns[name] = np.split(columns[name], splits[1:-1])
      for name in names:
        if dataset.element_spec[name].dtype == tf.string:  # TensorFlow hands strings over as bytes
          columns[name] = [value.decode() for value in columns[name]]
      made = self.apply(columns, max_length)
      flat = [np.concatenate([*made[name], np.array([], np.int32)]) for name in tokens]
      lengths = [np.array([len(row) for row in made[name]], np.int64) for name in tokens]
      return (*flat, *lengths, *(np.asarray(made[name], np.int32) for name in numbers))

    def run_on_columns(batch):
      arrays = [batch[name].flat_values if name in ragged else batch[name] for name in names]
      arrays += [batch[name].row_splits for name in ragged]
      kinds = [tf.int32] * len(tokens) + [tf.int64] * len(tokens) + [tf.int32] * len(numbers)
      outputs = tf.numpy_function(run, arrays, kinds)
      for output in outputs:
        output.set_shape([None])
      flat, lengths = outputs[: len(tokens)], outputs[len(tokens) :]
      rows = {name: tf.RaggedTensor.from_row_lengths(*each) for name, *each in zip(tokens, flat, lengths)}
      return rows | dict(zip(numbers, lengths[len(tokens) :]))

    batches = dataset.ragged_batch(_BATCH) if ragged else dataset.batch(_BATCH)
    return batches.map(run_on_columns).unbatch()

  def tokens_of(self, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `tokens` that columns of these names give."""
    del names
    return self.tokens


@dataclasses.dataclass(frozen=True)
class TokenizePair(Step):
  """The tokens of `text` and, where there is one, of `text_pair`, for `CutPair`; `label`, `id` and `example` go on.

  Attributes:
    label_offset: added to every label; the place of the task's labels in the head of a mixture.
  """

  label_offset: int = 0

  inputs = ("text", "text_pair")
  tokens = ("input_ids", "pair_ids")
  numbers = ("label", "id", "example")

  def apply(self, columns: Mapping[str, Sequence], max_length: int | None = None) -> dict[str, list | np.ndarray]:
    """Tokenises a batch.

    Args:
      columns: `text`, maybe `text_pair`, and `label`.
      max_length: cuts nothing here.

    Returns:
      `input_ids` and maybe `pair_ids`: an int32 array `[tokens]` per example; `label` int32 `[batch]`; what else is
      given of `numbers`.
    """
    del max_length
    tokenizer = self.vocabulary.tokenizer
    made = {"input_ids": encode_bare(tokenizer, columns["text"])}
    if "text_pair" in columns:
      made["pair_ids"] = encode_bare(tokenizer, columns["text_pair"])
    label = np.array(columns["label"], np.int32)
    label[label != NO_LABEL] += self.label_offset
    return made | {name: columns[name] for name in self.numbers if name in columns} | {"label": label}

  def tokens_of(self, names: Sequence[str]) -> tuple[str, ...]:
    """See `Step`."""
    return self.tokens[: 1 + ("text_pair" in names)]


@dataclasses.dataclass(frozen=True)
class CutPair(Step):
  """Rows of what `TokenizePair` gives; see `fsb_jax.encodings.cut_pairs`."""

  inputs = ("input_ids", "pair_ids")
  tokens = ("input_ids", "token_type_ids")
  numbers = ("label", "id", "example")

  def apply(self, columns: Mapping[str, Sequence], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Returns `input_ids` and `token_type_ids`, an int32 array `[tokens]` per row, and what is given of `numbers`."""
    rows = cut_pairs(
      self.vocabulary.tokenizer, columns["input_ids"], columns.get("pair_ids"), max_length=max_length
    )
    return rows | {name: columns[name] for name in self.numbers if name in columns}


@dataclasses.dataclass(frozen=True)
class TokenizeDocument(Step):
  """The tokens of each document's `text` and their words, for `CutDocument`; `example` goes on.

  Attributes:
    whole_words: whether `word_ids` counts words, or every token.
  """

  whole_words: bool = True

  inputs = ("text",)
  tokens = ("input_ids", "word_ids")
  numbers = ("example",)

  def apply(self, columns: Mapping[str, Sequence], max_length: int | None = None) -> dict[str, list | np.ndarray]:
    """Returns `input_ids` and `word_ids`, an int32 array `[tokens]` per document, and `example` where it is given."""
    del max_length
    made = number_words(self.vocabulary.tokenizer, columns["text"], whole_words=self.whole_words)
    return made | {name: columns[name] for name in self.numbers if name in columns}


@dataclasses.dataclass(frozen=True)
class CutDocument(Step):
  """One row or more of every document that `TokenizeDocument` gives; see `fsb_jax.encodings.cut_documents`."""

  inputs = ("input_ids", "word_ids")
  tokens = ("input_ids", "token_type_ids", "word_ids")
  numbers = ("example",)

  def apply(self, columns: Mapping[str, Sequence], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Returns `tokens`, an int32 array `[tokens]` per row, and the `example` of each row where it is given."""
    rows = cut_documents(
      self.vocabulary.tokenizer, columns["input_ids"], columns["word_ids"], max_length=max_length
    )
    of = np.array(rows.pop("document"), np.int64)
    return rows | {name: np.asarray(columns[name])[of] for name in self.numbers if name in columns}


@dataclasses.dataclass(frozen=True)
class EncodeKind(Step):
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
    """See `Step`."""
    return self.kind.tokens

  @property
  def numbers(self) -> tuple[str, ...]:
    """See `Step`."""
    return tuple(self.kind.numbers)

  def apply(self, columns: Mapping[str, Sequence], max_length: int | None) -> dict[str, list | np.ndarray]:
    """Encodes a batch; returns the kind's `tokens` and `numbers`, one item for each encoded row."""
    examples = [dict(zip(columns, values)) for values in zip(*columns.values())]
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
        encoded = self.apply({name: [example[name] for example in batch] for name in batch[0]}, max_length)
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
