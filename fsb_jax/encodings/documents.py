"""Running text as rows of token ids, each token with the number of its word."""

import functools
import logging
from collections.abc import Sequence

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.encodings.framing import Frame


def encode_documents(
  tokenizer, texts: Sequence[str], *, max_length: int | None, whole_words: bool = True
) -> dict[str, list[np.ndarray]]:
  """Encodes documents as rows that each begin and end with the tokenizer's special tokens.

  A document too long for one row is cut between tokens into as few rows as it needs, all about equally long; a row
  never holds parts of two documents. A document without tokens gives no row.

  Args:
    tokenizer: a transformers fast tokenizer.
    texts: the documents.
    max_length: longest row in tokens, special tokens included; None cuts nothing.
    whole_words: True numbers the words that jieba finds in the document, so that all pieces of one share a number (a
      word that a cut goes through is one word in each row); False counts every token as a word.

  Returns:
    `input_ids`, `token_type_ids`, `word_ids`: one int32 array of shape `[tokens]` per row. `word_ids` counts words from
    0 and is -1 at special tokens, those that stand in the text and [UNK] among them.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  rows = cut_documents(tokenizer, **number_words(tokenizer, texts, whole_words=whole_words), max_length=max_length)
  return {name: rows[name] for name in ("input_ids", "token_type_ids", "word_ids")}


def number_words(tokenizer, texts: Sequence[str], *, whole_words: bool = True) -> dict[str, list[np.ndarray]]:
  """Encodes documents for `cut_documents`, once for rows of any length.

  Args:
    tokenizer: a transformers fast tokenizer.
    texts: the documents.
    whole_words: see `encode_documents`.

  Returns:
    `input_ids`, without special tokens around them, and `word_ids`, the number of every token's word: one int32 array
    of shape `[tokens]` per document.
  """
  with borrowed_backend(tokenizer) as backend:
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
  documents = {"input_ids": [np.array(encoding.ids, np.int32) for encoding in encodings], "word_ids": []}
  for text, encoding in zip(texts, encodings):
    count = len(encoding.ids)
    words = _words_of(text, np.array(encoding.offsets)) if whole_words and count else np.arange(count)
    documents["word_ids"].append(words.astype(np.int32))
  return documents


def cut_documents(
  tokenizer, input_ids: Sequence[np.ndarray], word_ids: Sequence[np.ndarray], *, max_length: int | None
) -> dict[str, list]:
  """The rows of `encode_documents`, from what `number_words` gives.

  Args:
    tokenizer: the tokenizer that made it.
    input_ids: the documents, int32 `[tokens]` each.
    word_ids: the number of every token's word.
    max_length: longest row in tokens, special tokens included; None cuts nothing.

  Returns:
    What `encode_documents` does, and `document`: which one each row is of.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  frame = Frame(tokenizer, pairs=False)
  room = frame.room(max_length)
  special_ids = np.array(tokenizer.all_special_ids, np.int32)
  rows = {"input_ids": [], "token_type_ids": [], "word_ids": [], "document": []}
  for number, (ids, words) in enumerate(zip(input_ids, word_ids)):
    if not len(ids):
      continue
    parts = 1 if room is None else -(-len(ids) // room)
    for ids_part, words_part in zip(np.array_split(ids, parts), np.array_split(words, parts)):
      starts = np.concatenate([[0], words_part[1:] != words_part[:-1]])
      numbers = np.where(np.isin(ids_part, special_ids), -1, np.cumsum(starts))
      rows["input_ids"].append(frame.ids([ids_part]))
      rows["token_type_ids"].append(frame.types([ids_part]))
      rows["word_ids"].append(frame.filled(numbers, -1).astype(np.int32))
      rows["document"].append(number)
  return rows


def _words_of(text: str, offsets: np.ndarray) -> np.ndarray:
  """The number of the word that each token, from `offsets` `[tokens, 2]` in characters, ends in."""
  ends = np.cumsum([len(word) for word in _segmenter().cut(text)])
  # By its last character: some tokenizers count the space before a word as its piece.
  return np.searchsorted(ends, np.maximum(offsets[:, 1] - 1, 0), side="right")


@functools.cache
def _segmenter():
  import jieba

  jieba.setLogLevel(logging.WARNING)
  # One of its own, with the dictionary as shipped: words that other code adds to jieba's must not change the rows.
  return jieba.Tokenizer()
