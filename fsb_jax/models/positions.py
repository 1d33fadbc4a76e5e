"""Position schemes, as objects with hooks that a stack calls; a scheme overrides the hooks it needs.

Two different things are called a position: `position_ids`, which a caller may give (learned tables), and the index
in the sequence. Schemes that look at distances use the latter.
"""

import dataclasses

import jax
import jax.numpy as jnp

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
