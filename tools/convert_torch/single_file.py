"""One file that holds UNet, autoencoder and text encoders by the original's names, and the way back.

`.safetensors` or `.ckpt`, as https://github.com/CompVis/stable-diffusion and its successors write them. A BERT, such as
Taiyi's, keeps transformers' names where CLIP stands otherwise.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert_torch import engine, hub, io, original_config, original_text
from convert_torch.diffusers_folder import (
  AUTOENCODER,
  TEXT_ENCODERS,
  UNET,
  DiffusersModel,
  TextEncoder,
  read_config,
  read_model_index,
)
from convert_torch.weights import table
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError

_UNET, _AUTOENCODER = "model.diffusion_model.", "first_stage_model."
_ORIGINAL = {"layout": "original"}


class TextPlace(NamedTuple):
  """Where a file keeps a text encoder.

  Attributes:
    part: its folder's name in diffusers' folders.
    prefix: what begins its tensors' names.
    open_clip: they are open_clip's.
    projection: its pooled output is projected.
  """

  part: str
  prefix: str
  open_clip: bool = False
  projection: bool = False


_ONE, _ONE_OF_OPEN_CLIP = (
  TextPlace("text_encoder", "cond_stage_model.transformer."),
  TextPlace("text_encoder", "cond_stage_model.model.", open_clip=True),
)
_TWO = (
  TextPlace("text_encoder", "conditioner.embedders.0.transformer."),
  TextPlace("text_encoder_2", "conditioner.embedders.1.model.", open_clip=True, projection=True),
)
_PLACES = (_ONE, _ONE_OF_OPEN_CLIP, *_TWO)
# Nothing learned, or nothing that drawing needs: the noise schedule, averaged weights.
_IGNORED = r"\w+|model_ema\..*|denoiser\..*"
# Layers and width of open_clip's text encoder in Stable Diffusion 2, which does not use the last of them.
_HUGE = (24, 1024)


def load_single_file(
  path: Path | str,
  *,
  run: models.Run | None = None,
  config_from: Path | str | None = None,
  parts: Collection[str] | None = None,
) -> DiffusersModel:
  """Reads a single file of Stable Diffusion 1, 2 or XL.

  Args:
    path: a .safetensors file, or a pickle of tensors alone.
    run: see `load_diffusers_folder`.
    config_from: a folder of diffusers whose configs, scheduler and tokenizers are those of the file; by default configs
      follow from the shapes of tensors, and there are no tokenizers. They do not say whether a Stable Diffusion 2
      predicts noise or velocity, whose `scheduler_config` is then None.
    parts: which of "unet", "vae", "text_encoder" and "text_encoder_2" to read; by default all.

  Raises:
    UserError: no such file, a part that it lacks, or tensors that do not fit.
  """
  path, run = Path(path), run or models.Run()
  if not path.is_file():
    raise UserError(f"{path} is not a file; load_diffusers_folder reads folders")
  files = io.WeightFiles(path)
  folder = None if config_from is None else Path(config_from)
  places = {place.part: place for place in _PLACES if any(x.name.startswith(place.prefix) for x in files.tensors)}
  _require_known(path, files, [_UNET, _AUTOENCODER, *(place.prefix for place in places.values())])
  unet, vae = original_text.under(files, _UNET), original_text.under(files, _AUTOENCODER)
  wanted = ["unet", "vae", *(places or TEXT_ENCODERS[:1])] if parts is None else list(parts)
  for part, held, begin in (("unet", unet.tensors, _UNET), ("vae", vae.tensors, _AUTOENCODER)):
    if part in wanted and not held:
      raise UserError(f"{path} holds no {part}: no tensor's name begins with {begin}")
  for part in TEXT_ENCODERS:
    if part in wanted and part not in places:
      begins = " or ".join(place.prefix for place in _PLACES if place.part == part)
      raise UserError(f"{path} holds no {part}: no tensor's name begins with {begins}")
  shapes = {info.name: info.shape for info in unet.tensors}
  xl = "text_encoder_2" in places or "label_emb.0.0.weight" in shapes
  found: dict[str, Any] = {"hf_configs": {}, "text_encoders": []}
  for part, name, view, component, prefix in (
    ("unet", "unet", unet, UNET, _UNET), ("vae", "autoencoder", vae, AUTOENCODER, _AUTOENCODER),
  ):  # fmt: skip
    if part not in wanted:
      continue
    if folder is not None:
      said = io.read_config(folder / part)
      config = read_config(folder / part, component, said, run)
    else:
      held = {info.name: info.shape for info in view.tensors}
      inferred = original_config.unet_config(held) if part == "unet" else original_config.autoencoder_config(held, xl)
      config = dataclasses.replace(inferred, run=run)
      said = component.hf_config(config, {})
    found["hf_configs"][part], found[f"{name}_config"] = said, config
    named = original_text.under(files, prefix, keep_prefix=True)
    found[f"{name}_params"] = component.read(path, named, config, prefix=prefix, **_ORIGINAL)
  for part in TEXT_ENCODERS:
    if part in wanted:
      read = _read_text(path, files, folder and folder / part, run, places[part])
      found["text_encoders"].append(TextEncoder(read.family, read.config, read.params, read.head))
      found["hf_configs"][part] = read.hf_config
  found |= _beside(folder, found["hf_configs"], xl)
  return DiffusersModel(**found, source={"path": str(path), "sha256": files.sha256()})


def _require_known(path: Path, files: io.WeightFiles, prefixes: list[str]) -> None:
  """UserError listing tensors that belong to no part."""
  unknown = [
    info.name
    for info in files.tensors
    if not info.name.startswith(tuple(prefixes)) and not re.fullmatch(_IGNORED, info.name)
  ]
  if unknown:
    raise UserError(
      f"{path} is no single file of Stable Diffusion 1, 2 or XL: it holds {len(unknown)} other tensors, such as "
      + ", ".join(unknown[:3])
    )


def _read_text(
  path: Path, files: io.WeightFiles, folder: Path | None, run: models.Run, place: TextPlace
) -> hub.HubModel:
  """The text encoder at a place."""

  def view(layers):
    if not place.open_clip:
      return original_text.under(files, place.prefix)
    return original_text.from_open_clip(files, place.prefix, layers, place.projection)

  if folder is not None:
    hf_config = io.read_config(folder)
  else:
    shapes = {info.name: info.shape for info in view(None).tensors}
    try:
      hf_config = original_text.inferred_config(shapes, place.open_clip)
    except (KeyError, ValueError):
      raise UserError(f"{path} holds neither a CLIP nor a BERT under {place.prefix}; give config_from=") from None
    if place == _ONE_OF_OPEN_CLIP and (hf_config["num_hidden_layers"], hf_config["hidden_size"]) == _HUGE:
      hf_config["num_hidden_layers"] -= 1
  opened = hub.open_hub(hf_config, lambda table: view(hf_config.get("num_hidden_layers")), run=run)
  return hub.read_opened(opened, path)


def _beside(folder: Path | None, hf_configs: Mapping[str, dict], xl: bool) -> dict[str, Any]:
  """What no tensor says: model_index.json, the scheduler and the tokenizers."""
  if folder is not None:
    tokenizers = tuple(folder / name for name in ("tokenizer", "tokenizer_2") if (folder / name).is_dir())
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return {
      "model_index": read_model_index(folder),
      "tokenizer_folders": tokenizers,
      "scheduler_config": checkpoints.read_json(scheduler) if scheduler.is_file() else None,
    }
  index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"}
  for part, said in hf_configs.items():
    ours = "_class_name" in said
    index[part] = ["diffusers", said["_class_name"]] if ours else ["transformers", said["architectures"][0]]
  velocity = hf_configs.get("unet", {}).get("use_linear_projection") and not xl
  scheduler = None
  if not velocity:
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler" if xl else "PNDMScheduler"]
    scheduler = {
      "_class_name": index["scheduler"][1], "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
      "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
      **({} if xl else {"skip_prk_steps": True, "set_alpha_to_one": False}),
    }  # fmt: skip
  return {"model_index": index, "scheduler_config": scheduler}


def save_single_file(path: Path | str, model: DiffusersModel, *, dtype: str = "float32") -> None:
  """Writes a single .safetensors file by the original's names.

  Of Stable Diffusion 2's text encoder folders of diffusers hold all layers but the last, which it does not use; the
  file then lacks that one, too.

  Args:
    path: where; must not exist.
    model: UNet, autoencoder and text encoders.
    dtype: see `save_diffusers_folder`.

  Raises:
    UserError: the file exists or is not called .safetensors, a part is missing, or a value does not fit `dtype`.
  """
  from safetensors.numpy import save_file

  path = Path(path)
  if path.suffix != ".safetensors":
    raise UserError(f"{path} must end in .safetensors")
  if path.exists():
    raise UserError(f"{path} already exists; choose another place or move it away")
  if dtype not in engine.FLOATS:
    raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(engine.FLOATS)}")
  lacking = [
    name
    for name, held in (
      ("unet", model.unet_config), ("vae", model.autoencoder_config), ("text_encoder", model.text_encoders),
    )
    if not held
  ]  # fmt: skip
  if lacking:
    raise UserError(f"a single file holds UNet, autoencoder and text encoder; the model lacks {', '.join(lacking)}")
  written = {
    **dict(UNET.tensors(model.unet_params, model.unet_config, dtype, prefix=_UNET, **_ORIGINAL)),
    **dict(
      AUTOENCODER.tensors(model.autoencoder_params, model.autoencoder_config, dtype, prefix=_AUTOENCODER, **_ORIGINAL)
    ),
  }
  for i, encoder in enumerate(model.text_encoders):
    tensors = dict(_text_tensors(encoder, dtype))
    # Stable Diffusion 2 has its CLIP from open_clip.
    huge = model.unet_config.linear_projection and "text_model.embeddings.token_embedding.weight" in tensors
    place = _TWO[i] if len(model.text_encoders) > 1 else _ONE_OF_OPEN_CLIP if huge else _ONE
    named = original_text.to_open_clip(tensors.items()) if place.open_clip else tensors.items()
    written |= {place.prefix + name: array for name, array in named}
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f".{path.name}")
  # safetensors writes the memory as it lies, whatever the strides say.
  contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in written.items()}
  save_file(contiguous, unfinished, metadata={"format": "pt"})
  unfinished.replace(path)


def _text_tensors(encoder: TextEncoder, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
  """An encoder's tensors by transformers' names."""
  weights = table(encoder.family)
  flat = models.flatten(encoder.params)
  for name, array in engine.save(weights, flat, encoder.config, prefixed=encoder.head != "base"):
    yield name, hub.cast_to(name, array, dtype)
