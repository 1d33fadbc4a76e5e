"""Attention masks as a small description, made dense only where an attention path needs it."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

Fill = Literal["finfo_min", "minus_10000", "plus_1", "replaced", "zeroed"]

_ADDED = {"minus_10000": -10000.0, "plus_1": 1.0}


@struct.dataclass
class Mask:
  """Who may attend to whom; every part given must allow a pair.

  Attributes:
    keys: `[batch, key]`, true for real tokens.
    queries: `[batch, query]`, true for tokens that see anything.
    segments: `[batch, length]` ids; tokens see their own segment only (packed rows).
    dense: `[batch, query, key]`, true where allowed.
    offset: int scalar, keys before the first query; None where the queries are the last ones of the keys.
    causal: a query sees keys up to its own index.
    window: a query sees keys at most this far away on either side.
    reach: int scalar, the same once more and narrower, for a layer of a stack whose windows differ.
    everywhere: int `[batch, count]`, positions of real tokens that see all and are seen by all whatever the window; one
      beyond the row is none.
    fill: what happens to a masked score. "finfo_min" adds the smallest finite number, which swallows the score, so that
      a row with nothing to see attends evenly. "minus_10000" adds -10000, so that such a row still follows its scores.
      "plus_1" adds 1, so that masked scores gain.
      "replaced" puts the smallest finite number in the score's place: such a row attends evenly, and trains nothing.
      "zeroed" gives such a row an output of zero.
  """

  keys: jax.Array | None = None
  queries: jax.Array | None = None
  segments: jax.Array | None = None
  dense: jax.Array | None = None
  reach: jax.Array | None = None
  everywhere: jax.Array | None = None
  offset: jax.Array | None = None
  causal: bool = struct.field(pytree_node=False, default=False)
  window: int | None = struct.field(pytree_node=False, default=None)
  fill: Fill = struct.field(pytree_node=False, default="finfo_min")

  def allowed(self, queries: int, keys: int) -> jax.Array | None:
    """Boolean `[batch or 1, 1, queries, keys]`, or None where everything is allowed."""
    parts = []
    if self.keys is not None:
      parts.append(self.keys[:, None, None, :].astype(bool))
    if self.queries is not None:
      parts.append(self.queries[:, None, :, None].astype(bool))
    if self.segments is not None:
      parts.append((self.segments[:, :, None] == self.segments[:, None, :])[:, None])
    if self.dense is not None:
      parts.append(self.dense[:, None].astype(bool))
    before = keys - queries if self.offset is None else self.offset
    distance = jnp.arange(keys)[None, :] - (jnp.arange(queries) + before)[:, None]
    if self.causal:
      parts.append((distance <= 0)[None, None])
    if self.window is not None:
      within = (jnp.abs(distance) <= (self.window if self.reach is None else self.reach))[None, None]
      if self.everywhere is not None:
        chosen = self.is_everywhere(keys)
        within = within | chosen[:, None, :, None] | chosen[:, None, None, :]
      parts.append(within)
    if not parts:
      return None
    result = parts[0]
    for part in parts[1:]:
      result = result & part
    return result

  def is_everywhere(self, length: int) -> jax.Array:
    """Boolean `[batch, length]`: the tokens of `everywhere`."""
    return (self.everywhere[:, :, None] == jnp.arange(length)).any(axis=1)

  def real(self) -> jax.Array | None:
    """`[batch, key]`, which tokens are seen at all; None where all are, causality apart."""
    return self.keys if self.dense is None else self.dense.any(axis=-2)

  def bias(self, queries: int, keys: int, dtype) -> jax.Array | None:
    """What is added to scores, `[batch or 1, 1, queries, keys]` of `dtype`, or None where everything is allowed.

    Added, as the originals do, and not put in the scores' place: in a row with nothing to see the gradient then still
    reaches queries and keys.
    """
    allowed = self.allowed(queries, keys)
    if allowed is None:
      return None
    masked = _ADDED.get(self.fill, jnp.finfo(dtype).min)
    return jnp.where(allowed, 0, masked).astype(dtype)

  def apply(self, scores: jax.Array) -> jax.Array:
    """Masks scores `[batch, heads, query, key]` by the fill rule."""
    if self.fill == "replaced":
      allowed = self.allowed(*scores.shape[-2:])
      return scores if allowed is None else jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    bias = self.bias(*scores.shape[-2:], scores.dtype)
    return scores if bias is None else scores + bias

  def apply_to_probabilities(self, probabilities: jax.Array) -> jax.Array:
    """What the fill rule still asks of the softmax's result, same shape as the scores."""
    allowed = self.allowed(*probabilities.shape[-2:])
    if self.fill != "zeroed" or allowed is None:
      return probabilities
    return jnp.where(allowed, probabilities, 0.0)


def mask_from_attention_mask(attention_mask: jax.Array | None, fill: Fill) -> Mask:
  """A `Mask` from what users pass: `[batch, length]` of real tokens, or `[batch, query, key]` of allowed pairs.

  Where the fill is "replaced" or "zeroed", tokens that are not real see nothing, either.
  """
  if attention_mask is None:
    return Mask(fill=fill)
  if attention_mask.ndim == 2:
    return Mask(keys=attention_mask, queries=attention_mask if fill in ("replaced", "zeroed") else None, fill=fill)
  if attention_mask.ndim == 3:
    return Mask(dense=attention_mask, fill=fill)
  raise ValueError(
    f"attention_mask has shape {attention_mask.shape}; give [batch, length] or [batch, query, key] with 1 for visible"
  )


def prefix_mask(attention_mask: jax.Array | None, token_type_ids: jax.Array, fill: Fill) -> Mask:
  """Everything sees the tokens of type 0; those of type 1 are seen from themselves on (Dong et al. 2019, UniLM).

  Args:
    attention_mask: `[batch, length]` of real tokens, `[batch, query, key]` of allowed pairs (used as it is), or None.
    token_type_ids: `[batch, length]`, 0 and 1.
    fill: see `Mask`.
  """
  if attention_mask is not None and attention_mask.ndim == 3:
    return mask_from_attention_mask(attention_mask, fill)
  place = jnp.cumsum(token_type_ids, axis=1)
  return Mask(
    keys=attention_mask, queries=attention_mask, dense=place[:, None, :] <= place[:, :, None], fill=fill
  )
