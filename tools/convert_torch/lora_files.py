"""LoRA files of diffusion models, in the names of diffusers and of kohya-ss, as trees of factors and the way back.

A tree of factors is that of `models.lora`, its layers unrolled. Both kinds of files hold two matrices for every module,
`[rank, inputs]` and `[outputs, rank]`:

  diffusers  unet.mid_block.attentions.0.proj_in.lora_A.weight and lora_B (before: lora.down, lora.up); the change is
             their product, times lora_alpha / r where the file's metadata say so
  kohya      lora_unet_mid_block_attentions_0_proj_in.lora_down.weight, lora_up and alpha; times alpha / rank

Source: https://github.com/huggingface/diffusers, src/diffusers/loaders; https://github.com/kohya-ss/sd-scripts,
networks/lora.py.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from convert_torch import engine, io
from convert_torch.diffusers_folder import TEXT_ENCODERS, UNET, DiffusersModel
from convert_torch.weights import table
from convert_torch.weights.unet import unet_table
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.models import diffusion, lora

FILE_NAME = "pytorch_lora_weights.safetensors"
# What kohya's names of a part begin with; the first is written.
_KOHYA = {
  "unet": ("lora_unet_",),
  "text_encoder": ("lora_te_", "lora_te1_"),
  "text_encoder_2": ("lora_te2_",),
}
_ENDS = {
  "lora_A.weight": "down", "lora.down.weight": "down", "lora_down.weight": "down",
  "lora_B.weight": "up", "lora.up.weight": "up", "lora_up.weight": "up", "alpha": "alpha",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Kernel:
  """A kernel of ours that is (a part of) a module's weight.

  Attributes:
    part: of the folder: "unet", "text_encoder", ...
    path: of the kernel within it, layers unrolled.
    shape: of the kernel.
    outputs: how many of its trailing axes are outputs.
    slot: what it is on the other side.
  """

  part: str
  path: str
  shape: tuple[int, ...]
  outputs: int
  slot: engine.Slot

  def down(self, matrix: np.ndarray) -> np.ndarray:
    """Ours of `[rank, inputs]`, or of a convolution's `[rank, inputs, height, width]`."""
    matrix = matrix.transpose(2, 3, 1, 0) if matrix.ndim == 4 else matrix.T
    return matrix.reshape(*self.shape[: -self.outputs], -1)

  def up(self, matrix: np.ndarray, config: Any) -> np.ndarray:
    """Ours of `[outputs, rank]`, which may have two axes of length 1 behind."""
    matrix = matrix.reshape(matrix.shape[:2])
    return self.slot.row.op.load(matrix, config) if self._by_op else matrix.T

  def their_down(self, down: np.ndarray) -> np.ndarray:
    """Undoes `down`."""
    rank, theirs = down.shape[-1], self.slot.shape
    if len(theirs) == 2:
      return down.reshape(-1, rank).T
    height, width = theirs[2:]
    return down.reshape(height, width, -1, rank).transpose(3, 2, 0, 1)

  def their_up(self, up: np.ndarray, config: Any) -> np.ndarray:
    """Undoes `up`, but for the axes of length 1."""
    return self.slot.row.op.save(up, config) if self._by_op else up.T

  @property
  def _by_op(self) -> bool:
    # The op knows which of a module's outputs are which heads or which part; of inputs there is nothing to know.
    return self.outputs > 1 or self.slot.row.op.parts > 1


@dataclasses.dataclass(frozen=True)
class _Modules:
  """The modules of a model that can be adapted.

  Attributes:
    kernels: by part and name of the module, such as ("unet", "mid_block.attentions.0.proj_in"), in order of the parts.
    names: every name of a module in files -> the key of `kernels`; the first one of a kind is written.
    configs: of the parts.
  """

  kernels: dict[tuple[str, str], list[_Kernel]]
  names: dict[str, tuple[str, str]]
  configs: dict[str, Any]


