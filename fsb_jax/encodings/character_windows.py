"""Texts too long for a tagger in windows, and the entities of the windows as those of the texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fsb_jax.encodings.tagging import Entity, encode_characters

# A window begins so far before the end of the one before, in parts of that one.
_OVERLAP = 4


def encode_character_windows(tokenizer, texts: Sequence[str], *, max_length: int) -> dict[str, list[Any]]:
  """`encode_characters` of windows that hold all of every text between them, each a row.

  Two windows that follow each other share about a quarter; an entity is told by the one that has more of what is
  around its beginning.

  Args:
    tokenizer: a transformers fast tokenizer.
    texts: the texts.
    max_length: longest row in tokens, special tokens included.

  Returns:
    Of every row `input_ids`, `token_type_ids` and `offsets`, the last in characters of the whole text; `example`, the
    number of its text; and `own`, the characters `(start, stop)` at which it tells what begins. A text's rows stand in
    its order, those of other texts between them.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  rows: dict[str, list[Any]] = {name: [] for name in ("input_ids", "token_type_ids", "offsets", "example", "own")}
  begins, waiting = [0] * len(texts), [(example, 0) for example in range(len(texts))]
  while waiting:
    parts = [texts[example][start : start + max_length] for example, start in waiting]
    encoded, cut = encode_characters(tokenizer, parts, max_length=max_length), []
    for (example, start), part, ids, types, offsets in zip(waiting, parts, *encoded.values()):
      stop = start + (int(offsets.max()) if len(ids) == max_length else len(part))
      told_to = len(texts[example])
      if stop < told_to:
        following = max(stop - (stop - start) // _OVERLAP, start + 1)
        told_to = (following + stop) // 2
        cut.append((example, following))
      of_row = (ids, types, np.where(offsets < 0, offsets, offsets + start), example, (begins[example], told_to))
      for name, value in zip(rows, of_row):
        rows[name].append(value)
      begins[example] = told_to
    waiting = cut
  return rows


def entities_of_windows(
  found: Sequence[Sequence[Entity]], example: Sequence[int], own: Sequence[tuple[int, int]], count: int
) -> list[list[Entity]]:
  """The entities of every text.

  Args:
    found: the entities of every row, in characters of the whole text.
    example: see `encode_character_windows`.
    own: the same.
    count: how many texts there are.
  """
  whole: list[list[Entity]] = [[] for _ in range(count)]
  for entities, number, (start, stop) in zip(found, example, own):
    # Where windows disagree the earlier one has seen the beginning.
    start = max([start, *(entity.end for entity in whole[number])])
    whole[number] += [entity for entity in entities if start <= entity.start < stop]
  return whole
