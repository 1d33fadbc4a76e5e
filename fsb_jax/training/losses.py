"""Losses, each as (sum, weight) per term, so that accumulation, padding and sharding agree on the mean.

The loss of a batch is the sum over terms of `sum / weight`. Weights come from the batch alone: with several
microbatches they are counted over all of them first. Rows of weight 0 (`batch["weights"]`) fill a batch up and count
for nothing. Labels as in Hugging Face: -100 is ignored.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32

Batch = Mapping[str, jax.Array]
Terms = dict[str, jax.Array]
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss of one head.

  Attributes:
    sums: (outputs, batch) -> the sum of each term.
    weights: batch -> the weight of each term.
  """

  sums: Callable[[Any, Batch], Terms]
  weights: Callable[[Batch], Terms]

  def __call__(self, outputs: Any, batch: Batch, weights: Terms | None = None) -> jax.Array:
    """The loss; `weights` are those of a larger batch that this one is a part of."""
    weights = self.weights(batch) if weights is None else weights
    return sum(value / jnp.maximum(weights[name], 1) for name, value in self.sums(outputs, batch).items())


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits)[labels] in at least float32, `[..., classes]` and valid labels `[...]` to `[...]`."""
  logits = logits.astype(at_least_float32(logits.dtype))
  # First, and not within the logsumexp alone: a small loss is no difference of two large numbers then.
  logits = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


def _kept(labels: jax.Array, batch: Batch) -> jax.Array:
  """Weight of every label: 0 where it is negative (ignored, unlabelled) or its row fills the batch up."""
  kept = (labels >= 0).astype(jnp.float32)
  if "weights" in batch:
    kept = kept * batch["weights"].reshape(-1, *(1,) * (labels.ndim - 1))
  return kept


def _class_term(name: str, label: str, logits: Callable[[Any], jax.Array]) -> Objective:
  """Cross-entropy of `batch[label]` under `logits(outputs)`."""

  def sums(outputs, batch):
    labels = batch[label]
    losses = cross_entropy(logits(outputs), jnp.maximum(labels, 0))
    # A logit of -inf at an ignored label would make 0 * inf.
    return {name: jnp.sum(jnp.where(_kept(labels, batch) > 0, losses * _kept(labels, batch), 0.0))}

  return Objective(sums, lambda batch: {name: jnp.sum(_kept(batch[label], batch))})


def _together(*parts: Objective) -> Objective:
  def merged(call):
    return {name: value for part in parts for name, value in call(part).items()}

  return Objective(
    lambda outputs, batch: merged(lambda part: part.sums(outputs, batch)),
    lambda batch: merged(lambda part: part.weights(batch)),
  )


def _span_objective() -> Objective:
  """Mean of the cross-entropies of the first and last token; positions beyond the row are ignored."""

  def inside(batch, label):
    return jnp.where(batch[label] < batch["input_ids"].shape[1], batch[label], IGNORED)

  def sums(outputs, batch):
    total = {}
    for label, logits in (("start_positions", outputs.start_logits), ("end_positions", outputs.end_logits)):
      labels = inside(batch, label)
      losses = cross_entropy(logits, jnp.maximum(labels, 0)) * _kept(labels, batch)
      total[label] = jnp.sum(losses) / 2
    return total

  def weights(batch):
    return {label: jnp.sum(_kept(inside(batch, label), batch)) for label in ("start_positions", "end_positions")}

  return Objective(sums, weights)


_classes = _class_term("classes", "labels", lambda outputs: outputs.logits)

OBJECTIVES: dict[str, Objective] = {
  "sequence_classification": _classes,
  "multiple_choice": _classes,
  "token_classification": _classes,
  "masked_lm": _class_term("masked_lm", "labels", lambda outputs: outputs.logits),
  "next_sentence": _class_term("next_sentence", "labels", lambda outputs: outputs.logits),
  "pretraining": _together(
    _class_term("masked_lm", "labels", lambda outputs: outputs.prediction_logits),
    _class_term("next_sentence", "next_sentence_label", lambda outputs: outputs.seq_relationship_logits),
  ),
  "question_answering": _span_objective(),
}
