"""Metrics of classification and tagging, with SeqIO's signatures; what they return also carries what intervals need."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics_bootstrap import Measured, averages


def predicted_labels(logits: np.ndarray, label_slice: tuple[int, int]) -> np.ndarray:
  """The label ids predicted by a head that several tasks share: the argmax inside the task's own outputs.

  Args:
    logits: `[..., labels]`.
    label_slice: `(start, stop)` of the task's own labels.

  Returns:
    Label ids among all of the head's labels, int32 `[...]`.
  """
  start, stop = label_slice
  return (start + np.argmax(np.asarray(logits)[..., start:stop], axis=-1)).astype(np.int32)


def in_order(batches: Iterable[Mapping[str, np.ndarray]], num_examples: int) -> dict[str, np.ndarray]:
  """Joins the results of batches into arrays in the order of the examples, every example once.

  Args:
    batches: from any host and in any order; `example_ids` int `[batch]`, -1 for filling rows, which are left out, and
      further arrays `[batch, ...]`.
    num_examples: how many examples there are.

  Returns:
    The further arrays, `[num_examples, ...]`.

  Raises:
    ValueError: an example is missing or there twice.
  """
  batches = list(batches)
  joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  ids = joined.pop("example_ids")
  if not np.array_equal(np.sort(ids[ids >= 0]), np.arange(num_examples)):
    raise ValueError(f"the batches do not hold each of {num_examples} examples once")
  rows = np.argsort(ids, kind="stable")[-num_examples:]
  return {name: array[rows] for name, array in joined.items()}


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> Measured:
  """Share of the predictions that equal their target, under the key `accuracy`.

  Raises:
    UserError: there is nothing to score, or the targets have no labels.
  """
  targets, predictions = _labels("Accuracy", targets, predictions)
  return averages({"accuracy": targets == predictions})


def macro_f1(targets: Sequence[int], predictions: Sequence[int]) -> Measured:
  """The mean of the labels' F1, under the key `macro_f1`; labels that neither side has are left out of it.

  Raises:
    UserError: there is nothing to score, or the targets have no labels.
  """
  targets, predictions = _labels("Macro-F1", targets, predictions)
  labels = np.union1d(targets, predictions)
  is_target, is_prediction = targets[:, None] == labels, predictions[:, None] == labels

  def of_sums(sums):
    both, true, predicted = np.split(sums, 3, axis=-1)
    counted = true + predicted > 0
    f1 = 2 * both / np.where(counted, true + predicted, 1)
    return {"macro_f1": f1.sum(axis=-1) / counted.sum(axis=-1)}

  return Measured(np.concatenate([is_target & is_prediction, is_target, is_prediction], axis=-1), of_sums)


def majority_baseline(targets: Sequence[int]) -> float:
  """The accuracy of always answering the most common label."""
  return float(np.unique(np.asarray(targets), return_counts=True)[1].max() / len(targets))


def confusion_matrix(targets: Sequence[int], predictions: Sequence[int], num_labels: int) -> np.ndarray:
  """How often each target was predicted as each label: int64 `[num_labels, num_labels]`, a row for a target."""
  cells = np.asarray(targets, np.int64) * num_labels + np.asarray(predictions, np.int64)
  return np.bincount(cells, minlength=num_labels**2).reshape(num_labels, num_labels)


def entity_f1(targets: Sequence[Iterable[Hashable]], predictions: Sequence[Iterable[Hashable]]) -> Measured:
  """`precision`, `recall` and `f1` of what the examples hold, counted over all of them (micro).

  Args:
    targets: per example what there is to find, such as (label, start, end); repetitions count once.
    predictions: per example what was found.

  Raises:
    UserError: the numbers of examples differ, or there are none.
  """
  if len(targets) != len(predictions):
    raise UserError(f"F1 needs as many predictions as targets; got {len(predictions)} for {len(targets)}.")
  pairs = [(set(target), set(prediction)) for target, prediction in zip(targets, predictions)]

  def of_sums(sums):
    right, true, predicted = np.moveaxis(sums, -1, 0)
    # Where there is nothing to find, or nothing was found, `right` is 0, and so is the score.
    shares = {"precision": right / np.maximum(predicted, 1), "recall": right / np.maximum(true, 1)}
    return {**shares, "f1": 2 * right / np.maximum(true + predicted, 1)}

  return Measured([(len(true & found), len(true), len(found)) for true, found in pairs], of_sums)


def tag_f1(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> Measured:
  """`entity_f1` of sequences of tags, read by seqeval as CoNLL's scorer does: also ill-formed tags make entities.

  Args:
    targets: per example its tags: BIO, BIOES, or BMES, whose M is an I.
    predictions: per example as many tags.

  Raises:
    UserError: an example has not as many predicted tags as target tags.
  """
  from seqeval.metrics.sequence_labeling import get_entities

  for i, (target, prediction) in enumerate(zip(targets, predictions)):
    if len(target) != len(prediction):
      raise UserError(f"Example {i} has {len(target)} tags but {len(prediction)} predicted ones; give a tag for each.")

  def read(sequences):
    return [get_entities([f"I{tag[1:]}" if tag.startswith("M-") else tag for tag in tags]) for tags in sequences]

  return entity_f1(read(targets), read(predictions))


def _labels(what: str, targets: Sequence[int], predictions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  targets, predictions = np.asarray(targets), np.asarray(predictions)
  if targets.shape != predictions.shape or not targets.size:
    raise UserError(f"{what} needs as many predictions as targets; got {predictions.shape} for {targets.shape}.")
  if (targets < 0).any():
    raise UserError(f"{what} needs labels, and this split is published without.")
  return targets, predictions
