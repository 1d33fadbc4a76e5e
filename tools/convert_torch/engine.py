"""Carries tensors between PyTorch's names and our parameter tree by a table's rows, strictly in both directions.

The engine, not the table, decides whether layers are stacked: `encoder/layers_{i}/...` is the path of an unrolled
layer, and `encoder/layers/...` with a leading axis is where a scanned one lives.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from convert_torch.io import TensorInfo, WeightFiles
from convert_torch.weights import Row, Table
from fsb_jax import models

FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Slot:
  """One tensor of theirs and its place in ours: the parameter at `path`, or its slice `index`."""

  path: str
  index: int | None
  row: Row
  theirs: str
  otherwise: str | None
  shape: tuple[int, ...]


@dataclasses.dataclass
class Match:
  """How the tensors of some files fit a model.

  Attributes:
    sources: tensor -> the slots it fills.
    missing: paths of parameters that the files lack; each is one that `models.may_be_fresh`.
    unused: names of known tensors that the model has no place for.
    problems: a line for everything that does not fit.
  """

  sources: dict[TensorInfo, list[Slot]]
  missing: list[str]
  unused: list[str]
  problems: list[str]


def slots(table: Table, config, shapes: Mapping[str, tuple[int, ...]], prefixed: bool) -> list[Slot]:
  """Every tensor that the parameters consist of, with its name and shape on PyTorch's side.

  Args:
    table: the family's table.
    config: a `TransformerConfig`.
    shapes: path -> shape of every parameter of the model.
    prefixed: whether the encoder's names carry `table.prefix`.

  Raises:
    ValueError: the table is broken: a parameter has no row, or an encoder's row no parameter.
  """
  strip = "" if prefixed else table.prefix
  result, idle = [], []
  left_out = _left_out(table, shapes)
  for row in table.rows:
    places = _places(row.ours, shapes)
    if not places and not row.optional and not models.may_be_fresh(row.ours) and row not in left_out:
      idle.append(row.ours)
    for layer, (path, index, shape) in enumerate(places):
      theirs, otherwise = (
        name and name.removeprefix(strip).replace("{i}", str(layer)) for name in (row.theirs, row.otherwise)
      )
      # No memory: one zero seen through zero strides, so that the op itself says what shape it saves.
      saved = row.op.save(np.broadcast_to(np.zeros((), np.float32), shape), config)
      result.append(Slot(path, index, row, theirs, otherwise, row.op.whole(saved.shape)))
  homeless = sorted(set(shapes) - {slot.path for slot in result})
  if idle or homeless:
    raise ValueError(f"broken weight table: rows without a parameter {idle}, parameters without a row {homeless}")
  return result


def _places(ours: str, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int | None, tuple[int, ...]]]:
  """(path, index into it, shape) of every parameter or slice that a row's path stands for."""
  stacked = ours.replace("_{i}", "")
  if stacked not in shapes:  # unrolled, or not in this model
    paths = itertools.takewhile(shapes.__contains__, (ours.replace("{i}", str(i)) for i in itertools.count()))
    return [(path, None, shapes[path]) for path in paths]
  if stacked == ours:
    return [(ours, None, shapes[ours])]
  layers, *shape = shapes[stacked]
  return [(stacked, i, tuple(shape)) for i in range(layers)]


