"""Hub folders on disk: weight files read one tensor at a time, and whole folders written at once or not at all."""

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fsb_jax import checkpoints
from fsb_jax.errors import UserError

# Names of weight files in the order they are looked for: nothing in a safetensors file can run.
HUB_NAMES = (("model", ".safetensors"), ("pytorch_model", ".bin"))
DIFFUSERS_NAMES = (("diffusion_pytorch_model", ".safetensors"), ("diffusion_pytorch_model", ".bin"))
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """A tensor in a file: its name there, shape, dtype (numpy's name, or the file's own where numpy has none)."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  file: Path


class WeightFiles:
  """The weights of a Hub folder, or of one file, opened but not read.

  Attributes:
    paths: the weight files, in order.
    tensors: what they hold; names may repeat across files.
  """

  def __init__(
    self, folder: Path | str, names: tuple[tuple[str, str], ...] = HUB_NAMES, variant: str | None = None
  ):
    """Finds the weight files and reads their headers.

    Args:
      folder: a Hub folder, or a file.
      names: of the files looked for in a folder, and their suffixes.
      variant: what stands before the suffix, such as "fp16"; None for nothing, or for the only one the folder has.

    Raises:
      UserError: no weights, a shard missing, a damaged file, or a pickle that asks for more than tensors.
    """
    folder = Path(folder)
    found = folder if folder.is_file() else _find_weights(folder, names, variant)
    weight_map = _read_index(found) if found.suffix == ".json" else {}
    self.paths = [found.parent / name for name in sorted(set(weight_map.values()))] or [found]
    self.tensors = [info for path in self.paths for info in _headers(path)]
    held = {(info.name, info.file.name) for info in self.tensors}
    lost = sorted(name for name, file in weight_map.items() if (name, file) not in held)
    if lost:
      raise UserError(
        f"{found} promises {lost[0]} in {weight_map[lost[0]]}, which does not hold it; download the folder again"
      )

  def read(self, tensors: Iterable[TensorInfo]) -> Iterator[tuple[TensorInfo, np.ndarray]]:
    """Yields the tensors file by file, each read when its turn comes; keep one and it stays in memory."""
    wanted: dict[Path, list[TensorInfo]] = {}
    for info in tensors:
      wanted.setdefault(info.file, []).append(info)
    for path, infos in wanted.items():
      yield from _read_safetensors(path, infos) if path.suffix == ".safetensors" else _read_torch(path, infos)

  def sha256(self) -> dict[str, str]:
    """The hash of every weight file, by file name."""
    return {path.name: sha256(path) for path in self.paths}


def sha256(path: Path) -> str:
  """The hexadecimal sha256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(folder: Path) -> dict:
  """A Hub folder's `config.json`; UserError says what is missing where the folder is no model."""
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; give one that holds config.json and the weights")
  if not (folder / "config.json").is_file():
    raise UserError(f"{folder} has no config.json, so it is not a Hub model folder")
  return checkpoints.read_json(folder / "config.json")


def _find_weights(folder: Path, names: tuple[tuple[str, str], ...], variant: str | None) -> Path:
  held = _variants(folder, names)
  # What a folder has in one variant alone is what is meant.
  tried = [variant, *held] if variant is None and len(held) == 1 else [variant]
  dots = [f".{name}" if name else "" for name in tried]
  looked_for = [
    name
    for dot in dots
    for stem, suffix in names
    for name in (f"{stem}{dot}{suffix}", f"{stem}{suffix}.index{dot}.json")
  ]
  for name in looked_for:
    if (folder / name).is_file():
      return folder / name
  hint = f"; it has the variants {held}, which variant= asks for" if set(held) - {variant} else ""
  raise UserError(f"{folder} has no weights: looked for {', '.join(looked_for)}{hint}")


def _variants(folder: Path, names: tuple[tuple[str, str], ...]) -> list[str]:
  """What stands before the suffix of a folder's weights, such as "fp16"."""
  matches = (
    re.fullmatch(rf"{re.escape(stem)}(?:\.(\w+){re.escape(suffix)}|{re.escape(suffix)}\.index\.(\w+)\.json)", path.name)
    for path in folder.glob("*")
    for stem, suffix in names
  )
  return sorted({match[1] or match[2] for match in matches if match})


def _read_index(path: Path) -> dict[str, str]:
  """Tensor name -> file name; the files are in the index's own folder, and of the kind its name says."""
  weight_map = checkpoints.read_json(path).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
    raise UserError(f"{path} has no weight_map of tensor names to file names")
  suffix = ".safetensors" if ".safetensors." in path.name else ".bin"
  for name in sorted(set(weight_map.values())):
    # An index must not make us read a file outside its folder, nor unpickle where it promised safetensors.
    if Path(name).name != name or "\\" in name or not name.endswith(suffix):
      raise UserError(f"{path} names {name!r}, which is not a {suffix} file in the same folder")
    if not (path.parent / name).is_file():
      raise UserError(f"{path} names {name}, which the folder lacks; download it again")
  return weight_map


