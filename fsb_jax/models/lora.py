"""Low-rank factors beside frozen kernels, as pure functions of parameter trees (LoRA).

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685. A tree of factors is nested as the parameters are; in place of
a kernel `[*inputs, *outputs]` it has `down` `[*inputs, rank]`, `up` `[rank, *outputs]` and perhaps `alpha`, a scalar.
The adapted kernel is kernel + alpha / rank * down · up. Where layers are stacked, all have a leading axis of layers,
`alpha` too. Modules know nothing of it, so that every kernel of every family can be adapted, convolutions included.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.errors import UserError
from fsb_jax.models.initialise import dummy_ids, flatten, unflatten

# The projections of all attention: what is usual for texts and images.
ATTENTION = r"attention/(query|key|value|out)/kernel$"
# Names of a kernel's trailing axes that are outputs together.
_HEADS = (("heads", "kv"), ("kv_heads", "kv"))


def kernel_axes(names: tuple[str | None, ...]) -> tuple[int, int]:
  """How many leading axes of a kernel are layers (0 or 1), and how many trailing ones are outputs.

  Args:
    names: its logical names.
  """
  return int(names[:1] == ("layers",)), 2 if names[-2:] in _HEADS else 1


def adapted_paths(boxed: Any, pattern: str) -> list[str]:
  """The kernels that a pattern finds.

  Args:
    boxed: a model's parameters, see `models.abstract_params`.
    pattern: regular expression that is searched for in paths, where stacked layers are `layers/`.

  Raises:
    UserError: there are none.
  """
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise UserError(f"LORA_PATTERN {pattern!r} is no regular expression: {error}") from None
  kernels = [path for path in flatten(boxed) if path.endswith("/kernel")]
  found = [path for path in kernels if compiled.search(path)]
  if not found:
    some = ", ".join(kernels[:: max(1, len(kernels) // 5)])
    raise UserError(f"LORA_PATTERN {pattern!r} matches no kernel; there are {some} and others")
  return found


def fresh_factors(key: jax.Array, boxed: Any, pattern: str, rank: int) -> dict[str, Any]:
  """Factors that change nothing yet: `down` is drawn with standard deviation 1 / rank, `up` is 0.

  Args:
    key: of the draws.
    boxed: a model's parameters, see `models.abstract_params`.
    pattern: see `adapted_paths`.
    rank: of every change.

  Returns:
    The tree, boxed, with the logical names of the kernels' axes.
  """
  if not isinstance(rank, int) or rank < 1:
    raise UserError(f"LORA_RANK must be a whole number above 0, not {rank!r}")
  flat, factors = flatten(boxed), {}
  for number, path in enumerate(adapted_paths(boxed, pattern)):
    names, kernel = flat[path].names, nn.meta.unbox(flat[path])
    layers, outputs = kernel_axes(names)
    shape, split = kernel.shape, len(names) - outputs
    down = jax.random.normal(jax.random.fold_in(key, number), (*shape[:split], rank), kernel.dtype) / rank
    up = jnp.zeros((*shape[:layers], rank, *shape[split:]), kernel.dtype)
    factors[f"{path}/down"] = flat[path].replace(value=down, names=(*names[:split], None))
    factors[f"{path}/up"] = flat[path].replace(value=up, names=(*names[:layers], None, *names[split:]))
  return unflatten(factors)


def merged(params: Any, factors: Any, alpha: float | None = None) -> dict[str, Any]:
  """Parameters with their changes in them; differentiable in both.

  Args:
    params: nested dict of arrays, unboxed.
    factors: see above; in the parameters' layout of layers.
    alpha: that of factors without one of their own; None for their rank, so that the change is `down` times `up`.

  Raises:
    UserError: factors of a kernel that there is not, or of another shape.
  """
  flat, each = dict(flatten(params)), flatten(factors)
  for path in [name.removesuffix("/down") for name in each if name.endswith("/down")]:
    down, up = each[f"{path}/down"], each[f"{path}/up"]
    if path not in flat:
      raise UserError(f"LoRA factors of {path}, which the model does not have")
    kernel = flat[path]
    # An axis more than kernels have all their axes of layers, inputs and outputs.
    layers = (down.ndim + up.ndim - 2) - kernel.ndim
    if layers not in (0, 1) or (*down.shape[:-1], *up.shape[1 + layers :]) != kernel.shape:
      raise UserError(f"LoRA factors {down.shape} and {up.shape} do not fit {path} {kernel.shape}")
    own = each.get(f"{path}/alpha", alpha)
    scale = 1.0 if own is None else jnp.asarray(own, kernel.dtype) / down.shape[-1]
    scale = jnp.reshape(scale, jnp.shape(scale) + (1,) * (kernel.ndim - jnp.ndim(scale)))
    batch = tuple(range(layers))
    change = jax.lax.dot_general(down, up, (((down.ndim - 1,), (layers,)), (batch, batch)))
    flat[path] = kernel + scale * change.astype(kernel.dtype)
  return unflatten(flat)


class Adapted(nn.Module):
  """A model with factors beside it, which is called like the model.

  Parameters are `model/...`, the model's own, and `lora/...`, the factors; training freezes the former.

  Attributes:
    adapted: the model.
    rank: of every change.
    alpha: see `merged`.
    pattern: see `adapted_paths`.
  """

  adapted: nn.Module
  rank: int
  alpha: float | None = None
  pattern: str = ATTENTION

  @property
  def config(self):
    """The model's."""
    return self.adapted.config

  def dummy_input(self) -> jax.Array:
    """The smallest first argument of the model."""
    return dummy_ids(self.adapted)

  @nn.compact
  def __call__(self, *args: Any, **inputs: Any) -> Any:
    """The model's output with the changed kernels."""
    model = self.adapted.clone(parent=None, name=None)
    if self.is_initializing():

      def draw(key):
        return model.init(key, model_input)["params"]

      model_input = self.dummy_input()
      boxed = jax.eval_shape(draw, jax.random.key(0))
      self.param("model", draw)
      self.param("lora", lambda key: fresh_factors(key, boxed, self.pattern, self.rank))
    params, factors = (nn.meta.unbox(self.get_variable("params", name)) for name in ("model", "lora"))
    # What needs a key where there is none takes that of the parameters when these are made, and fails later.
    drawn = self.is_initializing() or self.has_rng("dropout")
    rngs = {"dropout": self.make_rng("dropout")} if drawn else {}
    return model.apply({"params": merged(params, factors, self.alpha)}, *args, **inputs, rngs=rngs)


def with_changes(params: Mapping[str, Any], alpha: float | None) -> dict[str, Any]:
  """The parameters of an `Adapted` as those of its model."""
  return merged(params["model"], params["lora"], alpha)
