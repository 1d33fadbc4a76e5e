"""Label names and their ids."""

from collections.abc import Iterable, Sequence

import numpy as np

from fsb_jax.errors import UserError

_NAMES_SHOWN = 20


class LabelMap:
  """Ordered label names; the id of a label is its place.

  Attributes:
    names: the label names.
  """

  def __init__(self, names: Iterable[str]):
    self.names = tuple(names)
    self._ids = {name: index for index, name in enumerate(self.names)}
    if not self.names:
      raise UserError("A label map needs at least one label name.")
    if len(self._ids) != len(self.names):
      repeated = next(name for name in self.names if self.names.count(name) > 1)
      raise UserError(f"Label name {repeated!r} is listed twice.")

  def __len__(self) -> int:
    return len(self.names)

  def __eq__(self, other) -> bool:
    return isinstance(other, LabelMap) and self.names == other.names

  def __hash__(self) -> int:
    return hash(self.names)

  def __repr__(self) -> str:
    return f"LabelMap({list(self.names)})"

  def id(self, name: str) -> int:
    """The id of a label name; an unknown name is a UserError that lists the known ones."""
    if name not in self._ids:
      shown = ", ".join(self.names[:_NAMES_SHOWN])
      more = f" and {len(self) - _NAMES_SHOWN} more" if len(self) > _NAMES_SHOWN else ""
      raise UserError(f"unknown label {name!r}; the known labels are {shown}{more}.")
    return self._ids[name]

  def ids(self, names: Sequence[str]) -> np.ndarray:
    """The ids of a batch of label names, int32 `[batch]`."""
    return np.array([self.id(name) for name in names], np.int32)

  def name(self, label_id: int) -> str:
    """The name of a label id."""
    if not 0 <= label_id < len(self):
      raise UserError(f"label id {label_id} is outside 0..{len(self) - 1}.")
    return self.names[int(label_id)]
