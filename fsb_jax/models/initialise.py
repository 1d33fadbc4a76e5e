"""What a model takes, the shapes of its parameters, and fresh values for those a checkpoint lacks."""

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fsb_jax.models.layers import at_least_float32


def input_names(model: nn.Module) -> tuple[str, ...]:
  """The arrays that a model and its head take, by the names of their parameters."""
  # One with factors beside it is called like the model itself.
  model = getattr(model, "adapted", model)
  # Beyond the module itself; of a head, beyond what the model gives it.
  head = getattr(model, "head", None)
  callables = [(type(model), 1)] + ([] if head is None else [(type(head), 4)])
  return tuple(
    name
    for kind, first in callables
    for name, parameter in list(inspect.signature(kind.__call__).parameters.items())[first:]
    if parameter.kind is not parameter.VAR_KEYWORD and not isinstance(parameter.default, bool)
  )


def dummy_ids(model: nn.Module) -> jax.Array:
  """The smallest first argument the model takes: `input_ids`, unless it has a `dummy_input` of its own."""
  if hasattr(model, "dummy_input"):
    return model.dummy_input()
  return jnp.zeros((1, 1, 8) if getattr(model.head, "takes_choices", False) else (1, 8), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def initial_params(model: nn.Module, key: jax.Array, *arguments: jax.Array, **inputs: jax.Array) -> Any:
  """A model's parameters, freshly drawn, in boxes that hold logical names; traced once for equal models."""
  return model.init(key, *arguments, **inputs)["params"]


def abstract_params(model: nn.Module) -> Any:
  """Shapes, dtypes and logical names (boxes) of a model's parameters; nothing is allocated."""
  return initial_params.eval_shape(model, jax.random.key(0), dummy_ids(model))


def flatten(params: Mapping) -> dict[str, Any]:
  """Nested dicts as one dict of `a/b/c` paths."""
  return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Undoes `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def resize_vocabulary(params: Mapping, boxed: Mapping, old_size: int) -> dict[str, Any]:
  """Parameters of a model with more or fewer tokens than it had.

  A new token's row, and its bias, is the mean of all old ones, so that it is expected as often as the average token
  (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

  Args:
    params: nested dict of host arrays.
    boxed: the new model's parameters, see `abstract_params`.
    old_size: tokens that `params` know.
  """
  flat, resized = flatten(params), {}
  for path, box in flatten(boxed).items():
    names = getattr(box, "names", ())
    axis = next((i for i, name in enumerate(names) if name in ("vocab", "table_vocab")), None)
    resized[path] = array = np.asarray(flat[path])
    if axis is None:
      continue
    # Whatever rows only pad the table.
    used = array.take(range(old_size), axis)
    rows = nn.meta.unbox(box).shape[axis]
    # In 16 bits NumPy would lose count.
    mean = used.mean(axis, keepdims=True, dtype=at_least_float32(used.dtype))
    added = np.repeat(mean, max(rows - old_size, 0), axis)
    resized[path] = np.concatenate([used, added.astype(array.dtype)], axis).take(range(rows), axis)
  return unflatten(resized)


def may_be_fresh(path: str) -> bool:
  """Whether a checkpoint may lack this parameter: a head or a pooler is trained anew, a body is not."""
  return path.startswith(("head/", "pooler/"))


def fresh_values(model: nn.Module, paths: Collection[str], seed: int = 0) -> dict[str, np.ndarray]:
  """Freshly drawn host arrays for some of a model's parameters."""
  if not paths:
    return {}

  @jax.jit
  def draw(key):
    params = flatten(nn.meta.unbox(model.init(key, dummy_ids(model))["params"]))
    return {path: params[path] for path in paths}

  return jax.tree.map(np.asarray, draw(jax.random.key(seed)))
