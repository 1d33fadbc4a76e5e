"""The partitioner: the only place that calls `jax.jit` with shardings."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsb_jax.errors import UserError
from fsb_jax.partitioning.mesh import make_mesh
from fsb_jax.partitioning.rules import MeshAxes, check_parameter, merge_rules, mesh_axes, partition_spec

_BATCH_NAMES = ("activation_batch", "activation_length")


class Partitioner:
  """Splits parameters, states and batches over a mesh by named rules.

  Args:
    mesh: a mesh, its sizes as a dict ({"data": -1, "fsdp": 8}), or None for all devices on the data axis.
    rules: changes to `DEFAULT_RULES`.
  """

  def __init__(self, mesh: Mesh | Mapping[str, int] | None = None, rules: Mapping[str, MeshAxes] | None = None):
    if not isinstance(mesh, Mesh):
      if not isinstance(mesh, Mapping | None):
        raise UserError(f"MESH must be sizes by axis, such as {{'fsdp': 8}}, not {mesh!r}")
      unknown = set(mesh or {}) - {"data", "fsdp", "tensor", "sequence"}
      if unknown:
        raise UserError(f"mesh has no axis {sorted(unknown)[0]!r}; there are data, fsdp, tensor, sequence")
      mesh = make_mesh(**(mesh or {}))
    self.mesh = mesh
    self.rules = merge_rules(rules)

  @property
  def vocab_multiple(self) -> int:
    """What the number of vocabulary rows must be a multiple of."""
    return math.lcm(*(self._parts(name) for name in ("table_vocab", "table_ngrams", "vocab", "activation_vocab")))

  @property
  def batch_multiple(self) -> int:
    """What the number of examples in a batch must be a multiple of."""
    return self._parts("activation_batch")

  def _parts(self, name: str) -> int:
    return math.prod(self.mesh.shape[axis] for axis in mesh_axes(self.rules[name]))

  def validate(self, boxed: Any) -> None:
    """UserError where a parameter of the tree `boxed` cannot be split as the rules say."""
    for path, leaf in _leaves(boxed):
      if isinstance(leaf, nn.LogicallyPartitioned):
        check_parameter(path, leaf.value.shape, leaf.names, self.rules, self.mesh.shape)

  def validate_batch(self, batch_size: int, lengths: tuple[int, ...]) -> None:
    """UserError where batches of these shapes cannot be split."""
    if batch_size % self.batch_multiple:
      raise UserError(
        f"BATCH_SIZE {batch_size} cannot be split over {self.batch_multiple} parts (mesh {self.describe()}); "
        f"make it a multiple of {self.batch_multiple}"
      )
    parts = self._parts("activation_length")
    odd = [length for length in lengths if length % parts]
    if odd:
      raise UserError(f"sequences of length {odd[0]} cannot be split over {parts} parts (mesh {self.describe()})")

  def describe(self) -> str:
    """The mesh in words: `data=1, fsdp=8, tensor=1, sequence=1`."""
    return ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())

  def shardings(self, boxed: Any) -> Any:
    """A tree of shardings for a tree of arrays or shapes with logical names; leaves without names are replicated.

    The result has the structure of the unboxed tree.
    """

    def one(leaf):
      names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
      return NamedSharding(self.mesh, partition_spec(names, self.rules))

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  def host_rows(self, batch_size: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, ascending; processes that split rows hold the same ones."""
    sharding = NamedSharding(self.mesh, partition_spec(_BATCH_NAMES[:1], self.rules))
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))

  def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's `host_rows` of a batch as global arrays.

    The first axis of every array is the batch, a last one as long as that of `input_ids` the length.
    """
    length = batch["input_ids"].shape[-1]

    def one(array):
      last = _BATCH_NAMES[1] if array.shape[-1] == length else None
      names = (_BATCH_NAMES[0], *(None,) * (array.ndim - 2), last)[: array.ndim]
      sharding = NamedSharding(self.mesh, partition_spec(names, self.rules))
      if jax.process_count() == 1:
        return jax.device_put(array, sharding)
      size = len(array) * self.batch_multiple // len(self.host_rows(self.batch_multiple))
      rows = self.host_rows(size)

      def part(index):
        here = slice(*np.searchsorted(rows, index[0].indices(size)[:2]))
        return array[here, *index[1:]]

      return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)

    return {name: one(array) for name, array in batch.items()}

  def put(self, tree: Any, shardings: Any) -> Any:
    """Host arrays that every process has whole as global arrays on `shardings`."""

    def one(array, sharding):
      if jax.process_count() == 1:
        return jax.device_put(array, sharding)
      array = np.asarray(array)
      return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree, shardings)

  @contextlib.contextmanager
  def context(self):
    """Makes the mesh and the rules known to the models' constraints."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(self.rules.items())):
      yield

  def jit(self, function: Callable, **options) -> Callable:
    """`jax.jit(function, **options)` that traces and runs with the mesh and rules known."""
    jitted = jax.jit(function, **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
      with self.context():
        return jitted(*args, **kwargs)

    call.jitted = jitted
    return call

  def explain(self, boxed: Any):
    """A rich table: parameter, shape, logical names, what splits it, bytes on each device."""
    from rich.table import Table

    table = Table(title=f"mesh {self.describe()}", title_justify="left")
    for column in ("parameter", "shape", "logical axes", "split over", "bytes/device"):
      table.add_column(column, justify="right" if column.startswith("bytes") else "left", no_wrap=column == "parameter")
    total = 0
    shardings = dict(_leaves(self.shardings(boxed)))
    for path, leaf in _leaves(boxed):
      value = nn.meta.unbox(leaf)
      sharding = shardings[path]
      size = math.prod(sharding.shard_shape(value.shape)) * np.dtype(value.dtype).itemsize
      total += size
      names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
      split = ", ".join("-" if axes is None else "·".join(mesh_axes(axes)) for axes in sharding.spec)
      table.add_row(path, "×".join(map(str, value.shape)), ", ".join(map(str, names)), split, f"{size:,}")
    table.add_section()
    table.add_row("total", "", "", "", f"{total:,}")
    return table


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]
