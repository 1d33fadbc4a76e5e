"""Position schemes, as objects with hooks that a stack calls; a scheme overrides the hooks it needs.

Two different things are called a position: `position_ids`, which a caller may give (learned tables), and the index
in the sequence. Schemes that look at distances use the latter.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.models.layers import embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
  """No positions at all; the hooks' defaults."""

  def ids(self, input_ids: jax.Array) -> jax.Array:
    """Position ids `[batch, length]` for a caller who gave none."""
    return jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)

  def embed(self, config, position_ids: jax.Array) -> jax.Array | float:
    """What is added to the token embeddings, `[batch, length, embed]`."""
    return 0.0

  def shared(self, config, length: int) -> Any:
    """What all layers of a stack share, made once: the `shared` of the other hooks. None where there is nothing."""
    return None

  def rotate(self, heads: jax.Array, shared: Any) -> jax.Array:
    """Queries or keys `[batch, length, heads, head_dim]` with their positions in them."""
    return heads

  def rotate_values(self, heads: jax.Array, shared: Any) -> jax.Array:
    """The same of values."""
    return heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedPositions(Positions):
  """A table of absolute positions.

  Attributes:
    length: rows of the table.
    skip_padding: the id that takes no position: the first real token gets `skip_padding + 1` and padding gets
      `skip_padding` (RoBERTa). None counts every token from 0.
  """

  length: int
  skip_padding: int | None = None

  @property
  def usable_length(self) -> int:
    """Longest sequence that has a position for every token."""
    return self.length - (0 if self.skip_padding is None else self.skip_padding + 1)

  def ids(self, input_ids: jax.Array) -> jax.Array:
    """See the base class."""
    if self.skip_padding is None:
      return super().ids(input_ids)
    real = (input_ids != self.skip_padding).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + self.skip_padding

  def embed(self, config, position_ids: jax.Array) -> jax.Array:
    """See the base class."""
    if position_ids.shape[-1] > self.usable_length:
      # Out of the table JAX reads NaN, where PyTorch stops.
      raise ValueError(f"{position_ids.shape[-1]} tokens, but the model has positions for {self.usable_length}")
    table = embed(config, self.length, "position", "position_embed", padding_row=self.skip_padding)
    return table(position_ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryPositions(Positions):
  """Queries and keys are turned by their index in the sequence, pair by pair: features 2j and 2j + 1 are a pair.

  Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.4.

  Attributes:
    length: longest sequence.
    values: turn the values too.
    base: what the angle of pair j is a power of: base^(-2j / head_dim) for every step of the index.
  """

  length: int
  values: bool = False
  base: float = 10000.0

  @property
  def usable_length(self) -> int:
    """Longest sequence that has a position for every token."""
    return self.length

  def shared(self, config, length: int) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of every angle, `[length, 1, head_dim / 2]`; float32 numbers, as in PyTorch's table."""
    if length > self.length:
      raise ValueError(f"{length} tokens, but the model has positions for {self.length}")
    frequencies = self.base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = (np.arange(length)[:, None] * frequencies)[:, None]
    return jnp.asarray(np.sin(angles), jnp.float32), jnp.asarray(np.cos(angles), jnp.float32)

  def rotate(self, heads: jax.Array, shared: Any) -> jax.Array:
    """See the base class."""
    sine, cosine = shared
    even, odd = heads[..., ::2], heads[..., 1::2]
    turned = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1)
    return turned.reshape(heads.shape).astype(heads.dtype)

  def rotate_values(self, heads: jax.Array, shared: Any) -> jax.Array:
    """See the base class."""
    return self.rotate(heads, shared) if self.values else heads