def load_lora(path: Path | str, model: DiffusersModel) -> dict[str, Any]:
  """Reads a LoRA file of either kind.

  Args:
    path: a .safetensors file (or a pickle of tensors), or a folder with `FILE_NAME`.
    model: what it is for.

  Returns:
    A tree of factors (float32, layers unrolled) for every part that the file changes: "unet", "text_encoder", ...

  Raises:
    UserError: no such file, or it holds what the model has no place for.
  """
  path = Path(path).expanduser()
  path = path / FILE_NAME if path.is_dir() else path
  if not path.is_file():
    raise UserError(f"{path} does not exist; name a LoRA file, or a folder that holds {FILE_NAME}")
  files, modules = io.WeightFiles(path), _modules(model)
  found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  unknown = []
  for info, tensor in files.read(files.tensors):
    end = next((end for end in _ENDS if info.name.endswith(f".{end}")), None)
    key = end and modules.names.get(info.name.removesuffix(f".{end}"))
    if key is None:
      unknown.append(info.name)
    else:
      found.setdefault(key, {})[_ENDS[end]] = np.asarray(tensor, np.float32)
  if unknown or not found:
    shown = f"{unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}" if unknown else "nothing"
    raise UserError(f"{path} is no LoRA file for this model: it holds {shown}, which the model has no place for")
  scales = _scales(path)
  flat: dict[str, dict[str, np.ndarray]] = {}
  for (part, name), factors in found.items():
    if not {"down", "up"} <= {*factors}:
      raise UserError(f"{path} holds only one of the two matrices of {name}; download it again")
    down, up = factors["down"], factors["up"]
    alpha = factors.get("alpha", len(down) * scales.get(part, 1.0))
    for kernel in modules.kernels[part, name]:
      config = modules.configs[part]
      if up.shape[1] != len(down) or (up.shape[0], *down.shape[1:]) != _matrix(kernel.slot.shape, down.ndim):
        raise UserError(
          f"{path}: {name} is changed by {list(up.shape)} times {list(down.shape)}, the model's weight is "
          f"{list(kernel.slot.shape)}"
        )
      into = flat.setdefault(part, {})
      into[f"{kernel.path}/down"] = kernel.down(down)
      into[f"{kernel.path}/up"] = kernel.up(up, config)
      into[f"{kernel.path}/alpha"] = np.float32(alpha)
  return {part: models.unflatten(each) for part, each in flat.items()}