def match(
  table: Table,
  files: WeightFiles,
  config,
  shapes: Mapping[str, tuple[int, ...]],
  replace_heads: bool = False,
  config_fields: Mapping[str, Any] | None = None,
) -> Match:
  """Finds a tensor for every parameter, by names and shapes; reads only what should repeat another tensor.

  Args:
    table: the family's table.
    files: the opened weight files.
    config: a `TransformerConfig`.
    shapes: path -> shape of every parameter of the model.
    replace_heads: whether a head's parameter whose shape differs counts as missing.
    config_fields: what config.json says, for the problems to name.

  Returns:
    The match, with a problem for every tensor that is unknown (+), missing (-), repeated (+), misshapen or not
    floating point (!), or tied to one from which it differs (!).

  Raises:
    ValueError: the table is broken, see `slots`.
  """
  found: dict[str, TensorInfo] = {}
  problems = []
  for info in files.tensors:
    name = info.name
    for pattern, replacement in table.rename:
      name = re.sub(pattern, replacement, name)
    if any(re.fullmatch(pattern, name) for pattern in table.ignore):
      continue
    if _is_constant(table, name):
      problems += _check_constant(table, files, info, name, config)
      continue
    if name in found:
      problems.append(f"  + {info.name} {list(info.shape)} in {info.file.name}: a second {name}")
    found[name] = info
  prefixed = any(name.startswith(table.prefix) for name in found)
  needed = slots(table, config, shapes, prefixed)

  taken: set[str] = set()
  sources: dict[TensorInfo, list[Slot]] = {}
  missing, unused = [], []
  for slot in needed:
    name = next((n for n in (slot.theirs, slot.otherwise) if n in found), None)
    if name is None and models.may_be_fresh(slot.path):
      missing.append(slot.path)
      continue
    if name is None:
      problems.append(f"  - {slot.theirs} {list(slot.shape)} for {slot.path}{_said_of(slot.row, config_fields)}")
      continue
    taken.add(name)
    info = found[name]
    if info.shape != slot.shape and replace_heads and slot.path.startswith("head/"):
      missing.append(slot.path)
      unused.append(info.name)
    elif info.shape != slot.shape:
      said = _said(config_fields or {}, info.shape, slot.shape)
      if slot.row.fields and info.shape[:1] != slot.shape[:1]:
        said = _said_of(slot.row, config_fields)
      problems.append(f"  ! {info.name} is {list(info.shape)}, {slot.path} needs {list(slot.shape)}{said}")
    elif info.dtype not in FLOATS:
      problems.append(f"  ! {info.name} holds {info.dtype}, not floating point numbers")
    else:
      sources.setdefault(info, []).append(slot)

  left_out = _left_out(table, shapes)
  problems += _other_layers(table, left_out, found, config, config_fields or {})
  used_rows = {slot.row for slot in needed}
  idle_rows = [
    row for row in table.rows if row not in used_rows and (models.may_be_fresh(row.ours) or row in left_out)
  ]
  strip = "" if prefixed else table.prefix
  tied = _tied_copies(table, config, strip)
  for name, info in found.items():
    if name in taken:
      continue
    if name in tied and tied[name] in found:
      always = any(matches(copy, name, strip) for copy in (*table.copies, *table.untied_copies))
      problems += _compare(files, info, found[tied[name]], always)
    elif name in tied or any(matches(row.theirs, name, strip) for row in idle_rows):
      unused.append(info.name)
    else:
      row = next((row for row in table.rows if row.fields and matches(row.theirs, name, strip)), None)
      problems.append(f"  + {info.name} {list(info.shape)}{_said_of(row, config_fields)}")
  return Match(sources, sorted(set(missing)), sorted(unused), problems)


def _said(fields: Mapping[str, Any], shape: tuple[int, ...], needed: tuple[int, ...]) -> str:
  """The fields of config.json that speak of the sizes in which two shapes differ."""
  alike = len(shape) == len(needed)
  sizes = {want for have, want in zip(shape, needed) if have != want} if alike else {*needed}
  said = [f"{name}={value}" for name, value in fields.items() if type(value) is int and value in sizes]
  return f" (config.json says {', '.join(said)})" if said else ""


def _said_of(row: Row | None, fields: Mapping[str, Any] | None) -> str:
  """What config.json says in a row's own fields, or that it does not say it."""
  if row is None or not row.fields or not fields:
    return ""
  said = [f"{name}={fields[name]}" for name in row.fields if name in fields]
  return f" (config.json says {', '.join(said)})" if said else f" (config.json does not say {row.fields[0]})"


def _left_out(table: Table, shapes: Collection[str]) -> set[Row]:
  """The decoder's rows, where a model is an encoder alone."""
  if any(path.startswith("decoder/") for path in shapes):
    return set()
  return {row for row in table.rows if row.ours.startswith("decoder/")}


def _other_layers(
  table: Table, left_out: Collection[Row], found: Collection[str], config, fields: Mapping[str, Any]
) -> list[str]:
  """A line where the files hold more or fewer layers than config.json says."""
  if not fields:
    return []
  count, kind = (config.num_layers, "layer") if config.layer_groups is None else (config.layer_groups, "group")
  count = max(count, config.decoder_config.num_layers if config.decoder and not left_out else 0)
  said = [f"{name}={value}" for name, value in fields.items() if value == count and kind in name]
  rows = (row for row in table.rows if row not in left_out and not models.may_be_fresh(row.ours))
  body = (row.theirs.removeprefix(table.prefix) for row in rows)
  patterns = {re.escape(name).replace(r"\{i\}", r"(\d+)") for name in body}
  indices = (
    int(match[1])
    for name in found
    for pattern in patterns
    if "(" in pattern and (match := re.fullmatch(pattern, name.removeprefix(table.prefix)))
  )
  held = 1 + max(indices, default=-1)
  if not said or not held or held == count:
    return []
  return [f"  ! the files hold {held} {kind}s (config.json says {said[0]})"]


def read(match: Match, files: WeightFiles, config, shapes: Mapping[str, tuple[int, ...]], dtype) -> dict:
  """Reads the matched parameters, path -> array of `dtype`, one tensor at a time."""
  params: dict[str, np.ndarray] = {}
  for info, tensor in files.read(match.sources):
    for slot in match.sources[info]:
      if slot.path not in params:
        params[slot.path] = np.empty(shapes[slot.path], dtype)
      params[slot.path][... if slot.index is None else slot.index] = slot.row.op.load(tensor, config)
  return params


