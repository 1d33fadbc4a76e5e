"""From a published row to what a task's examples hold."""

from fsb_jax.errors import UserError
from fsb_jax.tasks.text_task import NO_LABEL, field_of, text_of

_BLANK = "#idiom#"
_HIDDEN = "FAKE_ANSWER"


def marked_text(where: str, fields: dict) -> str:
  """The text of a CLUEWSC row with `_` around the noun and `[ ]` around the pronoun, as CLUE's baseline marks them."""
  text, target = text_of(where, fields, "text"), field_of(where, fields, "target")
  marks = []
  for number, (before, after) in enumerate((("_", "_"), ("[", "]")), 1):
    span = text_of(where, target, f"span{number}_text")
    start = field_of(where, target, f"span{number}_index")
    if type(start) is not int or text[start : start + len(span)] != span:
      raise UserError(f"{where}: {span!r} does not stand at character {start} of the text; mend span{number}_index.")
    # Of two marks at one place the one that closes comes first.
    marks += [(start, 1, before), (start + len(span), 0, after)]
  for place, _, mark in sorted(marks, reverse=True):
    text = text[:place] + mark + text[place:]
  return text


def keywords_of(where: str, fields: dict) -> str:
  """The keywords of a CSL row, parted by spaces, as CLUE's baseline gives them."""
  keywords = field_of(where, fields, "keyword")
  return text_of(where, {"keyword": " ".join(_texts(where, "keyword", keywords))}, "keyword")


def squad_example(where: str, fields: dict, split: str) -> dict:
  """An example of `READING`; a question that the passage does not answer has the answer "".

  Hidden answers, for which CMRC's test file has others at character -1, are left out.
  """
  text = text_of(where, fields, "context")
  question = text_of(where, fields, "question", may_be_empty=True)  # one of CMRC's trial file is
  if fields.get("is_impossible") in (True, "true", "True"):
    return {"text": text, "question": question, "answers": [""], "starts": [-1]}
  answers, starts = [], []
  for answer in field_of(where, fields, "answers"):
    if not isinstance(answer, dict) or type(answer.get("answer_start")) is not int:
      raise UserError(f"{where}: an answer must have 'text' and a whole number 'answer_start', not {answer!r}.")
    given, start = text_of(where, answer, "text"), answer["answer_start"]
    if start < 0 and split.startswith("test") and given.startswith(_HIDDEN):
      continue
    answers.append(given)
    starts.append(_place(text, given, start))
  return {"text": text, "question": question, "answers": answers, "starts": starts}


def _place(text: str, answer: str, start: int) -> int:
  """Where an answer stands: where its row says, else the place nearest to that, -1 where it stands nowhere."""
  if start < 0 or text[start : start + len(answer)] == answer:
    return start
  places = [place for place in range(len(text)) if text.startswith(answer, place)]
  return min(places, key=lambda place: abs(place - start), default=-1)


def choice_example(where: str, fields: dict, split: str) -> dict:
  """An example of `MULTIPLE_CHOICE` of a C3 row."""
  del split
  options = _texts(where, "choice", field_of(where, fields, "choice"))
  label = NO_LABEL
  if "answer" in fields:
    if fields["answer"] not in options:
      raise UserError(f"{where}: the answer {fields['answer']!r} is none of the choices {', '.join(options)}.")
    label = options.index(fields["answer"])
  return {
    "text": "\n".join(_texts(where, "context", field_of(where, fields, "context"))),
    "question": text_of(where, fields, "question"),
    "options": options,
    "label": label,
  }


def chid_example(where: str, fields: dict, split: str) -> dict:
  """An example of `MULTIPLE_CHOICE` of a ChID row: the question is the blank, as it is written in the text."""
  del split
  text = text_of(where, fields, "content")
  options = _texts(where, "candidates", field_of(where, fields, "candidates"))
  blank = fields["id"] if str(fields.get("id", "")).startswith("#") else _BLANK
  if blank not in text:
    raise UserError(f"{where}: the passage has no blank {blank}.")
  answer = fields.get("answer")
  if answer is not None and (type(answer) is not int or not 0 <= answer < len(options)):
    raise UserError(f"{where}: the answer must be the number of a candidate, 0 to {len(options) - 1}, not {answer!r}.")
  return {"text": text, "question": blank, "options": options, "label": NO_LABEL if answer is None else answer}


def tagged_example(where: str, fields: dict, split: str, labels: tuple[str, ...]) -> dict:
  """An example of `TAGGING` of what `read_tags` gives."""
  del split
  tokens = fields["tokens"]
  starts = [0]
  for token in tokens:
    starts.append(starts[-1] + len(token))
  return _tagging(
    text_of(where, {"text": "".join(tokens)}, "text"),
    [(label, starts[start], starts[end]) for label, start, end in fields["entities"]],
    labels,
  )


def cluener_example(where: str, fields: dict, split: str, labels: tuple[str, ...]) -> dict:
  """An example of `TAGGING` of a CLUENER row, whose spans include their last character; its test has no labels."""
  text, entities = text_of(where, fields, "text"), []
  given = {} if split == "test" else field_of(where, fields, "label")
  for label, surfaces in given.items():
    if label not in labels:
      raise UserError(f"{where}: unknown label {label!r} in 'label'; the known labels are {', '.join(labels)}.")
    for surface, places in surfaces.items():
      for start, last in places:
        if not 0 <= start <= last < len(text) or text[start : last + 1] != surface:
          raise UserError(f"{where}: {surface!r} does not stand at characters {start} to {last}; mend its place.")
        entities.append((label, start, last + 1))
  return _tagging(text, entities, labels)


def scored_example(where: str, fields: dict, split: str) -> dict:
  """An example of `SCORED_PAIRS`."""
  del split
  given = field_of(where, fields, ("score", "similarity", "label"))
  try:
    score = float(given)
  except (TypeError, ValueError):
    raise UserError(f"{where}: the score must be a number, not {given!r}.") from None
  if not 0 <= score <= 5:
    raise UserError(f"{where}: the score must be from 0 to 5, not {given}.")
  text, text_pair = (text_of(where, fields, (f"sentence{n}", f"text_{letter}")) for n, letter in ((1, "a"), (2, "b")))
  return {"text": text, "text_pair": text_pair, "score": score}


def _tagging(text: str, entities: list[tuple[str, int, int]], labels: tuple[str, ...]) -> dict:
  entities = sorted(entities, key=lambda entity: entity[1:])
  return {
    "text": text,
    "entity_labels": [labels.index(label) for label, _, _ in entities],
    "entity_starts": [start for _, start, _ in entities],
    "entity_ends": [end for _, _, end in entities],
  }


def _texts(where: str, name: str, value) -> list[str]:
  if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
    raise UserError(f"{where}: field {name!r} must be a list of texts.")
  return value