def _headers(path: Path) -> list[TensorInfo]:
  if path.suffix != ".safetensors":
    return [
      TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), path)
      for name, tensor in _load_torch(path).items()
    ]
  with _open_safetensors(path) as file:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return [
      TensorInfo(name, tuple(s.get_shape()), _SAFETENSORS_DTYPES.get(s.get_dtype(), s.get_dtype()), path)
      for name, s in slices.items()
    ]


def _open_safetensors(path: Path):
  from safetensors import SafetensorError, safe_open

  try:
    return safe_open(path, framework="np")
  except SafetensorError as error:
    raise UserError(
      f"{path} ({path.stat().st_size} bytes) is cut short or not a safetensors file ({error}); download it again"
    ) from None


def read_metadata(path: Path) -> dict[str, str]:
  """What a safetensors file says of itself."""
  with _open_safetensors(path) as file:
    return file.metadata() or {}


def _read_safetensors(path: Path, infos: list[TensorInfo]) -> Iterator[tuple[TensorInfo, np.ndarray]]:
  with _open_safetensors(path) as file:
    for info in infos:
      yield info, file.get_tensor(info.name)


def _read_torch(path: Path, infos: list[TensorInfo]) -> Iterator[tuple[TensorInfo, np.ndarray]]:
  state = _load_torch(path)
  for info in infos:
    tensor = state[info.name]
    # numpy has no bfloat16; every bfloat16 is a float32.
    yield info, (tensor.float() if info.dtype == "bfloat16" else tensor).numpy()


def _load_torch(path: Path) -> dict:
  """A pickled state dict through PyTorch's restricted unpickler, mapped from disk where its format allows."""
  import pickle

  try:
    import torch
  except ImportError:
    raise UserError(f"reading {path} needs PyTorch: pip install 'fsb_jax[convert]'") from None
  try:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
  except pickle.UnpicklingError as error:
    asked = re.search(r"GLOBAL\s+(\S+)", str(error))
    wants = f"asks to load {asked[1]}" if asked else "holds more than tensors"
    raise UserError(
      f"{path} is refused: its pickle {wants}, which could run code; ask its author for safetensors"
    ) from None
  except (RuntimeError, EOFError, OSError) as error:
    reason = str(error).split("\n")[0] or type(error).__name__
    raise UserError(f"{path} ({path.stat().st_size} bytes) is cut short or damaged: {reason}") from None
  if path.suffix == ".ckpt" and isinstance(state, dict):
    # What a trainer keeps beside it is none of the model.
    state = state.get("state_dict", state)
    state = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
  if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
    raise UserError(f"{path} is not a plain dictionary of tensors; save model.state_dict() alone")
  return state


def write_folder(
  folder: Path | str,
  tensors: Iterable[tuple[str, np.ndarray]],
  config: dict,
  tokenizer_from: Path | str | None = None,
  max_shard_bytes: int = 5 * 10**9,
  stem: str = "model",
) -> None:
  """Writes a Hub folder; it appears complete or not at all.

  Args:
    folder: where; must not exist, or be empty.
    tensors: names and arrays, consumed one at a time; at most one shard is held in memory.
    config: what becomes config.json.
    tokenizer_from: a folder whose tokenizer files are copied as they are; None copies none.
    max_shard_bytes: size above which the weights are split into files of at most this size with an index.
    stem: what weight files are called.

  Raises:
    UserError: the folder exists and is not empty.
  """
  with checkpoints.new_folder(folder) as inside:
    _write_shards(inside, tensors, max_shard_bytes, stem)
    write_json(inside / "config.json", config)
    checkpoints.copy_tokenizer(tokenizer_from, inside)


def write_parts(
  folder: Path | str,
  parts: Iterable[Iterable[tuple[str, np.ndarray]]],
  config: dict,
  tokenizer_from: Path | str | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes `folder/part_0`, `part_1`, ..., a Hub folder for each of `parts`; see `write_folder` for the rest.

  config.json and the tokenizer's files are in the folder itself, and config.json in every part, too.
  """
  with checkpoints.new_folder(folder) as inside:
    for i, tensors in enumerate(parts):
      write_folder(inside / f"part_{i}", tensors, config, None, max_shard_bytes)
    write_json(inside / "config.json", config)
    checkpoints.copy_tokenizer(tokenizer_from, inside)


def _write_shards(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int, stem: str) -> None:
  from safetensors.numpy import save_file

  shards: list[list[str]] = []
  held: dict[str, np.ndarray] = {}
  total = 0

  def flush():
    save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
    shards.append(list(held))
    held.clear()

  for name, array in tensors:
    if held and sum(x.nbytes for x in held.values()) + array.nbytes > max_shard_bytes:
      flush()
    # safetensors writes the memory as it lies, whatever the strides say.
    held[name] = np.ascontiguousarray(array).reshape(array.shape)
    total += array.nbytes
  flush()
  if len(shards) == 1:
    (folder / "0.part").rename(folder / f"{stem}.safetensors")
    return
  weight_map = {}
  for i, names in enumerate(shards):
    file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    (folder / f"{i}.part").rename(folder / file)
    weight_map.update(dict.fromkeys(names, file))
  write_json(
    folder / f"{stem}.safetensors.index.json",
    {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
  )


def write_json(path: Path, value: dict) -> None:
  """Writes a JSON file as the Hub has them: indented, in UTF-8."""
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
