"""Tensor-parallel parts: a model whose tensors are cut into as many pieces as there were devices, a folder for each.

`FOLDER/part_0 ... part_{n-1}`, each a Hub folder of its own, as the original's convert_fs_llama_tp.py writes them. The
table's `parallel_axes` say along which axis a tensor is cut; all others are in every part, and the same in all.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from convert_torch import engine, io
from convert_torch.weights import Table
from fsb_jax.errors import UserError


def part_folders(folder: Path) -> list[Path]:
  """The folders of the parts in their order, none where there are none; UserError where one between is missing."""
  held = {int(match[1]): path for path in folder.glob("part_*") if (match := re.fullmatch(r"part_(\d+)", path.name))}
  missing = [i for i in range(max(held, default=-1) + 1) if i not in held]
  if missing:
    raise UserError(f"{folder} has no part_{missing[0]}, though it has part_{max(held)}; download it again")
  return [held[i] for i in range(len(held))]


def axis_of(table: Table, name: str) -> int | None:
  """The axis along which a tensor is cut; None where it is whole in every part."""
  for pattern, axis in table.parallel_axes.items():
    if engine.matches(pattern, name, "") or engine.matches(pattern, name, table.prefix):
      return axis
  return None


class PartFiles:
  """The weights of all parts, opened but not read, each tensor as if it were whole; has what `io.WeightFiles` has.

  Attributes:
    paths: the parts' weight files, in order.
    tensors: what they hold together; a tensor's `file` is that of the first part.
  """

  def __init__(self, folder: Path, table: Table):
    """Reads the headers of all parts.

    Raises:
      UserError: the family knows no parts, one is missing or damaged, or they do not belong together.
    """
    if not table.parallel_axes:
      raise UserError(f"{folder} holds part_0 and more, but the family of its config.json is not kept in parts")
    self._table = table
    self._parts = [io.WeightFiles(part) for part in part_folders(folder)]
    self._pieces = self._belonging_together()
    self.paths = [path for part in self._parts for path in part.paths]
    self.tensors = list(self._pieces)

  def read(self, tensors: Iterable[io.TensorInfo]) -> Iterator[tuple[io.TensorInfo, np.ndarray]]:
    """Yields the tensors, each joined when its turn comes; UserError where what all parts hold differs."""
    # Those whose pieces lie in the same files together, so that every part is read once, and in step with the others.
    together: dict[tuple[Path, ...], list[io.TensorInfo]] = {}
    for info in tensors:
      together.setdefault(tuple(piece.file for piece in self._pieces[info]), []).append(info)
    for infos in together.values():
      reading = [
        part.read([self._pieces[info][i] for info in infos]) for i, part in enumerate(self._parts)
      ]
      for info, *pieces in zip(infos, *reading, strict=True):
        yield info, self._join(info, pieces)

  def sha256(self) -> dict[str, str]:
    """The hash of every weight file, by `part_0/model.safetensors`."""
    return {f"{path.parent.name}/{path.name}": io.sha256(path) for path in self.paths}

  def _join(self, info: io.TensorInfo, pieces: list[tuple[io.TensorInfo, np.ndarray]]) -> np.ndarray:
    arrays = [array for _, array in pieces]
    axis = axis_of(self._table, info.name)
    if axis is not None:
      return np.concatenate(arrays, axis)
    for piece, array in pieces[1:]:
      if not np.array_equal(array, arrays[0]):
        raise UserError(f"{info.name} in {piece.file} differs from that in {info.file}; every part must hold the same")
    return arrays[0]

  def _belonging_together(self) -> dict[io.TensorInfo, list[io.TensorInfo]]:
    """Whole tensor -> its pieces, part by part."""
    named = [{info.name: info for info in part.tensors} for part in self._parts]
    first, result = named[0], {}
    for part, others in zip(self._parts, named):
      if lost := sorted(first.keys() ^ others.keys()):
        where = "lacks" if lost[0] in first else "alone has"
        raise UserError(f"{part.paths[0].parent} {where} {lost[0]}; the parts do not belong together")
      for name, info in others.items():
        if (info.shape, info.dtype) != (first[name].shape, first[name].dtype):
          raise UserError(
            f"{name} is {info.dtype} {list(info.shape)} in {info.file} and {first[name].dtype} "
            f"{list(first[name].shape)} in {first[name].file}; the parts do not belong together"
          )
    for name, info in first.items():
      axis = axis_of(self._table, name)
      if axis is not None and axis >= len(info.shape):
        raise UserError(f"{name} in {info.file} is {list(info.shape)}, which has no axis {axis} to be joined along")
      shape = tuple(size * len(named) if i == axis else size for i, size in enumerate(info.shape))
      result[io.TensorInfo(name, shape, info.dtype, info.file)] = [others[name] for others in named]
    return result


def require_divisible(table: Table, config, slots: Iterable[engine.Slot], count: int) -> None:
  """UserError where a family has no parts, or a model cannot be cut into `count` of them."""
  if not table.parallel_axes:
    raise UserError("this family is not written in parts; leave tensor_parallel out")
  if count < 1:
    raise UserError(f"tensor_parallel={count} makes no part; give how many devices are to share the model")
  if config.num_heads % count:
    raise UserError(f"tensor_parallel={count} does not divide num_attention_heads {config.num_heads}")
  for slot in slots:
    axis = axis_of(table, slot.theirs)
    if axis is not None and slot.shape[axis] % count:
      raise UserError(
        f"tensor_parallel={count} does not divide axis {axis} of {slot.theirs} {list(slot.shape)}; "
        "vocab_size= rounds the vocabulary"
      )


def piece(table: Table, tensors: Iterable[tuple[str, np.ndarray]], part: int, count: int) -> Iterator:
  """What part `part` of `count` holds of every tensor, `(name, array)`."""
  for name, array in tensors:
    axis = axis_of(table, name)
    yield name, array if axis is None else np.split(array, count, axis)[part]
