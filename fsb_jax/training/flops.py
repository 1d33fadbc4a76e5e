"""Floating point operations of a model, counted from its jaxpr; and what chips can do."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend

# Dense bfloat16 operations per second of a chip by `device_kind`, from the makers' data sheets. A run in float32 is
# held against the same number.
PEAKS = {
  "TPU v2": 45e12 / 2,
  "TPU v3": 123e12 / 2,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


def peak_per_second(device: jax.Device) -> float | None:
  """What `device` can do at most, None where we do not know."""
  return PEAKS.get(device.device_kind)


def matmul_flops(function: Callable, *arguments: Any) -> int:
  """Operations of the matrix products and convolutions in `function`, a multiply-add counted as two.

  Loops count as often as they run (XLA's own cost analysis counts their body once), branches by their largest.
  Elementwise work is left out, as is usual for model FLOPs (Chowdhery et al. 2022, appendix B).

  Args:
    function: what to count.
    *arguments: arrays or their shapes.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features
  inner = [_count(each) for each in jax.extend.core.jaxprs_in_params(params)]
  if name == "cond":
    return max(inner)
  return sum(inner) * (params["length"] if name == "scan" else 1)
