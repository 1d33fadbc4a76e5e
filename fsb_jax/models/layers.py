"""Projections, embeddings and norms whose parameters carry logical axis names."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

# In the backward pass recomputed from its argument: cheap, where autodiff would keep three arrays of the MLP's width.
_gelu = jax.checkpoint(functools.partial(nn.gelu, approximate=False), prevent_cse=False)
_gelu_new = jax.checkpoint(functools.partial(nn.gelu, approximate=True), prevent_cse=False)
_quick_gelu = jax.checkpoint(lambda x: x * nn.sigmoid(1.702 * x), prevent_cse=False)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": _gelu,
  "gelu_new": _gelu_new,
  "linear": lambda x: x,
  "quick_gelu": _quick_gelu,
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


@jax.custom_vjp
def softmax(scores: jax.Array) -> jax.Array:
  """Softmax over the last axis; of the forward pass it keeps its result alone."""
  unnormalised = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  return unnormalised / jnp.sum(unnormalised, axis=-1, keepdims=True)


def _softmax_forward(scores):
  probabilities = softmax.fun(scores)
  return probabilities, probabilities


def _softmax_backward(probabilities, gradient):
  product = probabilities * gradient
  return (product - probabilities * jnp.sum(product, axis=-1, keepdims=True),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
  """Contracts the last `inputs` axes of `x` with the first ones of `kernel`: `[..., *inputs] -> [..., *features]`."""
  contracted = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
  return jax.lax.dot_general(x, kernel, (contracted, ((), ())))


def _project_forward(x, kernel, inputs):
  return project.fun(x, kernel, inputs), (x, kernel)


def _project_backward(inputs, kept, gradient):
  # Autodiff makes the kernel's gradient as the transpose of [*features, *inputs], contracting batch and length as two
  # axes: on the CPU XLA then copies both operands. One axis of rows needs no copy, but would gather what a mesh splits.
  x, kernel = kept
  rows = x.ndim - inputs
  features = tuple(range(rows, gradient.ndim)), tuple(range(inputs, kernel.ndim))
  x_gradient = jax.lax.dot_general(gradient, kernel, (features, ((), ())))
  if rows > 1 and jax.sharding.get_abstract_mesh().size <= 1:
    x, gradient = x.reshape(-1, *x.shape[rows:]), gradient.reshape(-1, *gradient.shape[rows:])
    rows = 1
  contracted = tuple(range(rows))
  return x_gradient, jax.lax.dot_general(x, gradient, ((contracted, contracted), ((), ())))


project.defvjp(_project_forward, _project_backward)


def multiply(kernel: jax.Array, x: jax.Array, inputs: int) -> jax.Array:
  """`project` by a kernel `[*features, *inputs]`, as the product kernel · x."""
  features, rows = kernel.ndim - inputs, x.ndim - inputs
  contracted = tuple(range(features, kernel.ndim)), tuple(range(rows, x.ndim))
  y = jax.lax.dot_general(kernel, x, (contracted, ((), ())))
  return jnp.moveaxis(y, range(features), range(rows, rows + features))


class Dense(nn.Module):
  """Linear map over the last `inputs` axes to `features` axes, with an N-D kernel.

  Stock `nn.DenseGeneral` initialises a flattened kernel and then constrains it with the N-D names, which fails
  under a mesh; this one builds the N-D kernel itself.

  Attributes:
    features: sizes of the output axes.
    axes: one logical name per kernel axis, inputs first.
    inputs: how many trailing axes of the argument are contracted.
    outputs_first: the kernel's outputs come first; `axes` are named as if they did not.
    initializer_range: standard deviation of the kernel; the bias starts at zero.
  """

  features: tuple[int, ...]
  axes: tuple[str, ...]
  inputs: int = 1
  use_bias: bool = True
  outputs_first: bool = False
  initializer_range: float = 0.02
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., *inputs]` to `[..., *features]`."""
    kernel, bias = self.weights(x.shape[-self.inputs :])
    x = x.astype(self.dtype)
    y = multiply(kernel, x, self.inputs) if self.outputs_first else project(x, kernel, self.inputs)
    return y if bias is None else y + bias

  @nn.compact
  def weights(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
    """The kernel, `[*inputs, *features]` with inputs of `shape`, and the bias, `[*features]` or None without one.

    With `outputs_first` the kernel is `[*features, *inputs]`.
    """
    shape, axes = (*shape, *self.features), self.axes
    if self.outputs_first:
      shape, axes = (sizes[self.inputs :] + sizes[: self.inputs] for sizes in (shape, axes))
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), axes),
      shape,
      self.param_dtype,
    )
    if not self.use_bias:
      return kernel.astype(self.dtype), None
    bias = self.param(
      "bias",
      nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[self.inputs :]),
      self.features,
      self.param_dtype,
    )
    return kernel.astype(self.dtype), bias.astype(self.dtype)


class Embed(nn.Module):
  """A table of embeddings that also decodes (`attend`).

  Attributes:
    rows: rows of the table.
    axes: logical names of the two axes.
    used_axes: their names where the table is read.
    padding_row: a row that looking it up does not train (PyTorch's `padding_idx`); None for none.
    outputs_first: decode as `Dense` with that does.
  """

  rows: int
  features: int
  axes: tuple[str, str]
  used_axes: tuple[str, str]
  padding_row: int | None = None
  outputs_first: bool = False
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
    x, table = x.astype(self.dtype), self._table().astype(self.dtype)
    if self.outputs_first:
      return multiply(table, x, 1)
    return jnp.einsum("...e,ve->...v", x, table)

  def _table(self) -> jax.Array:
    # Stored in as many parts as the mesh has, used in as many as the logits have; left to itself, XLA finds no way
    # from one to the other and replicates the table.
    return nn.with_logical_constraint(self.embedding, self.used_axes)


