"""N-grams of texts as the arrays that ZEN takes beside its tokens.

Sources: Diao et al. 2019, https://arxiv.org/abs/1911.00720, section 2.1; Song et al. 2021,
https://arxiv.org/abs/2105.01279.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fsb_jax.errors import UserError

# How many tokens an n-gram may have.
LENGTHS = range(2, 8)
_NGRAMS_PER_CALL = 8192  # bounds the memory of the tokenizer's own result objects


@dataclasses.dataclass(frozen=True)
class NgramLexicon:
  """The n-grams a model knows.

  Attributes:
    ids: token ids of an n-gram -> its id, from 1 on; 0 is padding.
    frequencies: of every id, int64 `[n-grams + 1]`, that of padding 0. A model's table has as many rows or more.
  """

  ids: Mapping[tuple[int, ...], int]
  frequencies: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramForm:
  """How the n-grams that a text holds become arrays.

  Attributes:
    order: in which they are taken, until there is no room for more. "shuffled" in ZEN 1, so that two passes over a text
      differ; "found", shorter ones first, then earlier ones, where they must not. "by_id" in ZEN 2.
    weights: what a token takes in of the n-grams that cover it: "ones" all of each (ZEN 1); "shares" in proportion to
      their frequencies (ZEN 2); "whole_shares" the same cut to whole numbers, which leaves tokens that one n-gram alone
      covers (what ZEN 2's script for whole texts makes of it; its script for tokens leaves nothing, as if there were
      no n-grams).
    padding_is_first: the first text is taken to be longer by the row's padding, so that n-grams near the start of a
      second text get the type of the first (as in ZEN 2's scripts); otherwise an n-gram has its first token's type.
  """

  order: Literal["shuffled", "found", "by_id"]
  weights: Literal["ones", "shares", "whole_shares"]
  padding_is_first: bool = False

  def __post_init__(self):
    known = {"order": ("shuffled", "found", "by_id"), "weights": ("ones", "shares", "whole_shares")}
    for name, values in known.items():
      if getattr(self, name) not in values:
        raise UserError(f"unknown {name} {getattr(self, name)!r} of n-grams; known: {', '.join(values)}")


def read_ngrams(path: Path | str, tokenizer) -> NgramLexicon:
  """Reads a checkpoint's ngram.txt.

  Args:
    path: a file of lines `n-gram,frequency`, or a folder with an ngram.txt; the n-gram of the first line has id 1.
    tokenizer: the checkpoint's, a transformers fast tokenizer. Of n-grams that it makes the same tokens of the last one
      is known.

  Returns:
    The lexicon.

  Raises:
    UserError: there is no such file, or a line is of another form.
  """
  path = Path(path)
  path = path / "ngram.txt" if path.is_dir() else path
  if not path.is_file():
    raise UserError(f"{path} is missing: it lists the model's n-grams, and comes with its checkpoint")
  ngrams, frequencies = [], [0]
  try:
    with path.open(encoding="utf-8", newline="\n") as lines:
      for number, line in enumerate(lines, 1):
        ngram, comma, frequency = line.rstrip("\r\n").rpartition(",")
        if not (ngram and comma and frequency.strip().isdecimal()):
          raise UserError(f"{path}, line {number} is {line.strip()!r}; it must be an n-gram, a comma and its frequency")
        ngrams.append(ngram)
        frequencies.append(int(frequency))
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text ({error})") from error
  ids = {}
  for start in range(0, len(ngrams), _NGRAMS_PER_CALL):
    encoded = tokenizer(
      ngrams[start : start + _NGRAMS_PER_CALL],
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
    )
    ids |= {tuple(tokens): start + i for i, tokens in enumerate(encoded["input_ids"], 1)}
  return NgramLexicon(ids, np.array(frequencies, np.int64))


def find_ngrams(input_ids: np.ndarray, lexicon: NgramLexicon) -> np.ndarray:
  """The n-grams in a row of tokens: (id, start, length) of each, int64 `[found, 3]`, by length, then by start."""
  tokens = np.asarray(input_ids).tolist()
  found = [
    (lexicon.ids[piece], start, length)
    for length in LENGTHS
    for start in range(len(tokens) - length + 1)
    if (piece := tuple(tokens[start : start + length])) in lexicon.ids
  ]
  return np.array(found, np.int64).reshape(-1, 3)


def encode_ngrams(
  input_ids: Sequence[np.ndarray],
  token_type_ids: Sequence[np.ndarray],
  lexicon: NgramLexicon,
  form: NgramForm,
  *,
  length: int,
  ngrams: int = 128,
  random: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
  """Finds the n-grams of a batch of rows.

  Args:
    input_ids: the rows `[tokens]` as the model gets them, special tokens included, padding not.
    token_type_ids: their types, 0 for the first text and 1 for the second.
    lexicon: the n-grams there are.
    form: what becomes of them.
    length: of the batch, to which its rows are padded.
    ngrams: slots of a row as long as `length`; a shorter one has room for its share of them, rounded up.
    random: shuffles, where `form.order` says so.

  Returns:
    `input_ngram_ids` int32 `[batch, ngrams]`, 0 in slots that are left over; `ngram_position_matrix` float32
    `[batch, length, ngrams]`; `ngram_token_type_ids` and `ngram_attention_mask` int32 `[batch, ngrams]`.

  Raises:
    UserError: a row is longer than `length`, or there is nothing to shuffle by.
  """
  if form.order == "shuffled" and random is None:
    raise UserError('n-grams in the order "shuffled" need a random generator; give one, or take the order "found"')
  rows = len(input_ids)
  kinds = ("input_ngram_ids", "ngram_token_type_ids", "ngram_attention_mask")
  result = {name: np.zeros((rows, ngrams), np.int32) for name in kinds}
  result["ngram_position_matrix"] = np.zeros((rows, length, ngrams), np.float32)
  for row, (tokens, types) in enumerate(zip(input_ids, token_type_ids, strict=True)):
    if len(tokens) > length:
      raise UserError(f"a row of {len(tokens)} tokens does not fit the length {length}; cut it first")
    found = _ordered(find_ngrams(tokens, lexicon), form, random)[: math.ceil(len(tokens) / length * ngrams)]
    ids, starts, lengths = found.T
    slots = slice(len(found))
    result["input_ngram_ids"][row, slots] = ids
    result["ngram_attention_mask"][row, slots] = 1
    result["ngram_token_type_ids"][row, slots] = _types(starts, types, length, form)
    place = np.arange(length)[:, None]
    covered = (place >= starts) & (place < starts + lengths)
    result["ngram_position_matrix"][row, :, slots] = _weighed(covered, lexicon.frequencies[ids], form)
  return result


def _ordered(found: np.ndarray, form: NgramForm, random: np.random.Generator | None) -> np.ndarray:
  if form.order == "shuffled":
    return found[random.permutation(len(found))]
  return found[np.argsort(found[:, 0], kind="stable")] if form.order == "by_id" else found


def _types(starts: np.ndarray, token_types: np.ndarray, length: int, form: NgramForm) -> np.ndarray:
  token_types = np.asarray(token_types)
  if not form.padding_is_first:
    return token_types[starts]
  return starts >= np.sum(token_types == 0) + length - len(token_types)


def _weighed(covered: np.ndarray, frequencies: np.ndarray, form: NgramForm) -> np.ndarray:
  """What tokens take in, `[length, kept]`, from whether n-grams cover them."""
  if form.weights == "ones":
    return covered
  counted = covered * frequencies
  # The small number is the original's; it keeps the rows of uncovered tokens at zero.
  shares = (counted / (counted.sum(axis=1, keepdims=True) + 1e-10)).astype(np.float32)
  return shares if form.weights == "shares" else np.floor(shares)
