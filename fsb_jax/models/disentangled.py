"""What DeBERTa-v2 has beyond the core: attention to content and to distance apart, and a convolution.

Sources: He et al. 2020, https://arxiv.org/abs/2006.03654, section 3.1; He et al. 2021, https://arxiv.org/abs/2111.09543.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fsb_jax.models.attention import Attention, by_offset
from fsb_jax.models.layers import Embed, activation, at_least_float32, normalise, project
from fsb_jax.models.positions import LearnedPositions, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisentangledPositions(LearnedPositions):
  """A table of distances, which every layer projects with its own weights.

  Attributes:
    length: longest sequence, and rows of the table of absolute positions.
    absolute: whether there is such a table, added to the token embeddings.
    max_distance: distances beyond it are taken for it.
    buckets: distances from half of that on share logarithmic buckets; None for a row per distance.
    terms: which scores are added: "c2p" of a query and its distance to the key, "p2c" of a key and the query's distance
      to it.
    shared_projections: distances are projected by the layers' own query and key projections; else by others.
    normed: the table goes through a layer norm.
  """

  absolute: bool = False
  max_distance: int = 512
  buckets: int | None = 256
  terms: tuple[Literal["c2p", "p2c"], ...] = ("c2p", "p2c")
  shared_projections: bool = True
  normed: bool = True

  def embed(self, config, position_ids: jax.Array) -> jax.Array | float:
    """See the base class."""
    return super().embed(config, position_ids) if self.absolute else 0.0

  @property
  def span(self) -> int:
    """Rows of the table for one direction."""
    return self.buckets or self.max_distance

  def rows(self, length: int) -> np.ndarray:
    """The table's row for every distance of a query from a key, from `1 - length` to `length - 1`."""
    distance = np.arange(1 - length, length)
    if self.buckets is not None:
      # In float32, whose rounding decides at the edges of buckets.
      middle = self.buckets // 2
      far = np.maximum(np.abs(distance), middle - 1).astype(np.float32)
      ratio = np.log(np.float32((self.max_distance - 1) / middle))
      logarithmic = np.ceil(np.log(far / np.float32(middle)) / ratio * np.float32(middle - 1)) + middle
      distance = np.where(far <= middle, distance, np.sign(distance) * logarithmic).astype(np.int64)
    return np.clip(distance + self.span, 0, 2 * self.span - 1)

  def shared(self, config, span: Span) -> jax.Array:
    """The table's rows by distance, `[2 * length - 1, embed]`."""
    table = Embed(
      rows=2 * self.span, features=config.embed_dim, axes=("position", "table_embed"),
      used_axes=("position", "table_embed"), initializer_range=config.initializer_range,
      dtype=config.run.dtype, param_dtype=config.run.param_dtype, name="relative_embed",
    )  # fmt: skip
    rows = table(self.rows(span.queries))
    return config.norm("relative_norm", config.run)(rows) if self.normed else rows


class DisentangledAttention(Attention):
  """Attention whose scores have terms of content and distance."""

  def scores(self, query, key, projections, context) -> tuple[float, jax.Array | None]:
    """See the base class."""
    config, positions = self.config, self.config.positions
    drop = nn.Dropout(config.dropout.hidden, deterministic=context.deterministic)
    distances = drop(context.shared)
    # A float32 number, as in PyTorch.
    scale = 1.0 / float(np.sqrt(np.float32(config.head_dim * (1 + len(positions.terms)))))
    bias = 0.0
    if "c2p" in positions.terms:
      to_key = projections["key"] if positions.shared_projections else self.projection("distance_key")
      # From the query's side distances fall as keys go up.
      bias += by_offset(jnp.einsum("bqhd,rhd->bhqr", query, to_key(distances[::-1])))
    if "p2c" in positions.terms:
      to_query = projections["query"] if positions.shared_projections else self.projection("distance_query")
      bias += by_offset(jnp.einsum("bkhd,rhd->bhkr", key, to_query(distances))).swapaxes(-1, -2)
    return scale, bias * scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionSpec:
  """The convolution's `kernel_size` and `activation`."""

  kernel_size: int = 3
  activation: str = "gelu"

  def __call__(self, config, name: str) -> nn.Module:
    """The module called `name`."""
    return Convolution(config, name=name)


@struct.dataclass
class Convolved:
  """What joins the first layer's output.

  Attributes:
    values: `[batch, length, embed]`.
    scale: of the norm after the sum, `[embed]`.
    bias: of that norm.
    real: `[batch, length]`, or None where all tokens are.
    epsilon: of that norm.
  """

  values: jax.Array
  scale: jax.Array
  bias: jax.Array
  real: jax.Array | None
  epsilon: float = struct.field(pytree_node=False)

  def join(self, hidden: jax.Array, first: jax.Array) -> jax.Array:
    """The normalised sum, zero at padding, for the first layer; `hidden` for the others."""
    wide = self.scale.dtype
    result = normalise((hidden + self.values).astype(wide), self.scale, self.bias, self.epsilon, True)
    result = result if self.real is None else result * self.real[..., None].astype(wide)
    return jnp.where(first, result.astype(hidden.dtype), hidden)


class Convolution(nn.Module):
  """A convolution of the embeddings over the sequence, for the end of the first layer."""

  config: Any

  @nn.compact
  def __call__(self, hidden: jax.Array, real: jax.Array | None, deterministic: bool) -> Convolved:
    """Convolves `[batch, length, embed]`; `real` `[batch, length]` says which tokens are."""
    config, run = self.config, self.config.run
    size, width = config.convolution.kernel_size, config.embed_dim

    def parameter(name, initializer, axes, shape):
      return self.param(name, nn.with_logical_partitioning(initializer, axes), shape, run.param_dtype)

    random, zeros = nn.initializers.normal(config.initializer_range), nn.initializers.zeros_init()
    kernel = parameter("kernel", random, (None, "embed", "mlp"), (size, width, width))
    offset = parameter("bias", zeros, ("mlp",), (width,))
    # Used in the stack's loop, where this module is not.
    scale = parameter("norm_scale", nn.initializers.ones_init(), ("norm",), (width,))
    bias = parameter("norm_bias", zeros, ("norm",), (width,))
    before = (size - 1) // 2
    padded = jnp.pad(hidden, ((0, 0), (before, size - 1 - before), (0, 0)))
    taps = (project(padded[:, i : i + hidden.shape[1]], kernel[i].astype(run.dtype), 1) for i in range(size))
    values = sum(taps) + offset.astype(run.dtype)
    if real is not None:
      values = jnp.where(real[..., None].astype(bool), values, 0)
    values = nn.Dropout(config.dropout.hidden, deterministic=deterministic)(values)
    values = activation(config.convolution.activation)(values)
    wide = at_least_float32(jnp.promote_types(hidden.dtype, run.param_dtype))
    return Convolved(values, scale.astype(wide), bias.astype(wide), real, config.norm.epsilon)
