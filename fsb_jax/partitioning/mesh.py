"""The device mesh: always the same four axes, any of them 1."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from fsb_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")


def make_mesh(
  data: int | None = None,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all devices.

  Args:
    data: copies of the model, each with its part of the batch. If not given, what the other axes leave.
    fsdp: parts of the batch whose parameters and optimizer state are also split between them.
    tensor: parts of heads, feed-forward units and vocabulary.
    sequence: parts of each sequence.
    devices: which devices; all of them if not given.
    At most one size may be -1: it takes the devices the others leave.

  Raises:
    UserError: sizes that do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if data is None:
    data = 1 if -1 in (fsdp, tensor, sequence) else -1
  sizes = dict(zip(AXES, (data, fsdp, tensor, sequence)))
  text = ", ".join(f"{name}={size}" for name, size in sizes.items())
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1 or any(not isinstance(size, int) or size == 0 or size < -1 for size in sizes.values()):
    raise UserError(f"mesh {text}: every size is a positive whole number, and at most one may be -1 (what is left)")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    needed = f"a multiple of {fixed}" if free else str(fixed)
    raise UserError(f"mesh {text} needs {needed} devices, but there are {len(devices)}")
  # Explicit axes, the default since JAX 0.9, break linen's logical metadata.
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