def save_lora(
  path: Path | str,
  factors: Mapping[str, Any],
  model: DiffusersModel,
  *,
  alpha: float | None = None,
  layout: Literal["diffusers", "kohya"] = "diffusers",
) -> None:
  """Writes a LoRA file.

  In the names of diffusers the scale is multiplied into the second matrix, so that whoever reads it needs no more. The
  parts of a module that are several kernels of ours change it by one matrix of their ranks together.

  Args:
    path: the file; its folder is made where it is missing.
    factors: a tree for every part, as `load_lora` gives it; layers may be stacked.
    model: what it is for.
    alpha: of factors without one of their own; None for their rank.
    layout: whose names.

  Raises:
    UserError: the file exists, or factors are not those of this model.
  """
  if layout not in ("diffusers", "kohya"):
    raise UserError(f"unknown layout {layout!r} of a LoRA file; known: diffusers, kohya")
  path = Path(path).expanduser()
  if path.exists():
    raise UserError(f"{path} already exists; choose another name or move it away")
  flat = {
    f"{part}/{name}": np.asarray(x)
    for part, tree in factors.items()
    for name, x in models.flatten(checkpoints.to_layout(_with_alpha(tree, alpha), False)).items()
  }
  modules, tensors, written = _modules(model), {}, set()
  for (part, name), kernels in modules.kernels.items():
    adapted = [kernel for kernel in kernels if f"{part}/{kernel.path}/down" in flat]
    if not adapted:
      continue
    kinds = ("down", "up", "alpha")
    downs, ups, alphas = ([flat[f"{part}/{kernel.path}/{kind}"] for kernel in adapted] for kind in kinds)
    written |= {f"{part}/{kernel.path}/{kind}" for kernel in adapted for kind in kinds}
    down = np.concatenate([kernel.their_down(x) for kernel, x in zip(adapted, downs)])
    # Next to kernels that are not changed, or have a scale of their own, the scale must be within.
    fold = layout == "diffusers" or len(kernels) > 1
    scales = [float(a) / x.shape[-1] if fold else 1.0 for a, x in zip(alphas, downs)]
    up = _beside(kernels, dict(zip((k.path for k in adapted), zip(ups, scales))), modules.configs[part])
    up = up.reshape(up.shape + (1,) * (down.ndim - 2))
    if layout == "diffusers":
      tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
      continue
    stem = _KOHYA[part][0] + name.replace(".", "_")
    tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    tensors[f"{stem}.alpha"] = np.float32(len(down) if fold else alphas[0])
  homeless = sorted({*flat} - written)
  if homeless or not tensors:
    raise UserError(f"{path}: {homeless[0] if homeless else 'nothing'} is no LoRA factor of this model")
  from safetensors.numpy import save_file

  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = {name: np.ascontiguousarray(x, np.float32).reshape(np.shape(x)) for name, x in tensors.items()}
  save_file(arrays, path, metadata={"format": "pt"})


def with_lora(model: DiffusersModel, factors: Mapping[str, Any], strength: float = 1.0) -> DiffusersModel:
  """A model with the changes in its weights.

  Args:
    model: its layers stacked or not.
    factors: as `load_lora` gives them.
    strength: what the changes are multiplied by.
  """

  def changed(params, tree, run):
    scaled = {
      path: x * np.float32(strength) if path.endswith("/up") else x
      for path, x in models.flatten(checkpoints.to_layout(tree, False)).items()
    }
    unrolled = checkpoints.to_layout(params, False)
    result = lora.merged(unrolled, models.unflatten(scaled))
    return checkpoints.to_layout(_on_host(result), run.scan_layers)

  changes: dict[str, Any] = {}
  if "unet" in factors:
    changes["unet_params"] = changed(model.unet_params, factors["unet"], model.unet_config.run)
  encoders = list(model.text_encoders)
  for i, part in enumerate(TEXT_ENCODERS[: len(encoders)]):
    if part in factors:
      encoders[i] = encoders[i]._replace(
        params=changed(encoders[i].params, factors[part], encoders[i].config.run)
      )
  return dataclasses.replace(model, **changes, text_encoders=encoders)


def _on_host(tree: Any) -> Any:
  return models.unflatten({path: np.asarray(x) for path, x in models.flatten(tree).items()})


def _with_alpha(tree: Any, alpha: float | None) -> dict[str, Any]:
  """The tree with an alpha for every kernel."""
  flat = models.flatten(tree)
  for path in [name.removesuffix("/down") for name in flat if name.endswith("/down")]:
    if f"{path}/alpha" not in flat:
      stacked = "/layers/" in f"/{path}"
      rank = flat[f"{path}/down"].shape[-1]
      value = np.float32(rank if alpha is None else alpha)
      flat[f"{path}/alpha"] = np.full(len(flat[f"{path}/down"]), value) if stacked else value
  return models.unflatten(flat)


