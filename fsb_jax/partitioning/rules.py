"""Rules: which mesh axes split which logical axis. Activations and parameters have names of their own."""

from collections.abc import Mapping

from jax.sharding import PartitionSpec

from fsb_jax.errors import UserError
from fsb_jax.partitioning.mesh import AXES

MeshAxes = str | tuple[str, ...] | None

DEFAULT_RULES: dict[str, MeshAxes] = {
  # Activations.
  "activation_batch": ("data", "fsdp"),
  "activation_length": "sequence",
  "activation_embed": None,
  "activation_heads": "tensor",
  "activation_kv": None,
  "activation_mlp": "tensor",
  "activation_vocab": "tensor",
  # Of images: those of a residual stream, and those inside its branches.
  "activation_height": "sequence",
  "activation_channels": None,
  "activation_inner_channels": "tensor",
  # Parameters.
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "kv": None,
  "mlp": "tensor",
  "channels": "fsdp",
  "inner_channels": "tensor",
  "vocab": "tensor",
  # Embedding tables are split by rows only: split by columns too, XLA replicates them in full before each lookup.
  "table_vocab": ("tensor", "fsdp"),
  "table_ngrams": ("tensor", "fsdp"),
  "table_embed": None,
  "position": None,
  "token_type": None,
  "norm": None,
  "labels": None,
  "layers": None,
}


def merge_rules(changes: Mapping[str, MeshAxes] | None) -> dict[str, MeshAxes]:
  """The default rules with some replaced; UserError on a logical name or mesh axis that does not exist."""
  for name, axes in (changes or {}).items():
    if name not in DEFAULT_RULES:
      raise UserError(f"partitioning rule for unknown logical axis {name!r}; known: {', '.join(DEFAULT_RULES)}")
    unknown = [axis for axis in mesh_axes(axes) if axis not in AXES]
    if unknown:
      raise UserError(f"partitioning rule {name} -> {axes!r}: no mesh axis {unknown[0]!r}; there are {', '.join(AXES)}")
  merged = {**DEFAULT_RULES, **(changes or {})}
  return {name: tuple(axes) if isinstance(axes, list) else axes for name, axes in merged.items()}


def mesh_axes(axes: MeshAxes) -> tuple[str, ...]:
  """A rule's right side as a tuple."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


def partition_spec(names: tuple[str | None, ...], rules: Mapping[str, MeshAxes]) -> PartitionSpec:
  """The spec of an array whose axes are called `names`."""
  return PartitionSpec(*(None if name is None else rules[name] for name in names))


def check_parameter(
  path: str, shape: tuple[int, ...], names: tuple[str | None, ...], rules: Mapping[str, MeshAxes], sizes: Mapping
) -> None:
  """UserError, naming parameter and rule, where the rules cannot split this parameter over a mesh of `sizes`."""
  taken: dict[str, str] = {}
  for size, name in zip(shape, names, strict=True):
    if name is None:
      continue
    if name not in rules:
      raise UserError(f"parameter {path} has a logical axis {name!r} that no partitioning rule covers")
    axes = mesh_axes(rules[name])
    for axis in axes:
      if axis in taken and sizes[axis] > 1:
        raise UserError(
          f"parameter {path} {names}: rules {taken[axis]} -> {axis} and {name} -> {rules[name]!r} put two of its "
          f"axes on the mesh axis {axis}; change one of them"
        )
      taken[axis] = name
    parts = 1
    for axis in axes:
      parts *= sizes[axis]
    if size % parts:
      raise UserError(
        f"parameter {path} {shape}: rule {name} -> {rules[name]!r} splits {size} into {parts} parts, which does not "
        f"divide; choose another mesh or map {name} to None"
      )
