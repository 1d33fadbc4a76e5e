"""Models in the form that generates fastest."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax import models


def prepared(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
  """A model and its parameters in the form that generates fastest, made once for many calls of `generate`.

  Layers are unrolled and, on the CPU, kernels ordered outputs first: few rows are multiplied up to 1.8 times as fast.
  The parameters are copied.
  """
  model, params = unrolled(model, params)
  if jax.default_backend() != "cpu" or model.config.run.kernels == "outputs_first":
    return model, params
  changed = _with_config(model, model.config.with_run(kernels="outputs_first"))
  old, new = (models.flatten(models.abstract_params(each)) for each in (model, changed))

  def ordered(path, array):
    before, after = old[path].names, new[path].names
    if before == after:
      return array
    inputs = next(i for i in range(1, len(before)) if before[i:] + before[:i] == after)
    return jnp.transpose(array, [*range(inputs, array.ndim), *range(inputs)])

  return changed, models.unflatten({path: ordered(path, array) for path, array in models.flatten(params).items()})


def _with_config(model: nn.Module, config: models.TransformerConfig) -> nn.Module:
  return model.clone(config=config, head=model.head and model.head.clone(config=config))


def unrolled(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
  """A model and its parameters on the device with a module for every layer: a cache of scanned ones is copied."""
  params = jax.tree.map(jnp.asarray, params)
  if not model.config.run.scan_layers:
    return model, params

  def one(tree):
    result = {}
    for name, value in tree.items():
      if name == "layers":
        count = len(jax.tree.leaves(value)[0])
        result |= {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(count)}
      else:
        result[name] = one(value) if isinstance(value, Mapping) else value
    return result

  return _with_config(model, model.config.with_run(scan_layers=False)), one(params)