def _beside(kernels: Iterable[_Kernel], adapted: Mapping[str, tuple[np.ndarray, float]], config: Any) -> np.ndarray:
  """`[outputs, ranks]` of a module: those of its kernels, each acting on its own share of the ranks."""
  ranks = [len(up) for up, _ in adapted.values()]
  pieces, before = {}, 0
  for kernel in kernels:
    if kernel.path in adapted:
      up, scale = adapted[kernel.path]
      own = kernel.their_up(up * np.asarray(scale, up.dtype), config)
      after = sum(ranks) - before - own.shape[1]
      piece = np.pad(own, ((0, 0), (before, after)))
      before += own.shape[1]
    else:
      outputs = int(np.prod(kernel.shape[-kernel.outputs :]))
      piece = np.zeros((outputs, sum(ranks)), np.float32)
    pieces[kernel.slot.row.op.part] = piece
  op = next(iter(kernels)).slot.row.op
  return pieces[0] if op.join is None else op.join([pieces[part] for part in range(op.parts)], config)


def _matrix(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
  """The shape of a weight as the product of two factors has it, of which the first has so many axes."""
  return shape if len(shape) == axes else tuple(itertools.chain(shape[:2], (1,) * (axes - 2)))


def _modules(model: DiffusersModel) -> _Modules:
  kernels: dict[tuple[str, str], list[_Kernel]] = {}
  names: dict[str, tuple[str, str]] = {}
  configs: dict[str, Any] = {}
  places: list[tuple[str, Any, Any, Any, bool]] = []
  if model.unet_config is not None:
    config = model.unet_config.with_run(scan_layers=False)
    places.append(("unet", config, UNET.module(config), UNET.table(config), True))
  for part, encoder in zip(TEXT_ENCODERS, model.text_encoders):
    config = encoder.config.with_run(scan_layers=False)
    built = models.build(encoder.family, config, encoder.head, None)
    places.append((part, config, built, table(encoder.family), encoder.head != "base"))
  for part, config, module, weights, prefixed in places:
    boxed = diffusion.abstract_params(module) if part == "unet" else models.abstract_params(module)
    boxed, configs[part] = models.flatten(boxed), config
    shapes = {path: tuple(nn.meta.unbox(box).shape) for path, box in boxed.items()}
    for slot in engine.slots(weights, config, shapes, prefixed):
      if not slot.path.endswith("/kernel"):
        continue
      key = part, slot.theirs.removesuffix(".weight")
      outputs = lora.kernel_axes(boxed[slot.path].names)[1]
      kernels.setdefault(key, []).append(_Kernel(part, slot.path, shapes[slot.path], outputs, slot))
      _add_names(names, key, weights)
    if part == "unet":
      # Some files for SDXL have the names of the original code.
      originals = engine.slots(unet_table(config, "original"), config, shapes, True)
      paths = {kernel.path: key for key, each in kernels.items() for kernel in each if key[0] == "unet"}
      for slot in originals:
        if slot.path in paths:
          module_name = slot.theirs.removesuffix(".weight").replace(".", "_")
          names.setdefault(f"lora_unet_{module_name}", paths[slot.path])
  return _Modules(kernels, names, configs)


def _add_names(names: dict[str, tuple[str, str]], key: tuple[str, str], weights: Any) -> None:
  """All that files call a module; those of a class without a head lack the prefix, of transformers' newest another."""
  part, name = key
  spoken = {name, name.removeprefix(weights.prefix), name.removeprefix("text_model.")}
  for each in spoken:
    names[f"{part}.{each}"] = key
    for start in _KOHYA[part]:
      names[start + each.replace(".", "_")] = key


def _scales(path: Path) -> dict[str, float]:
  """lora_alpha / r of the parts, of a file of diffusers whose metadata say so."""
  if path.suffix != ".safetensors":
    return {}
  said = json.loads(io.read_metadata(path).get("lora_adapter_metadata", "{}"))
  for name, value in said.items():
    option = name.rpartition(".")[2]
    if value and option in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora"):
      raise UserError(f"{path} has {option}, which fsb_jax does not read")
  return {
    name.removesuffix(".lora_alpha"): alpha / said[name.removesuffix(".lora_alpha") + ".r"]
    for name, alpha in said.items()
    if name.endswith(".lora_alpha")
  }