def _is_constant(table: Table, name: str) -> bool:
  return any(matches(constant, name, strip) for constant in table.constants for strip in ("", table.prefix))


def _check_constant(table: Table, files: WeightFiles, info: TensorInfo, name: str, config) -> list[str]:
  """A line where a tensor that is read by transformers is not what we make in its place."""
  known = next((x for x in table.checked if name in (x, x.removeprefix(table.prefix))), None)
  if known is None:
    return []
  (array,), expected = (array for _, array in files.read([info])), table.constants[known](config)
  # In 16 bits a number below 1 is off by less.
  if array.shape == expected.shape and np.allclose(np.asarray(array, np.float32), expected, rtol=0, atol=2**-8):
    return []
  return [f"  ! {info.name} holds other numbers than the fixed ones that fsb_jax makes in its place"]


def _constants(table: Table, strip: str, names: Collection[str]) -> Iterator[tuple[str, Callable]]:
  """The table's constants, those of layers once for every layer that `names` has tensors of."""
  for constant, make in table.constants.items():
    constant = constant.removeprefix(strip)
    before, wildcard, _ = constant.partition("{i}")
    if not wildcard:
      yield constant, make
      continue
    layers = {name.removeprefix(before).partition(".")[0] for name in names if name.startswith(before)}
    for i in sorted(layers, key=int):
      yield constant.replace("{i}", i), make


def _tied_copies(table: Table, config, strip: str) -> dict[str, str]:
  """Names that repeat another tensor -> that tensor."""
  rows = [row for row in table.rows if row.tied_to and config.tie_embeddings]
  pairs = {row.theirs: row.tied_to for row in rows} | {**table.copies, **table.untied_copies}
  return {copy.removeprefix(strip): original.removeprefix(strip) for copy, original in pairs.items()}


def ties_what_differs(table: Table, files: WeightFiles) -> bool:
  """Whether the files hold a kernel of the vocabulary that is not the token table which it is tied to."""
  found = {info.name: info for info in files.tensors}
  pairs = [(found.get(row.theirs), found.get(row.tied_to)) for row in table.rows if row.tied_to]
  return any(copy and original and not _equal(files, copy, original) for copy, original in pairs)


def _equal(files: WeightFiles, copy: TensorInfo, original: TensorInfo) -> bool:
  return np.array_equal(*(array for _, array in files.read([copy, original])))


def _compare(files: WeightFiles, copy: TensorInfo, original: TensorInfo, always: bool) -> list[str]:
  if _equal(files, copy, original):
    return []
  if always:
    return [f"  ! {copy.name} differs from {original.name}, which it always repeats"]
  return [
    f"  ! {copy.name} differs from {original.name}, though config.json ties them; set tie_word_embeddings to false "
    "in config.json"
  ]


def matches(theirs: str, name: str, strip: str) -> bool:
  """Whether a tensor's name is that of a row, `{i}` being any layer, whose prefix `strip` the files leave out."""
  pattern = re.escape(theirs.removeprefix(strip)).replace(r"\{i\}", r"\d+")
  return re.fullmatch(pattern, name) is not None


def save(table: Table, params: Mapping[str, np.ndarray], config, *, prefixed: bool) -> Iterator[tuple[str, np.ndarray]]:
  """Yields PyTorch's tensors one at a time, as views where numpy can make one.

  Args:
    table: the family's table.
    params: path -> array of every parameter of the model.
    config: a `TransformerConfig`.
    prefixed: whether the class has a head, so that the encoder's names carry `table.prefix`.

  Raises:
    ValueError: the table is broken, see `slots`.
  """
  strip = "" if prefixed else table.prefix
  tied = _tied_copies(table, config, strip)
  untied = {copy.removeprefix(strip): name.removeprefix(strip) for copy, name in table.untied_copies.items()}
  written = set()
  pieces: dict[str, dict[int, np.ndarray]] = {}
  for slot in slots(table, config, {path: x.shape for path, x in params.items()}, prefixed):
    array = np.asarray(params[slot.path] if slot.index is None else params[slot.path][slot.index])
    op = slot.row.op
    if op.join is not None:
      have = pieces.setdefault(slot.theirs, {})
      have[op.part] = op.save(array, config)
      if len(have) == op.parts:
        have = pieces.pop(slot.theirs)
        written.add(slot.theirs)
        yield slot.theirs, op.join([have[part] for part in range(op.parts)], config)
      continue
    for name in (slot.theirs, slot.otherwise):
      if name is not None and name not in tied and name not in written:
        written.add(name)
        yield name, op.save(array, config)
    if untied and not config.tie_embeddings:
      yield from ((copy, op.save(array, config)) for copy, name in untied.items() if name == slot.theirs)
  for name, make in _constants(table, strip, written):
    value = make(config)
    if value is not None:
      yield name, value
