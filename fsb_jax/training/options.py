"""Classification as UniMC asks it: the labels stand in the row as options, and a masked language model chooses."""

import dataclasses
from collections.abc import Mapping, Sequence

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

VIEW = "unimc"
# The largest share of a text that is hidden; one row in millions hides so many standard deviations more.
_SHARE, _DEVIATIONS = 0.3, 5


@dataclasses.dataclass(frozen=True)
class Options:
  """Asks which option of each row is right, and for words hidden behind the options; other ones in every epoch.

  Attributes:
    bounds: `option_bounds` of every example.
    right: int32 `[examples]`, which option is right, -100 in a split without labels.
    choices: the options of every example in words.
    yes_token: the token that says yes.
    pad_id: id of the padding token.
    mask_id: id of the mask token.
    vocab_size: tokens that may stand in a hidden one's place.
    seed: of what is hidden.
    hides: whether words are hidden: in training.
  """

  bounds: Sequence[np.ndarray]
  right: np.ndarray
  choices: Sequence[Sequence[str]]
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

  @property
  def label_slice(self) -> tuple[int, int]:
    """From 0 to as many as the most options of an example."""
    return 0, max(map(len, self.choices))

  def arrays(self) -> dict[str, np.ndarray]:
    """What decides the answers, with the seed."""
    numbers = np.array([self.yes_token, self.pad_id, self.mask_id, self.vocab_size, self.hides])
    return {"option_bounds": np.concatenate(self.bounds), "option_label": self.right, "numbers": numbers}

  def answer(self, example: int, place: int) -> str:
    """An option in words."""
    return self.choices[example][place]

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
  """The rows of a classification's split as `encodings.encode_unimc` gives them, with `choice`.

  A task that `encodings.CLUE_FORMS` knows has the options written there, any other the names of its labels.

  Args:
    task: a SeqIO task of ours.
    split: which split.
    tokenizer: the checkpoint's tokenizer.
    max_length: longest row in tokens.

  Raises:
    UserError: the task is no classification of ours, or options do not fit.
  """
  from fsb_jax.tasks.seqio_tasks import TaskSource

  if not isinstance(task.source, TaskSource) or "label" not in task.output_features:
    raise UserError(f"VIEW {VIEW!r} is for the classifications of `fsb tasks` and of tables, which {task.name} is not")
  examples, fields = task.source.examples(split), task.source.fields(split)
  mixture, _, member = task.name.partition(".")
  name = member if mixture in tasks.MIXTURES else task.name
  if name in CLUE_FORMS:
    items = clue_items(name, fields)
    if len(items) != len(examples):
      raise UserError(f"task {task.name} asks several questions a row, which VIEW {VIEW!r} cannot train yet")
  else:
    choice = tasks.info(name).label_names
    items = [
      {"texta": row["text"], "textb": row.get("text_pair", ""), "choice": choice, "label": row["label"]}
      for row in examples
    ]
  for item, row in zip(items, examples):
    if row["label"] == tasks.NO_LABEL:
      del item["label"]
  return {**encode_unimc(tokenizer, items, max_length=max_length), "choice": [item["choice"] for item in items]}


def options_of(rows: Mapping[str, Sequence], tokenizer, *, seed: int, hides: bool) -> Options:
  """What is asked about the rows of `encode_options`; UserError where nothing is asked of a row with one option."""
  alone = next((number for number, choice in enumerate(rows["choice"]) if len(choice) < 2), None)
  if alone is not None:
    raise UserError(f"example {alone} has one option only, {rows['choice'][alone][0]!r}; there is nothing to choose")
  return Options(
    bounds=rows["option_bounds"],
    right=np.array(rows["option_label"], np.int32),
    choices=rows["choice"],
    yes_token=int(rows["yes_token"][0]),
    pad_id=tokenizer.pad_token_id or 0,
    mask_id=tokenizer.mask_token_id,
    vocab_size=len(tokenizer),
    seed=seed,
    hides=hides,
  )
