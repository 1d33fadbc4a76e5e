"""Position schemes, as objects with hooks that a stack calls; a scheme overrides the hooks it needs.

Two different things are called a position: `position_ids`, which a caller may give (learned tables), and the index
in the sequence. Schemes that look at distances use the latter.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fsb_jax.models.layers import Embed, embed


@struct.dataclass
class Span:
  """Where a call's queries stand among the keys.

  Attributes:
    queries: how many there are.
    keys: how many keys there are.
    offset: keys before the first query, a number or an int scalar.
    position_ids: `[batch, queries]`, where a caller gave them or a scheme counts them; None for the indices.
  """

  queries: int = struct.field(pytree_node=False)
  keys: int = struct.field(pytree_node=False)
  offset: Any = 0
  position_ids: jax.Array | None = None

  @property
  def index(self) -> jax.Array:
    """Indices of the queries among the keys, `[queries]`."""
    return self.offset + jnp.arange(self.queries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
  """No positions at all; the hooks' defaults."""

  def ids(self, input_ids: jax.Array, offset: jax.Array | int = 0) -> jax.Array:
    """Position ids `[batch, length]` for a caller who gave none; `offset` tokens went before."""
    return jnp.broadcast_to(offset + jnp.arange(input_ids.shape[1]), input_ids.shape)

  def embed(self, config, position_ids: jax.Array) -> jax.Array | float:
    """What is added to the token embeddings, `[batch, length, embed]`."""
    return 0.0

  def shared(self, config, span: Span) -> Any:
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
    first: the first position's row.
    skip_padding: the id that takes no position: the first real token gets `skip_padding + 1` and padding gets
      `skip_padding` (RoBERTa). None counts every token from 0.
  """

  length: int
  first: int = 0
  skip_padding: int | None = None

  @property
  def usable_length(self) -> int:
    """Longest sequence that has a position for every token."""
    return self.length - (self.first if self.skip_padding is None else self.skip_padding + 1)

  def ids(self, input_ids: jax.Array, offset: jax.Array | int = 0) -> jax.Array:
    """See the base class."""
    if self.skip_padding is None:
      return super().ids(input_ids, offset + self.first)
    real = (input_ids != self.skip_padding).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + self.skip_padding

  def table(self, config, name: str | None = None) -> Embed:
    """The table, called `name`."""
    return embed(config, self.length, "position", name, padding_row=self.skip_padding)

  def embed(self, config, position_ids: jax.Array, table: Embed | None = None) -> jax.Array:
    """See the base class; `table` is that of several stacks, None for one of their own."""
    if position_ids.shape[-1] > self.usable_length:
      # Out of the table JAX reads NaN, where PyTorch stops.
      raise ValueError(f"{position_ids.shape[-1]} tokens, but the model has positions for {self.usable_length}")
    return (self.table(config, "position_embed") if table is None else table)(position_ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidPositions(Positions):
  """A fixed code of every absolute position: sines, then cosines (Vaswani et al. 2017, section 3.5).

  Attributes:
    length: longest sequence.
  """

  length: int

  @property
  def usable_length(self) -> int:
    """Longest sequence that has a position for every token."""
    return self.length

  def table(self, width: int) -> np.ndarray:
    """The codes, float32 `[length, width]`."""
    angles = np.arange(self.length)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)

  def embed(self, config, position_ids: jax.Array) -> jax.Array:
    """See the base class."""
    if position_ids.shape[-1] > self.length:
      raise ValueError(f"{position_ids.shape[-1]} tokens, but the model has positions for {self.length}")
    return jnp.asarray(self.table(config.token_width), config.run.dtype)[position_ids]


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

  def shared(self, config, span: Span) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of every angle, `[length, 1, head_dim / 2]`; float32 numbers, as in PyTorch's table."""
    return self.table(config.head_dim, span.queries)

  def table(self, head_dim: int, length: int) -> tuple[jax.Array, jax.Array]:
    """See `shared`."""
    if length > self.length:
      raise ValueError(f"{length} tokens, but the model has positions for {self.length}")
    frequencies = self.base ** (-np.arange(0, head_dim, 2) / head_dim)
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
