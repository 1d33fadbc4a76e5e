"""What a decoder keeps of the tokens it has read, so that the next one costs one token's work.

A cache is an argument and a result, to be donated: the arrays are then written in place.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class KeyValues:
  """Keys and values of one attention, `[batch, kv_heads, length, head_dim]`: one head's tokens lie side by side."""

  key: jax.Array
  value: jax.Array

  @classmethod
  def of(cls, key: jax.Array, value: jax.Array) -> "KeyValues":
    """From `[batch, length, kv_heads, head_dim]`."""
    return cls(key.swapaxes(1, 2), value.swapaxes(1, 2))

  def written(self, key: jax.Array, value: jax.Array, offset: jax.Array) -> "KeyValues":
    """With `[batch, new, kv_heads, head_dim]` from position `offset` on, in the cache's own dtype."""

    def write(kept, new):
      return jax.lax.dynamic_update_slice_in_dim(kept, new.swapaxes(1, 2).astype(kept.dtype), offset, axis=2)

    return KeyValues(write(self.key, key), write(self.value, value))

  def read(self, dtype) -> tuple[jax.Array, jax.Array]:
    """Keys and values as `[batch, length, kv_heads, head_dim]` of `dtype`."""
    return self.key.swapaxes(1, 2).astype(dtype), self.value.swapaxes(1, 2).astype(dtype)


@struct.dataclass
class LayerCache:
  """One layer's.

  Attributes:
    attention: of the tokens read.
    cross_attention: of what the encoder made; None until the decoder has seen it once.
  """

  attention: KeyValues
  cross_attention: KeyValues | None = None


@struct.dataclass
class Cache:
  """Of a whole stack.

  Attributes:
    layers: a `LayerCache` for every layer, in a tuple, or one with a leading axis of layers where they are scanned.
    real: bool `[batch, length]`, which of the tokens read are no padding.
    index: int scalar, how many tokens were read, padding included.
  """

  layers: Any
  real: jax.Array
  index: jax.Array

  @property
  def length(self) -> int:
    """How many tokens there is room for."""
    return self.real.shape[1]

  def reading(self, attention_mask: jax.Array | None, tokens: int) -> jax.Array:
    """`real` with the next tokens' mask `[batch, tokens]`, or all of them real, written in."""
    batch = self.real.shape[0]
    new = jnp.ones((batch, tokens), bool) if attention_mask is None else attention_mask.astype(bool)
    return jax.lax.dynamic_update_slice_in_dim(self.real, new, self.index, axis=1)


  def taken(self, rows: jax.Array) -> "Cache":
    """Of some of the rows, int `[new rows]`; what is kept of the encoder stays: its rows serve several of these."""

    def of_layer(layer):
      return layer.replace(attention=jax.tree.map(lambda x: x[rows], layer.attention))

    return self.replace(layers=tuple(of_layer(layer) for layer in self.layers), real=self.real[rows])


def new_cache(config, batch: int, length: int, dtype: str | None = None) -> Cache:
  """An empty cache.

  Args:
    config: of the stack that generates, see `TransformerConfig.decoder_config`.
    batch: rows.
    length: tokens to make room for.
    dtype: of keys and values; None for the activations'.
  """
  run = config.run
  layers = (config.num_layers,) if run.scan_layers else ()
  shape = (*layers, batch, config.kv_heads, length, config.head_dim)

  def layer():
    return LayerCache(KeyValues(*(jnp.zeros(shape, dtype or run.dtype) for _ in range(2))))

  return Cache(
    layers=layer() if run.scan_layers else tuple(layer() for _ in range(config.num_layers)),
    real=jnp.zeros((batch, length), bool),
    index=jnp.zeros((), jnp.int32),
  )


def cache_bytes(config, batch: int, length: int, dtype: str | None = None) -> int:
  """Bytes of keys and values of the tokens a cache has room for."""
  per_token = 2 * config.num_layers * config.kv_heads * config.head_dim
  return batch * length * per_token * jnp.dtype(dtype or config.run.dtype).itemsize
