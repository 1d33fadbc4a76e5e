"""What the losses of Ubert and UniEX are means of, see `models/extraction.py` for the heads and `losses.py` for means.

A batch holds `span_labels`, 1 where a span is one, and `span_labels_mask`, which is added to the logits: 0 where a
score counts, -10000 where it is to be no span whatever it is, 10000 where it is to be one. Masked scores have no
gradient, but they are in the mean, as in the original: https://github.com/IDEA-CCNL/Fengshenbang-LM,
fengshen/models/ubert and fengshen/models/uniex.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32

Batch = Mapping[str, jax.Array]


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log p of each label, 0 or 1, where p(1) = sigmoid(logits); elementwise, in at least float32."""
  logits = logits.astype(at_least_float32(logits.dtype))
  return jax.nn.softplus(logits) - logits * labels


def multilabel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """log(1 + Σ exp(s) over negatives) + log(1 + Σ exp(-s) over positives), over the last axis.

  It pushes every positive score above 0 and every negative one below (Su et al. 2022, https://arxiv.org/abs/2208.02955).

  Args:
    logits: `[..., classes]`.
    labels: `[..., classes]`, 1 for positives and 0 for negatives.

  Returns:
    `[...]`, in at least float32.
  """
  logits = logits.astype(at_least_float32(logits.dtype))

  def log_one_plus(scores, chosen):
    zero = jnp.zeros_like(scores[..., :1])
    return jax.nn.logsumexp(jnp.concatenate([jnp.where(chosen, scores, -jnp.inf), zero], axis=-1), axis=-1)

  return log_one_plus(logits, labels == 0) + log_one_plus(-logits, labels == 1)


def ubert_cells(outputs: Any, batch: Batch) -> jax.Array:
  """Every score on its own, `[batch, labels, start, end]`."""
  return binary_cross_entropy(*_ubert(outputs, batch))


def ubert_labels(outputs: Any, batch: Batch) -> jax.Array:
  """All spans of a label, `[batch, labels]`."""
  return multilabel_cross_entropy(*(x.reshape(*x.shape[:2], -1) for x in _ubert(outputs, batch)))


def ubert_spans(outputs: Any, batch: Batch) -> jax.Array:
  """All labels of a span, `[batch, start, end]`."""
  return multilabel_cross_entropy(*(jnp.moveaxis(x, 1, -1) for x in _ubert(outputs, batch)))


def uniex_index(outputs: Any, batch: Batch) -> jax.Array:
  """Whether a pair of tokens is a span, asked of all tokens (no `text_positions`): `[batch, start, end]`."""
  mask, labels = (batch[name][..., 0] for name in ("span_labels_mask", "span_labels"))
  return binary_cross_entropy(outputs.index_logits + mask, labels)


def uniex_types(outputs: Any, batch: Batch) -> jax.Array:
  """What a pair of the tokens at `span_positions` is, `[batch, spans, spans, types - 1]`."""
  mask, labels = (between_spans(batch[name], batch) for name in ("span_labels_mask", "span_labels"))
  return binary_cross_entropy(outputs.type_logits + mask, labels)


def between_spans(cells: jax.Array, batch: Batch) -> jax.Array:
  """`[batch, length, length, types]` without type 0 and at `span_positions`, everywhere where a batch has none."""
  positions = batch.get("span_positions")
  if positions is not None:
    cells = jnp.take_along_axis(cells, positions[:, :, None, None], axis=1)
    cells = jnp.take_along_axis(cells, positions[:, None, :, None], axis=2)
  return cells[..., 1:]


def _ubert(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Masked scores and their labels, both `[batch, labels, start, end]`."""
  return outputs.span_logits + batch["span_labels_mask"], batch["span_labels"]
