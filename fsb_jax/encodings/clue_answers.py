"""What a model answered to items of `clue_forms`, as the labels that CLUE asks for.

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/examples/clue1.1/predict2submit.
"""

import math
from collections.abc import Mapping, Sequence

from fsb_jax.encodings.clue_forms import CLUE_FORMS, Verbaliser
from fsb_jax.encodings.clue_idioms import one_to_one
from fsb_jax.errors import UserError

Answered = Sequence[Mapping]


def clue_answers(task: str, answered: Answered) -> dict[int | str, int | str]:
  """The label of every item as the benchmark publishes labels, by the item's `id`.

  Args:
    task: a name of `CLUE_FORMS`.
    answered: items with the `label` that a model chose (a place in `choice`) and, for csl and chid, the `score` of
      every option; all of a split, for some answers depend on others.

  Raises:
    UserError: the task is unknown, or an item was not answered, or its options are none of the task's.
  """
  if task not in CLUE_FORMS:
    raise UserError(f"there is no form of task {task!r}; known: {', '.join(CLUE_FORMS)}")
  for number, item in enumerate(answered):
    missing = [name for name in ("id", "choice", "label", *_NEEDED.get(task, ())) if name not in item]
    if missing:
      raise UserError(f"{task}, answered item {number} has no {missing[0]}; give items with what the model answered")
  form = CLUE_FORMS[task]
  if isinstance(form, Verbaliser):
    return {item["id"]: form.published(item["choice"][item["label"]]) for item in answered}
  return _OWN_WAYS[task](answered)


def answers_csl(answered: Answered) -> dict[int | str, str]:
  """"1" for the keyword lists that sum an abstract up best, the better half of its own (rounded up), "0" for others."""
  labels = {item["id"]: "0" for item in answered}
  by_abstract: dict[str, list[Mapping]] = {}
  for item in answered:
    by_abstract.setdefault(item["texta"], []).append(item)
  for items in by_abstract.values():
    ranked = sorted(items, key=_says_it_can, reverse=True)
    labels |= {item["id"]: "1" for item in ranked[: math.ceil(len(ranked) / 2)]}
  return labels


def answers_coreference(answered: Answered) -> dict[int | str, str]:
  """"true" where the chosen option is the one without a "not", whichever of the two comes first."""
  return {
    item["id"]: "true" if len(item["choice"][item["label"]]) == min(map(len, item["choice"])) else "false"
    for item in answered
  }


def answers_chid(answered: Answered) -> dict[int | str, int]:
  """The candidate of every blank; within a line none is taken twice, and the surest choice comes first."""
  by_line: dict[int, list[Mapping]] = {}
  for item in answered:
    by_line.setdefault(item["line_id"], []).append(item)
  labels = {}
  for items in by_line.values():
    scores = [[item["score"][option] for option in item["choice"]] for item in items]
    labels |= zip([item["id"] for item in items], one_to_one(scores))
  return {item["id"]: labels[item["id"]] for item in answered}


def answers_place(answered: Answered) -> dict[int | str, int]:
  """The place of the chosen option."""
  return {item["id"]: int(item["label"]) for item in answered}


def _says_it_can(item: Mapping) -> float:
  return next(score for option, score in item["score"].items() if option.startswith("可以"))


_OWN_WAYS = {
  "csl": answers_csl,
  "cslf": answers_csl,
  "cluewsc2020": answers_coreference,
  "cluewscf": answers_coreference,
  "chid": answers_chid,
  "chidf": answers_place,
  "c3": answers_place,
}
# What such answers need beside the choice.
_NEEDED = {"csl": ("score", "texta"), "cslf": ("score", "texta"), "chid": ("score", "line_id")}
# Tasks in which an answer depends on those to other items.
JOINT = frozenset(_NEEDED)
