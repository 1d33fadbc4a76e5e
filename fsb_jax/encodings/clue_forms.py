"""Rows of CLUE, FewCLUE and ZeroCLUE as questions with options (UniMC's items), and those as text to text.

An item is what `encode_unimc` reads: `texta`, `textb`, `question`, `choice` (the options), `task_type` for tasks of two
texts, and beside them `answer` (the right option's text), `label` (its place) and `id`. A row without a label has the
label 0 as in the original's files; its `answer` is none of its options. CMRC 2018 has spans for answers and is
Ubert's: `clue_reading`. What a model answers to items becomes CLUE's labels in `clue_answers`.

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/examples/clue1.1/data_preprocessing.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping

from fsb_jax.encodings import clue_verbalisers as words
from fsb_jax.encodings.clue_idioms import chid_items, one_idiom_item
from fsb_jax.errors import UserError

_KEYWORDS = 15


@dataclasses.dataclass(frozen=True)
class Verbaliser:
  """A classification whose rows all have the same options.

  Attributes:
    options: the words that are offered, by the label as published.
    text: field with the text.
    second: field with the second text, or None.
    question: what is asked.
    task_type: of `unimc.REWRITES`, where the second text goes into the options.
    dropped: a label whose rows are left out, as CLUE does.
  """

  options: Mapping[str, str]
  text: str = "sentence"
  second: str | None = None
  question: str = ""
  task_type: str | None = None
  dropped: str | None = None

  def __call__(self, row: Mapping, line: int, answers: Mapping[str, int] | None) -> list[dict]:
    """The item of a row; none where it is left out."""
    del line, answers
    label = str(row["label"]) if "label" in row else None
    if label is not None and label == self.dropped:
      return []
    if label is not None and label not in self.options:
      raise UserError(f"label {label!r} is none of {', '.join(list(self.options)[:20])}")
    choice = list(self.options.values())
    place = None if label is None else list(self.options).index(label)
    second = row[self.second] if self.second else ""
    kind = {"task_type": self.task_type} if self.task_type else {}
    return [kind | _item(row[self.text], second, self.question, choice, place, row.get("id", 0))]

  def published(self, option: str) -> str:
    """The label that an option stands for; UserError where it is none of them."""
    for label, word in self.options.items():
      if word == option:
        return label
    raise UserError(f"the answer {option!r} is none of the options {', '.join(list(self.options.values())[:20])}")


def clue_items(task: str, rows: Iterable[Mapping], answers: Mapping[str, int] | None = None) -> list[dict]:
  """Rows of a task's file as items, in their order.

  Args:
    task: a name of `CLUE_FORMS`.
    rows: as published, one to a line (c3: the members of the one list that a file is).
    answers: of chid alone: which candidate is right, by the idiom's id, as in the file of answers; None for rows whose
      answers are not known.

  Returns:
    The items. A row has one, but for chid (one for each blank) and c3 (one for each question).

  Raises:
    UserError: the task is unknown, or a row lacks a field or has a label that is none; the message says which row.
  """
  if task not in CLUE_FORMS:
    raise UserError(f"there is no form of task {task!r}; known: {', '.join(CLUE_FORMS)}")
  items = []
  for line, row in enumerate(rows):
    try:
      items += CLUE_FORMS[task](row, line, answers)
    except KeyError as error:
      raise UserError(f"{task}, row {line}: no field {error}") from error
    except UserError as error:
      raise UserError(f"{task}, row {line}: {error}") from error
  return items


def text_to_text(item: Mapping) -> dict[str, str]:
  """An item as a text to read and a text to write, for encoder-decoders.

  What is read are the question, the options with commas between them, and the texts; what is written is the right
  option's text.

  Args:
    item: of `clue_items`, or one like it.

  Returns:
    `inputs` and `targets`, which is "" where the `answer` is not known.
  """
  options, answer = "，".join(item["choice"]), item.get("answer")
  return {
    "inputs": f"{item.get('question') or ''}{options}。{item['texta']}{item.get('textb') or ''}",
    "targets": answer if answer in item["choice"] else "",
  }


def _item(texta, textb, question, choice, place, row_id, unknown="") -> dict:
  """`place` is the right option's, or None; `unknown` is the answer's text then."""
  return {
    "texta": texta, "textb": textb, "question": question, "choice": choice,
    "answer": unknown if place is None else choice[place], "label": place or 0, "id": row_id,
  }  # fmt: skip


def _truth(row: Mapping, true: str, false: str) -> int | None:
  """The place of the right of two options of which the first says yes."""
  if "label" not in row:
    return None
  places = {true: 0, false: 1}
  if str(row["label"]) not in places:
    raise UserError(f"label {row['label']!r} is none of {true}, {false}")
  return places[str(row["label"])]


def _csl(row: Mapping, line: int, answers: Mapping[str, int] | None) -> list[dict]:
  """Do these keywords sum an abstract up? It is read behind the words that stand out in it."""
  del line, answers
  keywords = "、".join(row["keyword"])
  choice = [f"可以使用{keywords}概括摘要", f"不能使用{keywords}概括摘要"]
  text = "、".join(_salient_words(row["abst"])) + "。" + row["abst"]
  # Without a label the original's answer has neither of the options' first words.
  return [_item(text, "", "", choice, _truth(row, "1", "0"), row.get("id", 0), f"使用{keywords}概括摘要")]


@functools.lru_cache(maxsize=1)
def _salient_words(text: str) -> list[str]:
  """The words of highest TF-IDF, by the frequencies that jieba ships; rows of one text stand together."""
  return _extractor().extract_tags(text, topK=_KEYWORDS)


@functools.cache
def _extractor():
  import jieba.analyse

  jieba.setLogLevel(logging.WARNING)
  extractor = jieba.analyse.TFIDF()
  # One of its own, with the dictionary as shipped: words that other code adds to jieba's must not change the rows.
  extractor.tokenizer = jieba.Tokenizer()
  return extractor


def _coreference(row: Mapping, line: int, answers: Mapping[str, int] | None) -> list[dict]:
  """Does the pronoun mean the noun? In the text [the noun] and _the pronoun_ are marked."""
  del line, answers
  target, text = row["target"], row["text"]
  noun, pronoun = target["span1_text"], target["span2_text"]
  spans = ((target["span1_index"], noun, "[", "]"), (target["span2_index"], pronoun, "_", "_"))
  # From the back, so that the places before stay what they are.
  for start, span, left, right in sorted(spans, reverse=True):
    end = start + len(span)
    text = f"{text[:start]}{left}{text[start:end]}{right}{text[end:]}"
  choice = [f"{pronoun}是{noun}", f"{pronoun}不是{noun}"]
  return [_item(text, "", "", choice, _truth(row, "true", "false"), row.get("id", 0), f"{pronoun}{noun}")]


def _c3(row: Mapping, line: int, answers: Mapping[str, int] | None) -> list[dict]:
  """A conversation or text, `[lines, questions, ...]`."""
  del line, answers
  text, items = "\n".join(row[0]), []
  for asked in row[1]:
    choice, place = asked["choice"], None
    if "answer" in asked:
      if asked["answer"] not in choice:
        raise UserError(f"answer {asked['answer']!r} is none of the choices {', '.join(choice)}")
      place = choice.index(asked["answer"])
    items.append(_item(text, "", asked["question"], choice, place, asked.get("id", 0)))
  return items


_PAIR = {"text": "sentence1", "second": "sentence2"}
_INFERENCE = Verbaliser(words.INFERENCE, **_PAIR, task_type="自然语言推理", dropped="-")
_NEWS = Verbaliser(words.NEWS, question="下面新闻属于哪一个类别？")
_APPS = Verbaliser(words.APPS, question="请问app应用属于？")

Form = Callable[[Mapping, int, Mapping[str, int] | None], list[dict]]
CLUE_FORMS: dict[str, Form] = {
  "afqmc": Verbaliser(words.SIMILAR, **_PAIR, task_type="语义匹配"),
  "ocnli": _INFERENCE,
  "cmnli": _INFERENCE,
  "tnews": _NEWS,
  "iflytek": _APPS,
  "csl": _csl,
  "cluewsc2020": _coreference,
  "chid": chid_items,
  "c3": _c3,
  # FewCLUE and ZeroCLUE. Those that are CLUE's tasks are asked as CLUE's; the words of eprstmt and the question of
  # csldcp are the models' usual ones for reviews and subjects.
  "eprstmt": Verbaliser(words.SENTIMENT),
  "csldcp": Verbaliser(words.SUBJECTS, text="content", question="下面论文属于哪一个学科？"),
  "tnewsf": _NEWS,
  "iflytekf": _APPS,
  "ocnlif": _INFERENCE,
  "bustm": Verbaliser(words.SIMILAR, **_PAIR, task_type="语义匹配"),
  "chidf": one_idiom_item,
  "cslf": _csl,
  "cluewscf": _coreference,
  # Not CLUE's, but reviews too.
  "chnsenticorp": Verbaliser(words.REVIEWS, text="text_a"),
}
