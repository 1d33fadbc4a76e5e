"""Entities of texts: what a tagger is taught about each text, and how what it finds is scored."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsb_jax import tasks
from fsb_jax.encodings import TAGGERS, Entity, encode_characters
from fsb_jax.errors import UserError
from fsb_jax.tasks.kinds import TAGGING, tagged_entities
from fsb_jax.tasks.metrics import entity_f1
from fsb_jax.training.questions import Results


@dataclasses.dataclass(frozen=True)
class Tags:
  """Asks which entities stand in each text.

  Attributes:
    head: one of `encodings.TAGGERS`.
    texts: the texts.
    entities: of each text, in characters; none of any in a split without labels.
    taught: those of them that the head can be taught: of two that overlap one.
    offsets: of each row's tokens, see `encode_characters`.
    kinds: of all entities that the head knows.
    own_kinds: `(start, stop)`, those of the task among them.
  """

  head: str
  texts: Sequence[str]
  entities: Sequence[Sequence[Entity]]
  taught: Sequence[Sequence[Entity]]
  offsets: Sequence[np.ndarray]
  kinds: tuple[str, ...]
  own_kinds: tuple[int, int]

  features = ("input_ids", "token_type_ids")
  padding = {}
  best_in = "f1"
  score_names = ("precision", "recall", "f1")

  @property
  def objective(self) -> str:
    """Every head has its own."""
    return self.head

  @functools.cached_property
  def label_names(self) -> tuple[str, ...]:
    """See `Tagger.names`."""
    return TAGGERS[self.head].names(self.kinds)

  @property
  def label_slice(self) -> tuple[int, int]:
    """The classes of the task's own kinds; that there is no entity may be answered beside."""
    first, last = (len(TAGGERS[self.head].names(self.kinds[:place])) for place in self.own_kinds)
    return first, last

  @functools.cached_property
  def label_mask(self) -> np.ndarray:
    """Which labels may be answers, bool `[labels]`."""
    return TAGGERS[self.head].label_mask(self.label_names, self.kinds[slice(*self.own_kinds)])

  @property
  def answered(self) -> bool:
    """Whether the entities are known."""
    return any(self.entities)

  def arrays(self) -> dict[str, np.ndarray]:
    """What decides the answers."""
    places = [
      (example, self.kinds.index(label), start, end)
      for example, entities in enumerate(self.taught)
      for label, start, end in entities
    ]
    return {"entities": np.array(places, np.int32).reshape(-1, 4), "offsets": np.concatenate(self.offsets)}

  def ask(self, batch: dict[str, np.ndarray], rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
    """The batch of these examples with the tagger's targets, `[rows, length]` or `[rows, length, length]`.

    `label_mask` `[rows, labels]` says which labels may be answers.
    """
    del epoch
    tagger, real = TAGGERS[self.head], batch["attention_mask"].astype(bool)
    targets = [
      tagger.targets(self.taught[row], self.texts[row], self.offsets[row], self.label_names) for row in rows
    ]
    batch = {**batch, "label_mask": np.tile(self.label_mask, (len(rows), 1))}
    for name, padding in tagger.padding.items():
      dimensions = targets[0][name].ndim
      batch[name] = np.full((len(rows), *real.shape[1:] * dimensions), padding, np.int32)
      for filled, kept, target in zip(batch[name], real, targets):
        filled[np.ix_(*[kept] * dimensions)] = target[name]
    return batch

  def found(self, results: Results) -> list[list[Entity]]:
    """The entities that the tagger found in every text."""
    entities_in, found = TAGGERS[self.head].entities, {}
    for result in results:
      said = {name: values for name, values in result.items() if name in _SAID}
      for row, example in enumerate(result["example_ids"].tolist()):
        kept = result["attention_mask"][row] > 0
        of_row = {name: values[row][kept] for name, values in said.items()}
        found[example] = entities_in(of_row, self.offsets[example], self.label_names)
    return [found[example] for example in range(len(self.texts))]

  def scores(self, results: Results, loss: float) -> dict[str, float]:
    """`precision`, `recall` and `f1` of all published entities, see `entity_f1`; those cut off are not found."""
    del loss
    return dict(entity_f1(self.entities, self.found(results)))

  def predictions(self, results: Results) -> list[dict[str, Any]]:
    """The entities found in every text, `prediction`: `label`, `start`, `end` (half-open) and `text` of each."""
    return [
      {"prediction": [{**entity._asdict(), "text": text[entity.start : entity.end]} for entity in entities]}
      for text, entities in zip(self.texts, self.found(results))
    ]


# By token, in what `models.said_by_tagger` gives.
_SAID = ("predictions", "starts", "ends", "pairs", "sureness")


def encode_tags(task, split: str, tokenizer, max_length: int) -> dict[str, list]:
  """The rows of a split as `encode_characters` gives them, with their texts and entities.

  Args:
    task: a SeqIO task of ours, of the kind `TAGGING`.
    split: which split.
    tokenizer: the checkpoint's tokenizer.
    max_length: longest row in tokens; how many entities lie beyond is told.

  Returns:
    Of every row `input_ids`, `token_type_ids`, `offsets`, `text`, `entities`, `taught`; `kinds`, all that the head
    knows; and `own_kinds`, the task's own among them.
  """
  info, examples = tasks.info(task.name), list(task.source.examples(split))
  kinds = info.label_names[slice(*info.label_slice)]
  rows = encode_characters(tokenizer, [example["text"] for example in examples], max_length=max_length)
  entities = [
    [Entity(kinds[label], start, end) for label, start, end in zip(*(example[f"entity_{name}"] for name in _PLACE))]
    for example in examples
  ]
  beyond = sum(
    entity.end > offsets.max() for of_text, offsets in zip(entities, rows["offsets"]) for entity in of_text
  )
  if beyond:
    logging.getLogger(__name__).warning(
      "%s %s: %d of %d entities end beyond TASK_FEATURE_LENGTHS of %d tokens; they count as missed",
      task.name, split, beyond, sum(map(len, entities)), max_length,
    )
  return {
    **rows,
    "text": [example["text"] for example in examples],
    "entities": entities,
    "taught": [tagged_entities(example, kinds) for example in examples],
    "kinds": [info.label_names] * len(examples),
    "own_kinds": [info.label_slice] * len(examples),
  }


_PLACE = ("labels", "starts", "ends")


def tags_of(rows: Mapping[str, Sequence], tokenizer, *, seed: int, training: bool, head: str | None) -> Tags:
  """What is asked about the rows of `encode_tags`.

  Raises:
    UserError: the head finds no entities or cannot read the rows, or there is nothing to learn.
  """
  del seed
  head = head or TAGGING.head
  if head not in TAGGERS:
    raise UserError(f"a {head} head finds no entities; HEAD may be {', '.join(TAGGERS)}")
  if head == "crf" and tokenizer.padding_side == "left":
    raise UserError("a crf head reads rows from their first token, where this tokenizer pads; choose another HEAD")
  kinds = {*rows["kinds"]}
  if len(kinds) > 1:
    raise UserError("the tasks of this mixture do not share one list of kinds of entities, so no one head serves them")
  starts, stops = zip(*rows["own_kinds"])
  question = Tags(
    head=head,
    texts=rows["text"],
    entities=rows["entities"],
    taught=rows["taught"],
    offsets=rows["offsets"],
    kinds=kinds.pop(),
    own_kinds=(min(starts), max(stops)),
  )
  if training and not question.answered:
    raise UserError("this split is published without entities, so there is nothing to learn; choose another")
  return question
