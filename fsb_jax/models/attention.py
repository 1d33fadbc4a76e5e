"""Attention: one entry with a fast path and a reference path, and the multi-head module around it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models.attention_blocks import LONG, attend_in_blocks
from fsb_jax.models.cache import KeyValues
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
    key: `[batch, key, kv_heads, head_dim]`; each of its heads serves a group of the queries'.
    value: `[batch, key, kv_heads, head_dim]`.
    mask: who sees whom.
    scale: multiplies the scores.
    bias: added to them, `[batch or 1, heads, query, key]`.
    implementation: "auto", "reference", "xla" or "cudnn". "auto" takes `jax.nn.dot_product_attention` for 16-bit
      types, whose scores it makes in float32, wherever it computes the same function: it has no dropout, no float64
      softmax and one way to fill masked scores. In float32 the reference does the same and keeps less for the backward
      pass. Long rows where nothing is hidden, added or dropped it takes in blocks, see `attention_blocks.py`.
    dropout_rate: on the probabilities, where `dropout_rng` is given.
    dropout_rng: key of that dropout, None for none.

  Returns:
    `[batch, query, heads, head_dim]`.
  """
  dropping = dropout_rng is not None and dropout_rate > 0
  if implementation == "auto":
    long = query.shape[1] * key.shape[1] >= LONG
    if long and bias is None and not dropping and mask.allowed(query.shape[1], key.shape[1]) is None:
      return attend_in_blocks(query, key, value, scale=scale)
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
  probabilities = probabilities.astype(value.dtype)
  if value.shape[2] == query.shape[2]:
    return jnp.matmul(probabilities, value.swapaxes(1, 2)).swapaxes(1, 2)
  grouped = probabilities.reshape(probabilities.shape[0], value.shape[2], -1, *probabilities.shape[2:])
  result = jnp.einsum("bngqk,bknd->bqngd", grouped, value)
  return result.reshape(*query.shape[:-1], value.shape[-1])


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
  batch, queries, heads, width = query.shape
  # In 16 bits products of long vectors overflow.
  wide = at_least_float32(query.dtype)
  if key.shape[2] == heads:
    # As this, XLA lays a query's scores side by side; as an einsum a key's, which softmax reads in half the speed.
    scores = jnp.matmul(query.swapaxes(1, 2), key.transpose(0, 2, 3, 1), preferred_element_type=wide)
  else:
    grouped = query.reshape(batch, queries, key.shape[2], -1, width)
    scores = jnp.einsum("bqngd,bknd->bngqk", grouped, key, preferred_element_type=wide)
    scores = scores.reshape(batch, heads, queries, -1)
  scores = scores * scale
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
    heads, axis = (config.kv_heads, "kv_heads") if name in ("key", "value") else (config.num_heads, "heads")
    return dense(config, (heads, config.head_dim), ("embed", axis, "kv"), name, bias=config.attention_bias)

  @nn.compact
  def __call__(
    self, hidden: jax.Array, context, cache: KeyValues | None = None
  ) -> tuple[jax.Array, jax.Array | None, KeyValues | None]:
    """Attends.

    Args:
      hidden: `[batch, length, embed]`.
      context: see `transformer.Context`.
      cache: of the tokens before; None where there are none.

    Returns:
      What `hidden` became, of its shape; the probabilities before dropout, where `context` asks for them; and the cache
      with these tokens in it, where there is one. To make the probabilities again costs nothing in a compiled function.
    """
    config = self.config
    projections = {name: self.projection(name) for name in ("query", "key", "value")}
    query, key, value = (_split(projections[name](hidden)) for name in ("query", "key", "value"))
    scale, bias = self.scores(query, key, projections, context)
    positions, shared = config.positions, context.shared
    query, key = positions.rotate(query, shared), positions.rotate(key, shared)
    value = positions.rotate_values(value, shared)
    if cache is not None:
      cache = cache.written(key, value, context.mask.offset)
      key, value = cache.read(key.dtype)
    result, probabilities = self.attend(
      hidden, query, key, value, context, scale=scale, bias=bias, **self.dropout(context)
    )
    return self.out(result), probabilities, cache

  def dropout(self, context) -> dict[str, Any]:
    """The arguments of `attend` that say what is dropped."""
    rate = self.config.dropout.attention
    dropping = not context.deterministic and rate > 0
    return {"dropout_rate": rate, "dropout_rng": self.make_rng("dropout") if dropping else None}

  def out(self, heads: jax.Array) -> jax.Array:
    """Projects `[batch, length, heads, head_dim]` back to `[batch, length, embed]`."""
    config, axes = self.config, ("heads", "kv", "embed")
    bias = config.attention_bias if config.attention_out_bias is None else config.attention_out_bias
    return dense(config, (config.embed_dim,), axes, "out", inputs=2, bias=bias)(heads)

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
    scale = self.config.score_scale
    return 1.0 / math.sqrt(self.config.head_dim) if scale is None else scale, None


class CrossAttention(Attention):
  """Attention of a decoder to what its encoder made, `context.encoded`; positions play no part."""

  @nn.compact
  def __call__(
    self, hidden: jax.Array, context, cache: KeyValues | None = None
  ) -> tuple[jax.Array, jax.Array | None, KeyValues]:
    """See the base class; `cache` holds the encoder's keys and values, which are made where there is none.

    A row of theirs may serve several rows of `hidden`, one after the other: beams of one text.
    """
    query = _split(self.projection("query")(hidden))
    # Made in any case, so that the parameters are there; where there is a cache, XLA drops what nobody reads.
    key, value = (self.projection(name) for name in ("key", "value"))
    if cache is None:
      cache = KeyValues.of(_split(key(context.encoded)), _split(value(context.encoded)))
    key, value = cache.read(query.dtype)
    rows, beams = query.shape[0], query.shape[0] // key.shape[0]
    query = query.reshape(key.shape[0], -1, *query.shape[2:])
    context = context.replace(mask=context.encoded_mask)
    scale, _ = Attention.scores(self, query, key, None, context)
    result, probabilities = self.attend(
      hidden, query, key, value, context, scale=scale, bias=None, **self.dropout(context)
    )
    if probabilities is not None:
      batch, heads, _, keys = probabilities.shape
      folded = probabilities.reshape(batch, heads, beams, -1, keys).swapaxes(1, 2)
      probabilities = folded.reshape(rows, heads, -1, keys)
    return self.out(result.reshape(rows, -1, *result.shape[2:])), probabilities, cache


def _split(heads: jax.Array) -> jax.Array:
  return nn.with_logical_constraint(
    heads, ("activation_batch", "activation_length", "activation_heads", "activation_kv")
  )
