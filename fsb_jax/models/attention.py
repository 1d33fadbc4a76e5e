"""Attention: one entry with a fast path and a reference path, and the multi-head module around it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32, dense, softmax
from fsb_jax.models.masks import Mask


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: Mask,
  *,
  scale: float,
  bias: jax.Array | None = None,
  implementation: str = "auto",
  dropout_rate: float = 0.0,
  dropout_rng: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention.

  Args:
    query: `[batch, query, heads, head_dim]`.
    key: `[batch, key, heads, head_dim]`.
    value: `[batch, key, heads, head_dim]`.
    mask: who sees whom.
    scale: multiplies the scores.
    bias: added to them, `[batch or 1, heads, query, key]`.
    implementation: "auto", "reference", "xla" or "cudnn". "auto" takes `jax.nn.dot_product_attention` for 16-bit
      types, whose scores it makes in float32, wherever it computes the same function: it has no dropout, no float64
      softmax and one way to fill masked scores. In float32 the reference does the same and keeps less for the backward
      pass.
    dropout_rate: on the probabilities, where `dropout_rng` is given.
    dropout_rng: key of that dropout, None for none.

  Returns:
    `[batch, query, heads, head_dim]`.
  """
  dropping = dropout_rng is not None and dropout_rate > 0
  if implementation == "auto":
    # On CPU jax.nn.dot_product_attention has no float16 either.
    lacking = query.dtype == jnp.float16 and jax.default_backend() == "cpu"
    narrow = query.dtype.itemsize < 4 and not lacking
    implementation = "xla" if narrow and mask.fill == "finfo_min" and not dropping else "reference"
  if implementation != "reference":
    if dropping or mask.fill != "finfo_min" or query.dtype == jnp.float64:
      raise ValueError(
        f"attention={implementation!r} has no dropout, no float64 and only the finfo_min fill; "
        "use 'auto' or 'reference'"
      )
    lengths = query.shape[1], key.shape[1]
    if implementation == "cudnn":
      # It takes a bias in the activations' dtype only, and bfloat16 cannot hold the fill.
      masking = {"mask": mask.allowed(*lengths), "bias": bias if bias is None else bias.astype(query.dtype)}
    else:
      both = [x for x in (bias, mask.bias(*lengths, jnp.float32)) if x is not None]
      masking = {"bias": sum(both[1:], start=both[0]) if both else None}
    return jax.nn.dot_product_attention(query, key, value, **masking, scale=scale, implementation=implementation)
  probabilities = attention_probabilities(query, key, mask, scale=scale, bias=bias)
  probabilities = dropped(probabilities, dropout_rate, dropout_rng)
  return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value)


def dropped(probabilities: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
  """Dropout where there is a key for it."""
  if rng is None or rate == 0:
    return probabilities
  keep = jax.random.bernoulli(rng, 1.0 - rate, probabilities.shape)
  return jnp.where(keep, probabilities / (1.0 - rate), 0.0)


def attention_probabilities(
  query: jax.Array, key: jax.Array, mask: Mask, *, scale: float, bias: jax.Array | None = None
) -> jax.Array:
  """How much every query takes of every key, `[batch, heads, query, key]` in at least float32; see `attend`."""
  scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * scale
  if bias is not None:
    scores = scores + bias
  scores = mask.apply(scores.astype(at_least_float32(scores.dtype)))
  return mask.apply_to_probabilities(softmax(scores))


def by_offset(x: jax.Array) -> jax.Array:
  """Scores of pairs from scores of offsets: `y[..., i, j] = x[..., i, j - i + queries - 1]`, without a gather.

  Args:
    x: `[..., queries, queries + keys - 1]`, the last axis from offset `1 - queries` on.

  Returns:
    `[..., queries, keys]`.
  """
  queries, offsets = x.shape[-2:]
  if queries == 1:
    return x
  # In the rows laid end to end, (i, j) stands at i * (offsets - 1) + j + queries - 1.
  flat = x.reshape(*x.shape[:-2], -1)[..., queries - 1 : queries - 1 + queries * (offsets - 1)]
  return flat.reshape(*x.shape[:-1], offsets - 1)[..., : offsets - queries + 1]


class Attention(nn.Module):
  """Multi-head self-attention with separate query, key, value and out projections."""

  config: Any

  def projection(self, name: str) -> nn.Module:
    """The projection called `name` to heads, `[..., embed] -> [..., heads, head_dim]`."""
    config = self.config
    return dense(config, (config.num_heads, config.head_dim), ("embed", "heads", "kv"), name)

  @nn.compact
  def __call__(self, hidden: jax.Array, context) -> tuple[jax.Array, jax.Array | None]:
    """Maps `[batch, length, embed]` to the same shape; also returns the probabilities where `context` asks for them.

    These are made again, before dropout, which costs nothing in a compiled function.
    """
    config = self.config
    projections = {name: self.projection(name) for name in ("query", "key", "value")}
    query, key, value = (
      nn.with_logical_constraint(
        project(hidden), ("activation_batch", "activation_length", "activation_heads", "activation_kv")
      )
      for project in projections.values()
    )
    scale, bias = self.scores(query, key, projections, context)
    positions, shared = config.positions, context.shared
    query, key = positions.rotate(query, shared), positions.rotate(key, shared)
    value = positions.rotate_values(value, shared)
    dropping = not context.deterministic and config.dropout.attention > 0
    dropout = dict(
      dropout_rate=config.dropout.attention, dropout_rng=self.make_rng("dropout") if dropping else None
    )
    result, probabilities = self.attend(hidden, query, key, value, context, scale=scale, bias=bias, **dropout)
    return dense(config, (config.embed_dim,), ("heads", "kv", "embed"), "out", inputs=2)(result), probabilities

  def attend(self, hidden, query, key, value, context, *, scale, bias, **dropout) -> tuple[jax.Array, jax.Array | None]:
    """The function `attend` and, where `context` asks for them, the probabilities; `hidden` is what was projected."""
    implementation = self.config.run.attention
    result = attend(
      query, key, value, context.mask, scale=scale, bias=bias, implementation=implementation, **dropout
    )
    if not context.output_attentions:
      return result, None
    return result, attention_probabilities(query, key, context.mask, scale=scale, bias=bias)

  def scores(self, query, key, projections, context) -> tuple[float, jax.Array | None]:
    """What multiplies the scores, and what is added to them."""
    return 1.0 / math.sqrt(self.config.head_dim), None
