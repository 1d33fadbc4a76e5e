"""Projections, embeddings and norms whose parameters carry logical axis names."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_new": functools.partial(nn.gelu, approximate=True),
  "linear": lambda x: x,
  "relu": nn.relu,
  "silu": nn.silu,
  "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The activation called `name`; a KeyError lists the known ones."""
  if name not in ACTIVATIONS:
    raise KeyError(f"unknown activation {name!r}; known: {', '.join(sorted(ACTIVATIONS))}")
  return ACTIVATIONS[name]


def at_least_float32(dtype) -> jnp.dtype:
  """The dtype of norms, softmax and losses: float32, or float64 where the model runs in it."""
  return jnp.promote_types(dtype, jnp.float32)


class Dense(nn.Module):
  """Linear map over the last `inputs` axes to `features` axes, with an N-D kernel.

  Stock `nn.DenseGeneral` initialises a flattened kernel and then constrains it with the N-D names, which fails
  under a mesh; this one builds the N-D kernel itself.

  Attributes:
    features: sizes of the output axes.
    axes: one logical name per kernel axis, inputs first.
    inputs: how many trailing axes of the argument are contracted.
    initializer_range: standard deviation of the kernel; the bias starts at zero.
  """

  features: tuple[int, ...]
  axes: tuple[str, ...]
  inputs: int = 1
  use_bias: bool = True
  initializer_range: float = 0.02
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., *inputs]` to `[..., *features]`."""
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), self.axes),
      x.shape[-self.inputs :] + self.features,
      self.param_dtype,
    )
    contracted = tuple(range(x.ndim - self.inputs, x.ndim)), tuple(range(self.inputs))
    y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (contracted, ((), ())))
    if not self.use_bias:
      return y
    bias = self.param(
      "bias",
      nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[self.inputs :]),
      self.features,
      self.param_dtype,
    )
    return y + bias.astype(self.dtype)


class Embed(nn.Module):
  """A table of embeddings that also decodes (`attend`).

  Attributes:
    rows: rows of the table.
    axes: logical names of the two axes.
    used_axes: their names where the table is read.
    padding_row: a row that looking it up does not train (PyTorch's `padding_idx`); None for none.
  """

  rows: int
  features: int
  axes: tuple[str, str]
  used_axes: tuple[str, str]
  padding_row: int | None = None
  initializer_range: float = 0.02
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    """Declares the table."""
    initializer = nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), self.axes)
    self.embedding = self.param("embedding", initializer, (self.rows, self.features), self.param_dtype)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Rows for `ids`, `[...] -> [..., features]`."""
    rows = jnp.take(self._table(), ids, axis=0).astype(self.dtype)
    if self.padding_row is None:
      return rows
    return jnp.where((ids == self.padding_row)[..., None], jax.lax.stop_gradient(rows), rows)

  def attend(self, x: jax.Array) -> jax.Array:
    """Scores of every row, `[..., features] -> [..., rows]`."""
    return jnp.einsum("...e,ve->...v", x.astype(self.dtype), self._table().astype(self.dtype))

  def _table(self) -> jax.Array:
    # Stored in as many parts as the mesh has, used in as many as the logits have; left to itself, XLA finds no way
    # from one to the other and replicates the table.
    return nn.with_logical_constraint(self.embedding, self.used_axes)


def mask_unused_rows(logits: jax.Array, used_rows: int) -> jax.Array:
  """Sets the logits of rows that only pad the vocabulary to -inf."""
  if logits.shape[-1] == used_rows:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < used_rows, logits, -jnp.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSpec:
  """Kind and epsilon of a normalisation; calling it makes the module."""

  kind: Literal["layer", "rms"] = "layer"
  epsilon: float = 1e-12

  def __call__(self, name: str, run) -> nn.Module:
    """The module called `name`; statistics are taken in at least float32."""
    scale = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
    common = dict(epsilon=self.epsilon, dtype=run.dtype, param_dtype=run.param_dtype, scale_init=scale, name=name)
    if self.kind == "rms":
      return nn.RMSNorm(**common, use_fast_variance=False)
    bias = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",))
    # The fast variance E[x²]-E[x]² cancels where the mean is large; the references subtract the mean first.
    return nn.LayerNorm(**common, bias_init=bias, use_fast_variance=False)


class Mlp(nn.Module):
  """Feed-forward block: `wi` (or gated `wi_0`, `wi_1`), activation, `wo`."""

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, length, embed]` to the same shape."""
    config = self.config
    names = config.activations
    branches = [
      activation(name)(dense(config, (config.mlp_dim,), ("embed", "mlp"), "wi" if len(names) == 1 else f"wi_{i}")(x))
      for i, name in enumerate(names)
    ]
    hidden = nn.with_logical_constraint(
      math.prod(branches[1:], start=branches[0]), ("activation_batch", "activation_length", "activation_mlp")
    )
    return dense(config, (config.embed_dim,), ("mlp", "embed"), "wo")(hidden)


def dense(config, features: tuple[int, ...], axes: tuple[str, ...], name: str | None = None, inputs: int = 1) -> Dense:
  """A `Dense` with the dtypes and initialisation of `config`."""
  return Dense(
    features=features,
    axes=axes,
    inputs=inputs,
    initializer_range=config.initializer_range,
    dtype=config.run.dtype,
    param_dtype=config.run.param_dtype,
    name=name,
  )


def embed(
  config, rows: int, row_axis: str, name: str, used_row_axis: str | None = None, padding_row: int | None = None
) -> Embed:
  """An `Embed` of width `embed_dim` with the dtypes and initialisation of `config`."""
  return Embed(
    rows=rows,
    features=config.embed_dim,
    # Not "embed": a table sharded on both axes makes XLA replicate it in full before every lookup.
    axes=(row_axis, "table_embed"),
    used_axes=(used_row_axis or row_axis, "table_embed"),
    padding_row=padding_row,
    initializer_range=config.initializer_range,
    dtype=config.run.dtype,
    param_dtype=config.run.param_dtype,
    name=name,
  )
