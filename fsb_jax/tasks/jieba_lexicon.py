"""A task on real Chinese that every installation has: the class of a word, from the dictionary that jieba ships.

https://github.com/fxsjy/jieba (MIT); `dict.txt` lists a word, its frequency and its tag in each line.
"""

import importlib.util
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.tasks.files import Row
from fsb_jax.tasks.text_task import Split, TextTask, make_split

_CLASSES = ("noun", "person", "place", "organisation", "phrase", "verb", "number_time", "other")
# By the longest prefix of the tag. Proper nouns without a class of their own (nz) and short tags count as other.
_CLASS_OF_TAG = {
  "n": "noun",
  "nr": "person",
  "ns": "place",
  "nt": "organisation",
  "nz": "other",
  "i": "phrase",
  "l": "phrase",
  "v": "verb",
  "m": "number_time",
  "t": "number_time",
}
_HUNDREDTHS = {"train": range(90), "validation": range(90, 95), "test": range(95, 100)}


def lexicon_characters() -> list[str]:
  """The distinct characters of the dictionary's words, sorted (12,045 in jieba 0.42.1)."""
  return sorted({character for _, fields in _rows() for character in fields["word"]})


def _dictionary_path() -> Path:
  # Found without importing jieba, whose first use builds a prefix dictionary.
  found = importlib.util.find_spec("jieba")
  if found is None or not found.submodule_search_locations:
    raise UserError("Task jieba_lexicon needs the package jieba: pip install jieba.")
  return Path(found.submodule_search_locations[0]) / "dict.txt"


def _rows() -> Iterator[Row]:
  path = _dictionary_path()
  with path.open(encoding="utf-8") as handle:
    for number, line in enumerate(handle, 1):
      where = f"{path}, line {number}"
      parts = line.split()
      if len(parts) != 3:
        raise UserError(f"{where}: not a word, a frequency and a tag.")
      word, frequency, tag = parts
      yield where, {"word": word, "frequency": int(frequency), "tag": tag, "class": _word_class(tag)}


def _word_class(tag: str) -> str:
  return _CLASS_OF_TAG.get(tag[:2]) or _CLASS_OF_TAG.get(tag[:1], "other")


def _read(split: str, data_dir: Path | None) -> Split:
  del data_dir  # the words come with the package
  kept = (row for row in _rows() if zlib.crc32(row[1]["word"].encode()) % 100 in _HUNDREDTHS[split])
  return make_split(kept, "word", None, "class", {name: index for index, name in enumerate(_CLASSES)})


TASK = TextTask(
  name="jieba_lexicon",
  summary="words of jieba's dictionary, by word class",
  label_names=_CLASSES,
  has_pair=False,
  splits=tuple(_HUNDREDTHS),
  read=_read,
)


def lexicon_tokenizer():
  """A tokenizer over the lexicon's characters, for models trained from scratch on it."""
  with tempfile.TemporaryDirectory() as folder:
    return bert_tokenizer_from_characters(lexicon_characters(), folder)
