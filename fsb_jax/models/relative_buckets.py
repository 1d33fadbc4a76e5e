"""Biases of attention scores by distance, far distances sharing buckets.

Source: Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 2.1.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.models.attention import Attention, by_offset
from fsb_jax.models.positions import Positions, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBuckets(Positions):
  """A learned bias for every bucket of distances and every head, shared by a stack's layers; any length will do.

  Attributes:
    buckets: how many there are; a stack that sees both ways has half of them for either.
    max_distance: distances from it on share the last one.
  """

  buckets: int = 32
  max_distance: int = 128

  def bucket(self, distance: jax.Array, causal: bool) -> jax.Array:
    """The bucket of a key at `distance` from its query, `[...]`; with `causal` all that lies ahead has the first."""
    buckets = self.buckets if causal else self.buckets // 2
    exact = buckets // 2
    # Step by step in float32, as in PyTorch: at the edges of buckets rounding decides.
    far = np.arange(exact, max(self.max_distance, exact) + 1).astype(np.float32)
    ratio = np.log(far / np.float32(exact)) / np.float32(np.log(self.max_distance / exact))
    logarithmic = exact + (ratio * np.float32(buckets - exact)).astype(np.int64)
    table = np.concatenate([np.arange(exact), np.minimum(logarithmic, buckets - 1)])
    steps = jnp.maximum(-distance, 0) if causal else jnp.abs(distance)
    bucket = jnp.asarray(table, jnp.int32)[jnp.minimum(steps, len(table) - 1)]
    return bucket if causal else bucket + jnp.where(distance > 0, buckets, 0)

  def shared(self, config, span: Span) -> jax.Array:
    """The biases, `[1, heads, queries, keys]`."""
    causal = config.mask_kind == "causal"
    table = BucketTable(config, self.buckets, name="relative_embed")()
    if span.queries == 1 or isinstance(span.offset, jax.Array):
      distance = jnp.arange(span.keys) - span.index[:, None]
      return jnp.moveaxis(table[self.bucket(distance, causal)], -1, 0)[None]
    offsets = jnp.arange(1 - span.queries, span.keys)
    by_distance = table[self.bucket(offsets - span.offset, causal)].T
    rows = jnp.broadcast_to(by_distance[:, None], (config.num_heads, span.queries, len(offsets)))
    return by_offset(rows)[None]


class BucketTable(nn.Module):
  """The biases of `buckets` buckets."""

  config: object
  buckets: int

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns `[buckets, heads]`."""
    config, run = self.config, self.config.run
    initializer = nn.with_logical_partitioning(
      nn.initializers.normal(config.initializer_range), ("position", "heads")
    )
    return self.param("embedding", initializer, (self.buckets, config.num_heads), run.param_dtype).astype(run.dtype)


class BucketAttention(Attention):
  """Attention with the biases of `RelativeBuckets`."""

  def scores(self, query, key, projections, context) -> tuple[float, jax.Array]:
    """See the base class."""
    return super().scores(query, key, projections, context)[0], context.shared
