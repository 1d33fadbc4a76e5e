"""Rotary positions as LLaMA has them, by position id, and the ways to make them reach further.

Feature j of a head is turned with feature j + head_dim / 2. Source: Su et al. 2021, https://arxiv.org/abs/2104.09864.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.models.positions import Positions, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Positions are divided by `factor` (Chen et al. 2023, https://arxiv.org/abs/2306.15595)."""

  factor: float

  def frequencies(self, plain: np.ndarray, base: float) -> tuple[np.ndarray, float]:
    """Angles per step of `plain` ones `[head_dim / 2]` of `base`, and what sine and cosine are multiplied by."""
    return plain / self.factor, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicScaling:
  """Beyond `original_length` the base grows with the sequence ("NTK-aware", without training).

  All of a call's positions are turned by the base of its furthest one, so that keys in a cache keep the base of the
  moment when they were read, as in transformers.

  Attributes:
    factor: how strongly.
    original_length: up to which nothing changes.
  """

  factor: float
  original_length: int

  def base(self, base: float, head_dim: int, length: jax.Array) -> jax.Array:
    """The base for a sequence of `length`."""
    stretch = self.factor * jnp.maximum(length, self.original_length) / self.original_length - (self.factor - 1)
    return base * stretch ** (head_dim / (head_dim - 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
  """Slow turns are interpolated, fast ones kept, those between a mixture (Peng et al. 2023, 2309.00071, section 3.2).

  Attributes:
    factor: how much further positions reach.
    original_length: that the model was trained for.
    fast: features that turn more often than this within it are kept.
    slow: those that turn less often than this are interpolated.
    magnitude: what sine and cosine are multiplied by; None for 0.1 log(factor) + 1.
    truncate: the two borders are whole features.
  """

  factor: float
  original_length: int
  fast: float = 32.0
  slow: float = 1.0
  magnitude: float | None = None
  truncate: bool = True

  def frequencies(self, plain: np.ndarray, base: float) -> tuple[np.ndarray, float]:
    """See `LinearScaling`."""
    head_dim = 2 * len(plain)

    def border(turns):
      return head_dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = border(self.fast), border(self.slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low or 0.001), 0, 1)
    magnitude = self.magnitude
    if magnitude is None:
      magnitude = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
    return plain / self.factor * ramp + plain * (1 - ramp), magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Long waves are stretched, short ones kept, those between a mixture, as Llama 3.1 does.

  Source: https://github.com/meta-llama/llama-models, models/llama3/model.py.

  Attributes:
    factor: how much waves are stretched.
    low: waves longer than `original_length / low` are stretched.
    high: waves shorter than `original_length / high` are kept.
    original_length: that the model was trained for.
  """

  factor: float
  low: float
  high: float
  original_length: int

  def frequencies(self, plain: np.ndarray, base: float) -> tuple[np.ndarray, float]:
    """See `LinearScaling`."""
    turns = self.original_length * plain / (2 * math.pi)
    kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return plain / self.factor * (1 - kept) + plain * kept, 1.0


Scaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledRotary(Positions):
  """Queries and keys are turned by their position ids.

  Attributes:
    length: longest sequence that the model was made for; longer ones are computed, too.
    base: what the angle of pair j is a power of: base^(-2j / head_dim) for every step.
    scaling: how positions are made to reach further; None for not at all.
  """

  length: int
  base: float = 10000.0
  scaling: Scaling | None = None

  @property
  def usable_length(self) -> int:
    """Longest sequence that the model was made for."""
    return self.length

  def shared(self, config, span: Span) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of every angle, `[batch or 1, queries, 1, head_dim / 2]`, in float32."""
    ids = span.index[None] if span.position_ids is None else span.position_ids
    exponents, magnitude = np.arange(0, config.head_dim, 2) / config.head_dim, 1.0
    if isinstance(self.scaling, DynamicScaling):
      frequencies = self.scaling.base(self.base, config.head_dim, jnp.max(ids) + 1.0) ** -exponents
    else:
      frequencies = self.base**-exponents
      if self.scaling is not None:
        frequencies, magnitude = self.scaling.frequencies(frequencies, self.base)
    angles = ids.astype(jnp.float32)[..., None, None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.sin(angles) * magnitude, jnp.cos(angles) * magnitude

  def rotate(self, heads: jax.Array, shared: tuple[jax.Array, jax.Array]) -> jax.Array:
    """See the base class."""
    sine, cosine = (x.astype(heads.dtype) for x in shared)
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
