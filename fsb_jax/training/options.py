"""Questions as UniMC asks them: the answers stand in the row as options, and a masked language model chooses."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsb_jax import tasks
from fsb_jax.encodings import (
  CLUE_FORMS,
  IGNORED,
  batch_unimc,
  clue_items,
  encode_unimc,
  mask_unimc,
  only_asked_unimc,
)
from fsb_jax.errors import UserError
from fsb_jax.training.questions import Results, choices_in_order, predictions_of_choices, scores_of_choices

VIEW = "unimc"
# The largest share of a text that is hidden; one row in millions hides so many standard deviations more.
_SHARE, _DEVIATIONS = 0.3, 5


@dataclasses.dataclass(frozen=True)
class Options:
  """Asks which option of each row is right, and for words hidden behind the options; other ones in every epoch.

  Attributes:
    bounds: `option_bounds` of every example.
    right: int32 `[examples]`, which option is right, -100 in a split without labels.
    items: what every example was encoded from, with its `choice`.
    yes_token: the token that says yes.
    pad_id: id of the padding token.
    mask_id: id of the mask token.
    vocab_size: tokens that may stand in a hidden one's place.
    seed: of what is hidden.
    hides: whether words are hidden: in training.
  """

  bounds: Sequence[np.ndarray]
  right: np.ndarray
  items: Sequence[Mapping]
  yes_token: int
  pad_id: int
  mask_id: int
  vocab_size: int
  seed: int
  hides: bool

  head = "masked_lm"
  objective = VIEW
  features = ("input_ids", "token_type_ids", "position_ids", "labels")
  padding = {"position_ids": 0, "labels": IGNORED}
  label_names = ()
  best_in = "accuracy"
  score_names = ("accuracy", "majority_baseline")

  @property
  def answered(self) -> bool:
    """Whether the right options are known."""
    return bool((self.right >= 0).all())

  @property
  def label_slice(self) -> tuple[int, int]:
    """From 0 to as many as the most options of an example."""
    return 0, max(len(item["choice"]) for item in self.items)

  def arrays(self) -> dict[str, np.ndarray]:
    """What decides the answers, with the seed."""
    numbers = np.array([self.yes_token, self.pad_id, self.mask_id, self.vocab_size, self.hides])
    return {"option_bounds": np.concatenate(self.bounds), "option_label": self.right, "numbers": numbers}

  def options(self, example: int) -> Sequence[str]:
    """The options in words."""
    return self.items[example]["choice"]

  def scores(self, results: Results, loss: float) -> dict[str, float]:
    """See `scores_of_choices`."""
    del loss
    return scores_of_choices(results, self.label_slice)

  def predictions(self, results: Results) -> list[dict[str, Any]]:
    """See `predictions_of_choices`."""
    probabilities, _ = choices_in_order(results, self.label_slice, len(self.items))
    return predictions_of_choices(probabilities, self.options)

  def ask(self, batch: dict[str, np.ndarray], rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
    """The batch of these examples as `encodings.only_asked_unimc` gives it.

    A bucket's batches all ask at as many positions. A row that by chance hides more is not asked for the last of them.
    """
    real, length = batch["attention_mask"].astype(bool), batch["input_ids"].shape[1]
    encoded = {name: [row[kept] for row, kept in zip(batch[name], real)] for name in self.features}
    encoded["option_bounds"] = [self.bounds[row] for row in rows]
    encoded["option_label"] = self.right[rows]
    encoded["yes_token"] = [self.yes_token] * len(rows)
    hidden = 0
    if self.hides:
      hidden = int(np.ceil(_SHARE * length + _DEVIATIONS * np.sqrt(_SHARE * (1 - _SHARE) * length)))
      for i, row in enumerate(rows):
        encoded["input_ids"][i], encoded["labels"][i] = mask_unimc(
          encoded["input_ids"][i], encoded["labels"][i], encoded["option_bounds"][i],
          random=np.random.default_rng([self.seed, epoch, int(row)]), mask_id=self.mask_id, vocab_size=self.vocab_size,
        )  # fmt: skip
    asked = batch_unimc(encoded, pad_id=self.pad_id, length=length)
    words = (asked["labels"] != IGNORED) & ~asked["option_mask"]
    asked["labels"][words & (np.cumsum(words, axis=1) > hidden)] = IGNORED
    return only_asked_unimc(asked, min(self.label_slice[1] + hidden, length))


def encode_options(task, split: str, tokenizer, max_length: int) -> dict[str, list]:
  """The rows of a split as `encodings.encode_unimc` gives them, with `item`, what they were made of.

  A task that `encodings.CLUE_FORMS` knows has the options written there, any other the answers that its rows offer, or
  the names of its labels.

  Args:
    task: a SeqIO task of ours.
    split: which split.
    tokenizer: the checkpoint's tokenizer.
    max_length: longest row in tokens.

  Raises:
    UserError: the task is neither a classification nor a multiple choice of ours, or options do not fit.
  """
  from fsb_jax.tasks.seqio_tasks import TaskSource

  if not isinstance(task.source, TaskSource) or "label" not in task.output_features:
    raise UserError(
      f"VIEW {VIEW!r} is for the classifications and multiple choices of `fsb tasks` and of tables, which {task.name} "
      "is not"
    )
  examples, fields = task.source.examples(split), task.source.fields(split)
  mixture, _, member = task.name.partition(".")
  name = member if mixture in tasks.MIXTURES else task.name
  if name in CLUE_FORMS:
    items = clue_items(name, *_PUBLISHED_ROWS.get(name, lambda rows: (rows,))(fields))
    if len(items) != len(examples):
      raise UserError(f"task {task.name}: {len(items)} questions are asked of {len(examples)} examples; mend its file")
  else:
    names = tasks.info(name).label_names
    items = [
      {"texta": row["text"], "textb": row.get("text_pair", ""), "question": row.get("question", ""),
       "choice": row.get("options", names), "label": row["label"]}
      for row in examples
    ]  # fmt: skip
  for item, row in zip(items, examples):
    if row["label"] == tasks.NO_LABEL:
      del item["label"]
  return {**encode_unimc(tokenizer, items, max_length=max_length), "item": items}


def _c3_rows(fields: Sequence[Mapping]) -> tuple[list, None]:
  """The published form of C3's questions, each with its text."""
  return [[row["context"], [row]] for row in fields], None


