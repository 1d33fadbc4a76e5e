"""CMRC 2018 as Ubert's items: windows of a text, each with a question (Cui et al. 2019, arXiv:1810.07366).

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/examples/clue1.1.
"""

from collections.abc import Iterable, Iterator, Mapping

from fsb_jax.errors import UserError

# Characters of a row: question, window and three special tokens; and how far windows are apart.
_ROW, _STRIDE = 512, 128


def cmrc_items(documents: Iterable[Mapping]) -> list[dict]:
  """Ubert's items of the `data` of a CMRC 2018 file, see `encodings.ubert`.

  There is an item for every window of a text, of every different answer of every question; a window that holds the
  answer whole has it in its `entity_list`. The questions of a test file have answers that are none, and so as many
  items for each as made-up answers.

  Args:
    documents: `data` of a file: each with `paragraphs`, which have `context` and `qas`.

  Raises:
    UserError: a field is missing, or a question leaves no room for a text.
  """
  items = []
  for document in documents:
    try:
      for paragraph in document["paragraphs"]:
        for asked in paragraph["qas"]:
          items += _items(paragraph["context"], asked)
    except KeyError as error:
      raise UserError(f"cmrc2018, document {document.get('id', len(items))}: no field {error}") from error
  return items


def cmrc_answers(predicted: Iterable[Mapping]) -> dict[str, str]:
  """The likeliest answer to every question, over all its windows; "" where there is none.

  Args:
    predicted: items with what `decode_ubert` found.
  """
  best: dict[str, tuple[float, str]] = {}
  for item in predicted:
    for choice in item["choices"]:
      found = [(entity["score"], entity["entity_name"]) for entity in choice["entity_list"]]
      known = best.get(choice["id"], (0.0, ""))
      # The first of equal ones.
      best[choice["id"]] = max([known, *found], key=lambda each: each[0])
  return {question: text for question, (_, text) in best.items()}


def _items(context: str, asked: Mapping) -> Iterator[dict]:
  question, length = asked["question"], _ROW - len(asked["question"]) - 3
  if length < 1:
    raise UserError(f"cmrc2018, question {asked['id']}: {len(question)} characters leave no room for a text")
  different: dict[str, Mapping] = {}
  for answer in asked["answers"]:
    different.setdefault(answer["text"], answer)
  for answer in different.values():
    for start in _starts(len(context), length):
      yield {
        "task_type": "抽取任务",
        "subtask_type": "抽取式阅读理解",
        "text": context[start : start + length],
        "choices": [
          {"id": asked["id"], "entity_type": question, "label": 0, "entity_list": _entities(answer, start, length)}
        ],
        "id": 0,
      }


def _starts(characters: int, length: int) -> range:
  """Where windows begin; the last one reaches the text's end."""
  return range(0, max(characters - length, 0) + _STRIDE, _STRIDE)


def _entities(answer: Mapping, start: int, length: int) -> list[dict]:
  first = answer["answer_start"] - start
  last = first + len(answer["text"]) - 1
  if answer["answer_start"] < 0 or first < 0 or last >= length:
    return []
  return [{"entity_name": answer["text"], "entity_type": "", "entity_idx": [[first, last]]}]
