"""What each kind of task asks of a model about its examples, and how the answers are scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fsb_jax.encodings import asked_positions, mask_words
from fsb_jax.tasks.metrics import accuracy, in_order, majority_baseline, predicted_labels

# The results of `evaluate.scored_batches`.
Results = Sequence[Mapping[str, np.ndarray]]


class Question(Protocol):
  """A kind of question.

  Attributes:
    head: of the model that answers.
    objective: that trains it, one of `losses.OBJECTIVES`.
    features: of the rows that it reads.
    padding: of those where it is not the tokenizer's.
    label_names: names of the head's outputs; none where they are not labels.
    label_slice: `(start, stop)`, the task's own outputs among them.
    best_in: the score that a step is best in, where nothing else is asked for.
    score_names: what `scores` gives.
    answered: whether the right answers are known.
  """

  head: str
  objective: str
  features: tuple[str, ...]
  padding: Mapping[str, int]
  label_names: tuple[str, ...]
  label_slice: tuple[int, int]
  best_in: str
  score_names: tuple[str, ...]
  answered: bool

  def arrays(self) -> dict[str, np.ndarray]:
    """What decides the answers."""

  def ask(self, batch: dict[str, np.ndarray], rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
    """The batch of these rows with what else the model reads, and the right answers as `labels`."""

  def scores(self, results: Results, loss: float) -> dict[str, float]:
    """The scores of all rows of a split, each in one of the results; `loss` is that of all of them."""

  def predictions(self, results: Results) -> list[dict[str, Any]]:
    """What the model answered to every example of a split, in its order, by name; hidden words have none."""


@dataclasses.dataclass(frozen=True)
class Classes:
  """Asks for the class of each text.

  Attributes:
    labels: int32 `[examples]`, -1 in a split without labels.
    label_names: see `Question`.
    label_slice: see `Question`.
  """

  labels: np.ndarray
  label_names: tuple[str, ...]
  label_slice: tuple[int, int]

  head = "sequence_classification"
  objective = "sequence_classification"
  features = ("input_ids", "token_type_ids")
  padding = {}
  best_in = "accuracy"
  score_names = ("accuracy", "majority_baseline")

  @property
  def answered(self) -> bool:
    """See `Question`."""
    return bool((self.labels >= 0).all())

  def arrays(self) -> dict[str, np.ndarray]:
    """See `Question`."""
    return {"labels": self.labels}

  def options(self, example: int) -> Sequence[str]:
    """The names of the task's labels."""
    del example
    return self.label_names[slice(*self.label_slice)]

  def ask(self, batch: dict[str, np.ndarray], rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
    """The batch of these examples with `labels` `[rows]`."""
    del epoch
    return {**batch, "labels": self.labels[rows]}

  def scores(self, results: Results, loss: float) -> dict[str, float]:
    """See `scores_of_choices`."""
    del loss
    return scores_of_choices(results, self.label_slice)

  def predictions(self, results: Results) -> list[dict[str, Any]]:
    """See `predictions_of_choices`."""
    probabilities, _ = choices_in_order(results, self.label_slice, len(self.labels))
    return predictions_of_choices(probabilities, self.options)


@dataclasses.dataclass(frozen=True)
class HiddenWords:
  """Hides words and asks for them; other ones in every epoch.

  Attributes:
    seed: of what is hidden.
    mask_id: id of the mask token.
    replacements: ids that may stand in a token's place.
  """

  seed: int
  mask_id: int
  replacements: np.ndarray

  head = "masked_lm"
  objective = "masked_lm"
  features = ("input_ids", "token_type_ids", "word_ids")
  padding = {}
  label_names = ()
  label_slice = (0, 0)
  best_in = "loss"
  score_names = ("accuracy", "perplexity", "masked_tokens")
  answered = True

  def arrays(self) -> dict[str, np.ndarray]:
    """See `Question`; the seed decides too."""
    return {"mask_id": np.array(self.mask_id), "replacements": self.replacements}

  def ask(self, batch: dict[str, np.ndarray], rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
    """The batch of these examples with words hidden, `masked_lm_positions` and their `labels` `[rows, asked]`."""
    batch = dict(batch)
    word_ids = batch.pop("word_ids")
    hidden = [
      mask_words(
        *row, seed=self.seed, epoch=epoch, example=int(index), mask_id=self.mask_id, replacements=self.replacements
      )
      for index, *row in zip(rows, batch["input_ids"], word_ids)
    ]
    batch["input_ids"], labels = map(np.stack, zip(*hidden))
    batch["masked_lm_positions"], batch["labels"] = asked_positions(labels)
    return batch

  def scores(self, results: Results, loss: float) -> dict[str, float]:
    """`accuracy` over the hidden words, `perplexity`, and how many were hidden, `masked_tokens`."""
    asked = [result["labels"] >= 0 for result in results]
    targets = np.concatenate([result["labels"][each] for result, each in zip(results, asked)])
    predictions = np.concatenate([result["predictions"][each] for result, each in zip(results, asked)])
    return {
      **accuracy(targets, predictions), "perplexity": float(np.exp(loss)), "masked_tokens": len(targets)
    }  # fmt: skip


def scores_of_choices(results: Results, label_slice: tuple[int, int]) -> dict[str, float]:
  """The `accuracy` of choices, and `majority_baseline`, what always choosing the most common one would get.

  Args:
    results: with `logits` `[rows, choices]` and `labels` `[rows]`.
    label_slice: `(start, stop)`, the task's own choices among them.
  """
  labels = np.concatenate([result["labels"] for result in results])
  predictions = np.concatenate([predicted_labels(result["logits"], label_slice) for result in results])
  return {**accuracy(labels, predictions), "majority_baseline": majority_baseline(labels)}


def choices_in_order(
  results: Results, label_slice: tuple[int, int], num_examples: int
) -> tuple[np.ndarray, np.ndarray]:
  """How likely each choice is, and which is right, in the order of the examples.

  Args:
    results: with `example_ids` and `labels` `[rows]`, and `logits` `[rows, choices]`, in any order.
    label_slice: `(start, stop)`, the task's own choices among them.
    num_examples: how many examples there are.

  Returns:
    Probabilities, float64 `[examples, stop - start]`, 0 beyond an example's own choices; and the place of the right
    one, int64 `[examples]`, negative in a split without labels.
  """
  first, last = label_slice
  batches = []
  for result in results:
    logits = np.full((len(result["labels"]), last - first), -np.inf)
    # Short rows have no room for as many options as the longest list.
    asked = result["logits"][:, first:last]
    logits[:, : asked.shape[1]] = asked
    batches.append({"example_ids": result["example_ids"], "labels": result["labels"], "logits": logits})
  found = in_order(batches, num_examples)
  scores = np.exp(found["logits"] - found["logits"].max(axis=-1, keepdims=True))
  labels = found["labels"].astype(np.int64)
  return scores / scores.sum(axis=-1, keepdims=True), np.where(labels >= 0, labels - first, labels)


def predictions_of_choices(probabilities: np.ndarray, options: Callable[[int], Sequence[str]]) -> list[dict[str, Any]]:
  """Every example's likeliest choice in words, `prediction`, and how likely it is, `score`.

  Args:
    probabilities: see `choices_in_order`.
    options: an example's choices in words.
  """
  places = probabilities.argmax(axis=-1)
  return [
    {"prediction": options(i)[place], "score": round(float(probabilities[i, place]), 6)}
    for i, place in enumerate(places)
  ]
