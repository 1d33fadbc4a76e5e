"""Losses that tell the pairs of a batch from all other combinations of its rows.

They know the whole batch, wherever a mesh keeps its rows; rows of weight 0 are neither asked nor an answer. Where a
batch is cut into microbatches, a row is told from those of its own microbatch alone: the sum of their gradients is not
that of the whole batch, whose loss is the harder one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fsb_jax.errors import UserError
from fsb_jax.models import cosine_similarity, pool
from fsb_jax.training.cross_entropy import cross_entropy

Batch = Mapping[str, jax.Array]


def text_losses(outputs: Any, batch: Batch) -> jax.Array:
  """Which image is each text's, of row i that of row i? -log softmax(logits_per_text)[i], `[batch]`.

  Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3. Where the image tower is frozen, the original trains
  with this half alone.
  """
  return _own_row(outputs.logits_per_text, batch)


def image_losses(outputs: Any, batch: Batch) -> jax.Array:
  """The same of the images: which text is each one's?"""
  return _own_row(outputs.logits_per_image, batch)


def _own_row(logits: jax.Array, batch: Batch) -> jax.Array:
  # A row that fills the batch up is no answer but its own, so that it has a loss, which nobody counts.
  possible = (row_weights(batch) > 0) | jnp.eye(len(logits), dtype=bool)
  return cross_entropy(jnp.where(possible, logits, -jnp.inf), jnp.arange(len(logits)))


def pair_counts(batch: Batch) -> jax.Array:
  """Weight `[batch]` of every pair at its first row: that of its second; UserError on an odd number of rows."""
  if len(batch["input_ids"]) % 2:
    raise UserError("a batch of pairs has an even number of rows, and so has every microbatch of it")
  pairs = len(batch["input_ids"]) // 2
  return jnp.concatenate([row_weights(batch)[pairs:], jnp.zeros(pairs)])


def pair_losses(outputs: Any, batch: Batch, temperature: float = 0.05) -> jax.Array:
  """Which text of the second half says the same as each of the first? At the first half's rows, `[batch]`.

  -log softmax(cos(h_i, h'_j) / temperature)[i] (Gao et al. 2021, https://arxiv.org/abs/2104.08821, equation 1).
  """
  texts = pool(outputs, batch.get("attention_mask"))
  pairs = len(texts) // 2
  cosines = cosine_similarity(texts[:pairs], texts[pairs:]) / temperature
  # Rows that fill the batch up are no answer.
  cosines = jnp.where(row_weights(batch)[pairs:] > 0, cosines, -jnp.inf)
  losses = cross_entropy(cosines, jnp.arange(pairs))
  return jnp.concatenate([losses, jnp.zeros_like(losses)])


def row_weights(batch: Batch) -> jax.Array:
  """Weight of every row, `[batch]`."""
  return batch["weights"] if "weights" in batch else jnp.ones(len(batch["input_ids"]))
