"""Metrics of classification tasks, with SeqIO's signatures."""

from collections.abc import Sequence

import numpy as np

from fsb_jax.errors import UserError


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


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Share of the predictions that equal their target, under the key `accuracy`.

  Raises:
    UserError: there is nothing to score, or the targets have no labels.
  """
  targets, predictions = np.asarray(targets), np.asarray(predictions)
  if targets.shape != predictions.shape or not targets.size:
    raise UserError(f"Accuracy needs as many predictions as targets; got {predictions.shape} for {targets.shape}.")
  if (targets < 0).any():
    raise UserError("Accuracy needs labels, and this split is published without.")
  return {"accuracy": float(np.mean(targets == predictions))}
