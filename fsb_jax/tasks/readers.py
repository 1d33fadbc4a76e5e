"""The file formats of published sets, row by row: SQuAD, C3, ChID, CoNLL and the tables of tags."""

from collections.abc import Iterator, Sequence

from fsb_jax.encodings import entities_of_tags
from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, Row, read_json, read_json_lines, read_lines, read_table


def read_squad(file: DataFile) -> Iterator[Row]:
  """Yields the questions of a file of SQuAD's form, each with its passage.

  Fields: the question's own (`id`, `question`, `answers`, ...) and `context`. Rajpurkar et al. 2016,
  https://arxiv.org/abs/1606.05250.
  """
  content = read_json(file)
  documents = content.get("data") if isinstance(content, dict) else None
  if not isinstance(documents, list):
    raise UserError(f"{file}: must be one JSON object with a list 'data', as SQuAD's files are.")
  for number, document in enumerate(documents):
    paragraphs = _list_of(document, "paragraphs", f"{file}, document {number}")
    for paragraph in paragraphs:
      place = f"{file}, document {number}"
      for question in _list_of(paragraph, "qas", place):
        where = f"{place}, question {question.get('id') if isinstance(question, dict) else question!r}"
        if not isinstance(question, dict) or "context" not in paragraph:
          raise UserError(f"{where}: a paragraph must have a 'context' and questions that are JSON objects.")
        yield where, {**question, "context": paragraph["context"]}


def read_c3(file: DataFile) -> Iterator[Row]:
  """Yields the questions of a C3 file: `document` (its id), `context` (a list of lines), `question`, `choice`, ....

  Sun et al. 2020, https://arxiv.org/abs/1904.09679.
  """
  content = read_json(file)
  if not isinstance(content, list):
    raise UserError(f"{file}: must be a JSON list of [lines, questions, id], as C3's files are.")
  for number, document in enumerate(content):
    if not isinstance(document, list) or len(document) < 2 or not isinstance(document[1], list):
      raise UserError(f"{file}, document {number}: must be [lines, questions, id].")
    for position, question in enumerate(document[1]):
      if not isinstance(question, dict):
        raise UserError(f"{file}, document {number}, question {position}: must be a JSON object.")
      fields = {**question, "context": document[0], "document": document[2] if len(document) > 2 else None}
      yield f"{file}, document {number}, question {position}", fields


def read_chid(file: DataFile, answers: DataFile | None) -> Iterator[Row]:
  """Yields the blanks of a ChID file.

  Fields: `id` (`#idiom000378#`), `content` (the passage with it), `candidates`, `answer`, and `line`, which line of the
  file it stands in.

  Zheng et al. 2019, https://arxiv.org/abs/1906.01265.

  Args:
    file: lines of `candidates` and `content`, a list of passages.
    answers: the right candidate of every blank; None where there are none.
  """
  right = read_json(answers) if answers else {}
  if not isinstance(right, dict):
    raise UserError(f"{answers}: must be one JSON object from blanks to the numbers of candidates.")
  for line, (where, fields) in enumerate(read_json_lines(file)):
    for content in _list_of(fields, "content", where):
      for part in str(content).split("#")[1::2]:
        blank = f"#{part}#"
        if not part.startswith("idiom"):
          continue
        if answers and blank not in right:
          raise UserError(f"{where}: {answers} has no answer for {blank}; fetch both files again.")
        yield where, {
          "id": blank, "content": content, "candidates": fields.get("candidates"), "answer": right.get(blank),
          "line": line,
        }  # fmt: skip


def read_tags(file: DataFile, labels: Sequence[str]) -> Iterator[Row]:
  """Yields the sentences of a tagged file: `tokens`, `tags` and `entities`, `(label, start, end)` in tokens.

  A line of the file is a token and its tag, and blank lines part sentences (CoNLL's form); or it is a sentence, in a
  table with the columns text_a and label, where spaces part tokens. Tags are BIO, or BMES or BIOES where one of the
  file's has E, M or S.

  Raises:
    UserError: a tag is of another form or has a label that is none of `labels`; the message names file and line.
  """
  sentences = list(_tagged_table(file) if file.suffix == ".tsv" and _is_table(file) else _tagged_lines(file))
  known = {"O", *(f"{prefix}-{label}" for prefix in "BIMES" for label in labels)}
  for where, tokens, tags, lines in sentences:
    if len(tokens) != len(tags):
      raise UserError(f"{where}: has {len(tokens)} tokens but {len(tags)} tags; give one for each.")
    if not known.issuperset(tags):
      position = next(number for number, tag in enumerate(tags) if tag not in known)
      place = lines[position] if lines else where
      raise UserError(
        f"{place}: unknown tag {tags[position]!r}; tags are O, or one of B, I, M, E, S before -{', -'.join(labels)}."
      )
  # Weibo's files write after each character its place in the word.
  numbered = all(len(token) == 2 and token[1].isdigit() for _, tokens, _, _ in sentences for token in tokens)
  scheme = "bioes" if any(tag[0] in "EMS" for _, _, tags, _ in sentences for tag in tags) else "bio"
  for where, tokens, tags, _ in sentences:
    entities = entities_of_tags(["I" + tag[1:] if tag.startswith("M-") else tag for tag in tags], scheme)
    if numbered:
      tokens = [token[0] for token in tokens]
    yield where, {"tokens": tokens, "tags": tags, "entities": entities}


def _is_table(file: DataFile) -> bool:
  first = next(read_lines(file), ("", ""))[1]
  return "text_a" in first.split("\t")


def _tagged_table(file: DataFile) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
  for where, fields in read_table(file):
    if "label" not in fields:
      raise UserError(f"{where}: no field 'label'; it has {', '.join(fields)}.")
    yield where, fields["text_a"].split(), fields["label"].split(), []


def _tagged_lines(file: DataFile) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
  tokens, tags, lines = [], [], []
  for where, line in read_lines(file):
    if line.strip() and not line.startswith("-DOCSTART-"):
      token, *rest = line.split("\t") if "\t" in line else line.rsplit(None, 1)
      if not rest:
        raise UserError(f"{where}: must be a token and its tag, parted by a space or a tab; it is {line!r}.")
      tokens.append(token)
      tags.append(rest[-1].strip())
      lines.append(where)
    elif tokens:
      yield lines[0], tokens, tags, lines
      tokens, tags, lines = [], [], []
  if tokens:
    yield lines[0], tokens, tags, lines


def _list_of(fields, name: str, where: str) -> list:
  value = fields.get(name) if isinstance(fields, dict) else None
  if not isinstance(value, list):
    raise UserError(f"{where}: must have a list {name!r}.")
  return value