def mask_unused_rows(logits: jax.Array, used_rows: int) -> jax.Array:
  """Sets the logits of rows that only pad the vocabulary to -inf."""
  if logits.shape[-1] == used_rows:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < used_rows, logits, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float, centre: bool) -> jax.Array:
  """Divides the last axis by its standard deviation (`centre`) or root mean square, then scales and shifts it.

  Args:
    x: `[..., features]`.
    scale: `[features]`.
    bias: `[features]`, or None.
    epsilon: added to the variance.
    centre: first subtract the mean.
  """
  return _normalise_forward(x, scale, bias, epsilon, centre)[0]


def _normalise_forward(x, scale, bias, epsilon, centre):
  # The fast variance E[x²]-E[x]² cancels where the mean is large; the references subtract the mean first.
  mean = jnp.mean(x, axis=-1, keepdims=True) if centre else jnp.zeros((), x.dtype)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True) + epsilon)
  y = (x - mean) * inverse * scale
  return y if bias is None else y + bias, (x, mean, inverse, scale, bias)


def _normalise_backward(epsilon, centre, kept, gradient):
  x, mean, inverse, scale, bias = kept
  rows = tuple(range(x.ndim - 1))
  unit = (x - mean) * inverse
  inner = gradient * scale
  away = unit * jnp.mean(inner * unit, axis=-1, keepdims=True)
  if centre:
    away += jnp.mean(inner, axis=-1, keepdims=True)
  bias_gradient = None if bias is None else jnp.sum(gradient, axis=rows)
  return inverse * (inner - away), jnp.sum(gradient * unit, axis=rows), bias_gradient


normalise.defvjp(_normalise_forward, _normalise_backward)


class Norm(nn.Module):
  """Normalisation over the last axis; statistics are taken in at least float32.

  Attributes:
    centre: subtract the mean and add a bias (layer norm); otherwise neither (RMS norm).
  """

  epsilon: float
  centre: bool
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., features]` to the same shape."""

    def parameter(name, initializer):
      value = self.param(
        name, nn.with_logical_partitioning(initializer, ("norm",)), x.shape[-1:], self.param_dtype
      )
      return value.astype(wide)

    wide = at_least_float32(jnp.promote_types(x.dtype, self.param_dtype))
    scale = parameter("scale", nn.initializers.ones_init())
    bias = parameter("bias", nn.initializers.zeros_init()) if self.centre else None
    return normalise(x.astype(wide), scale, bias, self.epsilon, self.centre).astype(self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSpec:
  """Kind and epsilon of a normalisation; calling it makes the module."""

  kind: Literal["layer", "rms"] = "layer"
  epsilon: float = 1e-12

  def __call__(self, name: str, run) -> Norm:
    """The module called `name`."""
    return Norm(self.epsilon, self.kind == "layer", dtype=run.dtype, param_dtype=run.param_dtype, name=name)


class Mlp(nn.Module):
  """Feed-forward block: `wi` (or gated `wi_0`, `wi_1`), activation, `wo`."""

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    """Maps `[batch, length, embed]` to the same shape."""
    config = self.config
    names = config.activations

    def projection(width, axes, name):
      return dense(config, (width,), axes, name, bias=config.mlp_bias)

    branches = [
      activation(name)(projection(config.mlp_dim, ("embed", "mlp"), "wi" if len(names) == 1 else f"wi_{i}")(x))
      for i, name in enumerate(names)
    ]
    hidden = nn.with_logical_constraint(
      math.prod(branches[1:], start=branches[0]), ("activation_batch", "activation_length", "activation_mlp")
    )
    hidden = nn.Dropout(config.dropout.mlp, deterministic=deterministic)(hidden)
    return projection(config.embed_dim, ("mlp", "embed"), "wo")(hidden)


def dense(
  config, features: tuple[int, ...], axes: tuple[str, ...], name: str | None = None, inputs: int = 1, bias: bool = True
) -> Dense:
  """A `Dense` with the dtypes and initialisation of `config`."""
  return Dense(
    features=features,
    axes=axes,
    inputs=inputs,
    use_bias=bias,
    outputs_first=config.run.kernels == "outputs_first",
    initializer_range=config.initializer_range,
    dtype=config.run.dtype,
    param_dtype=config.run.param_dtype,
    name=name,
  )


def embed(
  config, rows: int, row_axis: str, name: str, used_row_axis: str | None = None, padding_row: int | None = None
) -> Embed:
  """An `Embed` of width `token_width` with the dtypes and initialisation of `config`."""
  return Embed(
    rows=rows,
    features=config.token_width,
    # Not "embed": a table sharded on both axes makes XLA replicate it in full before every lookup.
    axes=(row_axis, "table_embed"),
    used_axes=(used_row_axis or row_axis, "table_embed"),
    padding_row=padding_row,
    outputs_first=config.run.kernels == "outputs_first",
    initializer_range=config.initializer_range,
    dtype=config.run.dtype,
    param_dtype=config.run.param_dtype,
    name=name,
  )
