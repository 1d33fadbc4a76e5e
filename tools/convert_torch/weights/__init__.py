"""One weight table per family, in a file of the family's name; a reviewer checks it by eye."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convert_torch.ops import Op, same
from fsb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter.

  Attributes:
    ours: its path, `encoder/layers_{i}/attention/query/kernel`; `{i}` is the only wildcard.
    theirs: its tensor's name in PyTorch's class with a head.
    op: from their form to ours.
    otherwise: another name of the same tensor: read where the file lacks the first, written beside it.
    tied_to: the tensor this one repeats where `config.tie_embeddings`; then it must equal it, and is not written.
    optional: some configs have no such parameter in the encoder (heads and poolers may always lack theirs).
    fields: of config.json that say whether there is such a parameter, or make its first axis longer or shorter without
      being its length.
  """

  ours: str
  theirs: str
  op: Op = same
  otherwise: str | None = None
  tied_to: str | None = None
  optional: bool = False
  fields: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """How one family's tensors map, in both directions.

  Attributes:
    prefix: what begins the encoder's names in classes with a head; the bare model's names lack it.
    rows: one for every parameter of every head.
    ignore: patterns (matched whole, after `rename`) of tensors that hold nothing learned.
    rename: (pattern, replacement) that bring old names to today's.
    constants: tensors that hold nothing learned and yet must be in a file: name -> what a config makes them, None where
      it has no such tensor. `{i}` in a name is every layer that has rows. Those of a file are not read.
    checked: constants that transformers reads from a file: ours must be the same.
    copies: tensors that always repeat another -> that one; they are not written.
    untied_copies: the same of those that version 5 of transformers ties only where `config.tie_embeddings`; elsewhere
      they are written.
    keeps_apart: transformers ties embeddings whatever config.json says, unless the files hold two that differ.
    parallel_axes: names of the tensors that are cut where several devices share a model -> the axis, see `parts.py`.
    in_transformers: transformers has this family's classes.
    float64_in_transformers: they run in float64, and compute in it.
  """

  prefix: str
  rows: tuple[Row, ...]
  ignore: tuple[str, ...] = ()
  rename: tuple[tuple[str, str], ...] = ()
  constants: Mapping[str, Callable[[Any], np.ndarray | None]] = dataclasses.field(default_factory=dict)
  checked: tuple[str, ...] = ()
  copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
  untied_copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
  keeps_apart: bool = False
  parallel_axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  in_transformers: bool = True
  float64_in_transformers: bool = True


def table(family: str) -> Table:
  """The weight table of a family; UserError where it has none."""
  name = f"{__name__}.{family}"
  if importlib.util.find_spec(name) is None:
    raise UserError(f"fsb_jax has no weight table for the {family} family, so it cannot convert its checkpoints")
  return importlib.import_module(name).TABLE
