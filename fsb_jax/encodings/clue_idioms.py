"""ChID: idioms to put into the blanks of a text (Zheng et al. 2019, https://aclanthology.org/P19-1075).

The clause around a blank is offered once with each idiom, between the text before and behind it. The text's other
blanks hold their own idioms where those are known, and nothing where they are not. The original puts whole clauses into
them, and fails where the idioms are not known.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fsb_jax.errors import UserError

_BLANK = re.compile(r"#idiom\d*#")
_CLAUSE = re.compile(r"[^。！？?,，]*[。！？?,，]|[^。！？?,，]+")
_END = re.compile(r"[。！？?,，]")
_BEHIND_COMMA = re.compile(r"(?<=.[,，])", re.DOTALL)
# Characters of all options together above which bare idioms are offered, and of texts and options together.
_LONGEST_OPTIONS, _LONGEST = 400, 512


def chid_items(row: Mapping, line: int, answers: Mapping[str, int] | None) -> list[dict]:
  """The items of a line, one for each blank.

  Args:
    row: `candidates`, a list of idioms, and `content`, a list of texts with blanks such as `#idiom000378#`.
    line: which line it is.
    answers: which candidate is right, by blank; None where that is not known.

  Returns:
    Items as in `clue_forms`, with the blank as their `id`, and `text_id` and `line_id`, where they stand.

  Raises:
    UserError: `answers` lacks a blank, or names a candidate that is none.
  """
  items, candidates = [], row["candidates"]
  for number, text in enumerate(row["content"]):
    for blank in _BLANK.findall(text):
      place = None if answers is None else _place(answers, blank, candidates)
      item = _item(_with_others_filled(text, blank, candidates, answers or {}), blank, candidates, place)
      items.append({**item, "id": blank, "text_id": number, "line_id": line})
  return items


def one_idiom_item(row: Mapping, line: int, answers: Mapping[str, int] | None) -> list[dict]:
  """The item of a row of FewCLUE's form: one text with one blank, and its `answer` beside it."""
  del line, answers
  text = row["content"]
  found = _BLANK.search(text)
  if found is None:
    raise UserError("content has no blank #idiom#")
  known = {found.group(): row["answer"]} if "answer" in row else None
  place = None if known is None else _place(known, found.group(), row["candidates"])
  return [{**_item(text, found.group(), row["candidates"], place), "id": row.get("id", 0)}]


def one_to_one(scores: np.ndarray) -> list[int]:
  """Which candidate each blank of a line gets: no candidate twice, the surest first.

  Args:
    scores: `[blanks, candidates]`.

  Returns:
    The candidate of each blank. Where there are more blanks than candidates, those left get their likeliest.
  """
  scores = np.asarray(scores, np.float64)
  left, chosen = scores.copy(), scores.argmax(axis=1)
  for _ in range(min(scores.shape)):
    blank, candidate = np.unravel_index(left.argmax(), left.shape)
    chosen[blank] = candidate
    left[blank], left[:, candidate] = -np.inf, -np.inf
  return chosen.tolist()


def _place(answers: Mapping[str, int], blank: str, candidates: Sequence[str]) -> int:
  place = answers.get(blank)
  if not isinstance(place, int) or not 0 <= place < len(candidates):
    raise UserError(f"the answer of {blank} is {place!r}, not the place of one of {len(candidates)} candidates, from 0")
  return place


def _with_others_filled(text: str, blank: str, candidates: Sequence[str], answers: Mapping[str, int]) -> str:
  def idiom(found):
    other = found.group()
    if other == blank:
      return other
    return candidates[_place(answers, other, candidates)] if answers else ""

  return _BLANK.sub(idiom, text)


def _item(text: str, blank: str, candidates: Sequence[str], place: int | None) -> dict:
  clauses = _clauses(text)
  middle = next(i for i, clause in enumerate(clauses) if blank in clause)
  before, behind = "".join(clauses[:middle]), "".join(clauses[middle + 1 :])
  choice = [clauses[middle].replace(blank, idiom) for idiom in candidates]
  if len("".join(choice)) > _LONGEST_OPTIONS:
    choice = list(candidates)
    before, _, behind = text.partition(blank)
  before, behind = _nearest(before, behind, _LONGEST - len("".join(choice)))
  return {
    "texta": before, "textb": behind, "question": "", "choice": choice,
    "answer": "" if place is None else choice[place], "label": place or 0,
  }  # fmt: skip


def _clauses(text: str) -> list[str]:
  # The only end in a text counts where it is a comma.
  return _CLAUSE.findall(text) if len(_END.findall(text)) > 1 else _BEHIND_COMMA.split(text)


def _nearest(before: str, behind: str, room: int) -> tuple[str, str]:
  """As many characters as there is room for, from where the two meet: half each, and what one leaves the other gets."""
  room = max(room, 0)
  first = min(len(before), max(room // 2, room - len(behind)))
  return before[len(before) - first :], behind[: room - first]
