"""The folder of a run that trains a model that draws.

It is laid out as `diffusers` has it: the parts that are not trained (autoencoder, noise schedule, tokenizer) are whole,
those that are (UNet, text encoder) have their config.json, and their weights lie in `checkpoints/STEP` as in every run
of ours. What the run adds to kernels, if it does not train them whole, config.json beside metadata.json says.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert_torch import io
from convert_torch.diffusers_folder import (
  UNET,
  DiffusersModel,
  TextEncoder,
  read_config,
  read_model_index,
  read_parts,
  save_diffusers_folder,
)
from convert_torch.lora_files import save_lora
from convert_torch.single_file import save_single_file
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.models import diffusion, lora

FAMILY = "latent_diffusion"
_WHOLE = ("vae", "scheduler", "tokenizer")
_TRAINED = ("unet", "text_encoder")


def copy_parts(source: Path, target: Path) -> None:
  """Copies into a run's new folder all that it does not train.

  Args:
    source: a folder that `diffusers` wrote, or another run's.
    target: exists.
  """
  index = read_model_index(source)
  kept = {part: value for part, value in index.items() if part.startswith("_") or part in (*_WHOLE, *_TRAINED)}
  # Of the others, as the safety checker, there are no files.
  left_out = {part: [None, None] if isinstance(value, list) else value for part, value in index.items()}
  io.write_json(target / "model_index.json", {**left_out, **kept})
  for part in _WHOLE:
    shutil.copytree(source / part, target / part)
  for part in _TRAINED:
    (target / part).mkdir()
    shutil.copyfile(source / part / "config.json", target / part / "config.json")


def describe_run(
  folder: Path, run: models.Run, source: Mapping[str, Any], factors: Mapping[str, Any] | None
) -> None:
  """Writes what a run's folder says of itself.

  Args:
    folder: the run's.
    run: its choices.
    source: where the weights came from.
    factors: `rank`, `alpha` and `pattern` where only LoRA factors are trained; None where the kernels are.
  """
  metadata = checkpoints.Metadata(
    family=FAMILY, head="denoising", num_labels=0, scan_layers=run.scan_layers, param_dtype=run.param_dtype,
    source=dict(source), versions=checkpoints.installed_versions(),
  )  # fmt: skip
  checkpoints.write_metadata(folder, metadata, {"lora": factors and dict(factors)})


def read_run(folder: Path | str, run: models.Run) -> DiffusersModel:
  """What a run's folder says, without the weights that are trained.

  The text encoder has its config and no parameters.
  """
  home = checkpoints.home(folder)
  model = read_parts(home, run, _WHOLE)
  said = {part: io.read_config(home / part) for part in _TRAINED}
  family = models.family_of_hub_config(said["text_encoder"])
  config = dataclasses.replace(family.config_from_hf(said["text_encoder"]), run=run)
  head = family.head_of(said["text_encoder"]["architectures"][0])
  return dataclasses.replace(
    model, unet_config=read_config(home / "unet", UNET, said["unet"], run), hf_configs={**model.hf_configs, **said},
    text_encoders=[TextEncoder(family.name, config, {}, head)],
  )  # fmt: skip


def export_run(
  folder: Path | str, target: Path | str, *, dtype: str = "float32", layout: str | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:  # fmt: skip
  """Writes the model of a run as a folder that `diffusers` loads or a single file, or its LoRA factors as a file.

  Args:
    folder: see `load_run`.
    target: where; a name that ends in .safetensors is a file: of the factors alone, or of the whole model by the
      original's names where the kernels were trained.
    dtype: see `save_diffusers_folder`.
    layout: of a file of factors, see `lora_files.save_lora`; None for "diffusers".
    max_shard_bytes: see `save_diffusers_folder`.

  Raises:
    UserError: see `load_run`, `save_diffusers_folder`, `save_single_file` and `save_lora`.
  """
  if Path(target).suffix != ".safetensors":
    if layout is not None:
      raise UserError(f"family {layout!r} is for a file of LoRA factors; name one that ends in .safetensors")
    save_diffusers_folder(target, load_run(folder), dtype=dtype, max_shard_bytes=max_shard_bytes)
    return
  _, said = checkpoints.read_metadata(checkpoints.home(folder))
  if not said.get("lora"):
    if layout is not None:
      raise UserError(f"{folder} trained whole kernels, not LoRA factors; leave family {layout!r} out")
    save_single_file(target, load_run(folder), dtype=dtype)
    return
  params, _, _ = checkpoints.load_folder(folder)
  model, alpha = read_run(folder, models.Run()), said["lora"]["alpha"]
  save_lora(target, params["lora"], model, alpha=alpha, layout=layout or "diffusers")


def load_run(folder: Path | str, *, run: models.Run | None = None) -> DiffusersModel:
  """The model of a training run at its newest step, LoRA factors within the kernels.

  Args:
    folder: a run's, or a step of it: `FOLDER/checkpoints/400`.
    run: dtypes and layout of layers.

  Raises:
    UserError: not the folder of such a run, or one without a checkpoint.
  """
  run = run or models.Run()
  params, metadata, said = checkpoints.load_folder(folder)
  if metadata.family != FAMILY:
    raise UserError(f"{folder} holds a {metadata.family} model, which does not draw; give the folder of one that does")
  if said.get("lora"):
    params = lora.with_changes(params, said["lora"]["alpha"])
  model = read_run(folder, run)
  (encoder,) = model.text_encoders
  unet = diffusion.UNet(model.unet_config)
  text_encoder = models.build(encoder.family, encoder.config, encoder.head, None)
  boxed = {"unet": diffusion.abstract_params(unet), "text_encoder": models.abstract_params(text_encoder)}
  saved = models.flatten(checkpoints.to_layout(params, run.scan_layers))
  # A run on a mesh pads the vocabulary.
  fitted, _, problems = checkpoints.fit(saved, models.flatten(boxed), lambda path: False)
  if problems:
    raise UserError(f"{folder} does not hold the model that its config.json files describe:\n" + "\n".join(problems))
  fitted = models.unflatten(fitted)
  return dataclasses.replace(
    model, unet_params=fitted["unet"], text_encoders=[encoder._replace(params=fitted["text_encoder"])]
  )
