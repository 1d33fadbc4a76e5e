"""Running text as rows of token ids, each token with the number of its word."""

import functools
import logging
from collections.abc import Sequence

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.errors import UserError


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
  with borrowed_backend(tokenizer) as backend:
    # What stands around a text, found out instead of asked for: every tokenizer has its own template.
    frame = backend.encode("一")
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
  inside = np.flatnonzero(np.array(frame.special_tokens_mask) == 0)
  before, after = np.array(frame.ids[: inside[0]], np.int32), np.array(frame.ids[inside[-1] + 1 :], np.int32)
  types = frame.type_ids
  room = None if max_length is None else max_length - len(before) - len(after)
  if room is not None and room < 1:
    raise UserError(
      f"max_length {max_length} leaves no room for text beside {len(before) + len(after)} special tokens; raise it."
    )
  special_ids = np.array(tokenizer.all_special_ids, np.int32)
  rows = {"input_ids": [], "token_type_ids": [], "word_ids": []}
  for text, encoding in zip(texts, encodings):
    if not encoding.ids:
      continue
    ids = np.array(encoding.ids, np.int32)
    words = _words_of(text, np.array(encoding.offsets)) if whole_words else np.arange(len(ids))
    parts = 1 if room is None else -(-len(ids) // room)
    for ids_part, words_part in zip(np.array_split(ids, parts), np.array_split(words, parts)):
      starts = np.concatenate([[0], words_part[1:] != words_part[:-1]])
      word_ids = np.where(np.isin(ids_part, special_ids), -1, np.cumsum(starts))
      row = np.concatenate([before, ids_part, after])
      rows["input_ids"].append(row)
      rows["word_ids"].append(np.pad(word_ids, (len(before), len(after)), constant_values=-1).astype(np.int32))
      text_types = np.full(len(ids_part), types[inside[0]])
      rows["token_type_ids"].append(
        np.concatenate([types[: inside[0]], text_types, types[inside[-1] + 1 :]]).astype(np.int32)
      )
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