def _chid_rows(fields: Sequence[Mapping]) -> tuple[list[dict], dict[str, int] | None]:
  """The published lines of ChID's blanks, and the answers where they are known."""
  lines = [list(rows) for _, rows in itertools.groupby(fields, lambda row: row["line"])]
  rows = [
    {"candidates": line[0]["candidates"], "content": list(dict.fromkeys(row["content"] for row in line))}
    for line in lines
  ]
  return rows, {row["id"]: row["answer"] for row in fields if row["answer"] is not None} or None


# Of sets whose rows hold several questions, which are read one by one.
_PUBLISHED_ROWS = {"c3": _c3_rows, "chid": _chid_rows}


def options_of(
  rows: Mapping[str, Sequence], tokenizer, *, seed: int, training: bool, head: str | None
) -> Options:
  """What is asked about the rows of `encode_options`; UserError where nothing is asked of a row with one option."""
  del head
  alone = next((number for number, item in enumerate(rows["item"]) if len(item["choice"]) < 2), None)
  if alone is not None:
    only = rows["item"][alone]["choice"][0]
    raise UserError(f"example {alone} has one option only, {only!r}; there is nothing to choose")
  return Options(
    bounds=rows["option_bounds"],
    right=np.array(rows["option_label"], np.int32),
    items=rows["item"],
    yes_token=int(rows["yes_token"][0]),
    pad_id=tokenizer.pad_token_id or 0,
    mask_id=tokenizer.mask_token_id,
    vocab_size=len(tokenizer),
    seed=seed,
    hides=training,
  )
