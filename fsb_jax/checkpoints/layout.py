"""The two layouts of a stack: stacked (`layers/...`, a leading axis) and unrolled (`layers_{i}/...`)."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

_UNROLLED = re.compile(r"layers_(\d+)")


def to_layout(params: Mapping[str, Any], scan_layers: bool) -> dict[str, Any]:
  """`params` (nested dicts of host arrays) in the layout asked for; untouched where they have it already."""
  result: dict[str, Any] = {}
  unrolled: dict[int, Any] = {}
  for name, value in params.items():
    match = _UNROLLED.fullmatch(name)
    if match and scan_layers:
      unrolled[int(match[1])] = value
    elif name == "layers" and not scan_layers:
      count = len(jax.tree.leaves(value)[0])
      result.update({f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(count)})
    elif isinstance(value, Mapping):
      result[name] = to_layout(value, scan_layers)
    else:
      result[name] = value
  if unrolled:
    result["layers"] = jax.tree.map(lambda *xs: np.stack(xs), *(unrolled[i] for i in range(len(unrolled))))
  return result


# Logical axes that may differ between a saved array and the one wanted, because a mesh pads them.
_PADDED_AXES = ("table_vocab", "table_ngrams", "vocab")


def fits(saved: tuple[int, ...], wanted: tuple[int, ...], names: Sequence[str | None] = ()) -> bool:
  """Whether an array of shape `saved` can stand in for one of shape `wanted` whose axes are called `names`."""
  names = names or (None,) * len(saved)
  return len(saved) == len(wanted) and all(
    have == want or name in _PADDED_AXES for have, want, name in zip(saved, wanted, names, strict=True)
  )


def fit(
  saved: Mapping[str, Any], boxed: Mapping[str, Any], may_lack: Callable[[str], bool]
) -> tuple[dict[str, Any], list[str], list[str]]:
  """Fits saved arrays to a model's parameters: vocabularies padded or cut, what the model has no place for left out.

  Args:
    saved: path -> array.
    boxed: path -> shape and dtype with logical names.
    may_lack: whether a checkpoint may lack (or have to spare) the parameter at a path.

  Returns:
    The arrays that fit, by path; the paths lacking; a line for everything that does not fit.
  """
  fitted, lacking, problems = {}, [], []
  for path, box in boxed.items():
    wanted, have = box.value.shape, saved.get(path)
    if have is not None and fits(have.shape, wanted, box.names):
      fitted[path] = np.asarray(resize(have, wanted), box.value.dtype)
    elif may_lack(path):
      lacking.append(path)
    else:
      problems.append(f"- {path} {wanted}: " + ("missing" if have is None else f"the folder has {have.shape}"))
  problems += [f"+ {path}: unknown" for path in saved if path not in boxed and not may_lack(path)]
  return fitted, lacking, problems


def resize(array: Any, shape: tuple[int, ...]) -> Any:
  """`array` cut back or filled with zeros to `shape`: how padded vocabularies grow and shrink."""
  if array.shape == shape:
    return array
  cut = array[tuple(slice(0, size) for size in shape)]
  return jax.numpy.pad(cut, [(0, size - have) for size, have in zip(shape, cut.shape)])
