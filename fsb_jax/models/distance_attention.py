"""Attention by content and by distance, with biases of its own for either, that every layer shares.

Source: Dai et al. 2019, https://arxiv.org/abs/1901.02860, section 3.3: the score of a key at distance n from its query
is ((q + u) k + (q + v) r(n)) / sqrt(head_dim), r(n) a projection of a fixed code of n. What it calls memory, the hidden
states before, is here the keys and values made of them: a `cache.Cache`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.models.attention import Attention, by_offset
from fsb_jax.models.positions import Span
from fsb_jax.models.two_stream import SinusoidDistances


@struct.dataclass
class Distances:
  """What the layers of a stack share.

  Attributes:
    codes: of distances from queries to keys, falling, `[queries + keys - 1, embed]`.
    content_bias: u, `[heads, head_dim]`.
    distance_bias: v, `[heads, head_dim]`.
  """

  codes: jax.Array
  content_bias: jax.Array
  distance_bias: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedDistances(SinusoidDistances):
  """Codes of distances for `DistanceAttention`, and the biases that its layers share."""

  def shared(self, config, span: Span) -> Distances:
    """See the base class."""
    codes = jnp.asarray(self.codes(span.keys, span.keys, config.embed_dim), config.run.dtype)
    first = span.keys - span.queries - span.offset
    codes = jax.lax.dynamic_slice_in_dim(codes, first, span.queries + span.keys - 1)
    return Distances(codes, *DistanceBiases(config, name="attention_biases")())


class DistanceBiases(nn.Module):
  """The biases of content and of distance."""

  config: Any

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    """Returns both, `[heads, head_dim]`."""
    config, run = self.config, self.config.run
    initializer = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads", "kv"))
    shape = (config.num_heads, config.head_dim)
    names = ("content_bias", "distance_bias")
    return tuple(self.param(name, initializer, shape, run.param_dtype).astype(run.dtype) for name in names)


class DistanceProjection(nn.Module):
  """A projection of codes to heads, multiplied with queries."""

  config: Any

  @nn.compact
  def __call__(self, query: jax.Array, codes: jax.Array) -> jax.Array:
    """Scores `[batch, heads, query, codes]` of `[batch, query, heads, head_dim]` and `[codes, embed]`."""
    config, run = self.config, self.config.run
    heads = (config.num_heads, config.head_dim)

    def parameter(name, initializer, shape, axes):
      return self.param(name, nn.with_logical_partitioning(initializer, axes), shape, run.param_dtype).astype(run.dtype)

    normal = nn.initializers.normal(config.initializer_range)
    kernel = parameter("kernel", normal, (codes.shape[-1], *heads), ("embed", "heads", "kv"))
    bias = parameter("bias", nn.initializers.zeros_init(), heads, ("heads", "kv"))
    # In the cheaper order: for one query that is not the codes' projection first, as many as there are keys.
    scores = jnp.einsum("bqhd,ehd,re->bhqr", query, kernel, codes, optimize="optimal")
    return scores + jnp.einsum("bqhd,hd->bhq", query, bias)[..., None]


class DistanceAttention(Attention):
  """Attention with the scores above; its positions are `SharedDistances`."""

  def scores(self, query, key, projections, context) -> tuple[float, jax.Array]:
    """See the base class."""
    scale, _ = super().scores(query, key, projections, context)
    distances = context.shared
    project = DistanceProjection(self.config, name="distance")
    return scale, by_offset(project(query + distances.distance_bias, distances.codes)) * scale

  def attend(self, hidden, query, key, value, context, **how) -> tuple[jax.Array, jax.Array | None]:
    """See the base class."""
    return super().attend(hidden, query + context.shared.content_bias, key, value, context, **how)
