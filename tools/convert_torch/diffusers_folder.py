"""A folder that `diffusers` wrote as UNet, autoencoder and text encoders of ours, and the way back."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from convert_torch import engine, hub, io
from convert_torch.weights import Table
from convert_torch.weights.autoencoder import autoencoder_table
from convert_torch.weights.unet import unet_table
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.models import diffusion

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
PARTS = ("unet", "vae", *TEXT_ENCODERS, "scheduler", *_TOKENIZERS)


class TextEncoder(NamedTuple):
  """One text encoder, as `hub.load_hub_folder` reads it."""

  family: str
  config: models.TransformerConfig
  params: dict[str, Any]
  head: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusersModel:
  """What a folder holds, in our terms; None or empty where a part was not asked for.

  Attributes:
    unet_config: of the UNet.
    unet_params: its parameters, nested dict of numpy arrays.
    autoencoder_config: of the autoencoder.
    autoencoder_params: its parameters.
    text_encoders: one, or two in Stable Diffusion XL.
    tokenizer_folders: paths of the text encoders' tokenizers, in their order.
    scheduler_config: `scheduler/scheduler_config.json`.
    model_index: `model_index.json`.
    hf_configs: every other part's `config.json`, by the part's name.
    source: `path` and `sha256` (by file) of the weight files.
  """

  unet_config: diffusion.UNetConfig | None = None
  unet_params: dict[str, Any] | None = None
  autoencoder_config: diffusion.AutoencoderConfig | None = None
  autoencoder_params: dict[str, Any] | None = None
  text_encoders: list[TextEncoder] = dataclasses.field(default_factory=list)
  tokenizer_folders: tuple[Path, ...] = ()
  scheduler_config: dict | None = None
  model_index: dict = dataclasses.field(default_factory=dict)
  hf_configs: dict[str, dict] = dataclasses.field(default_factory=dict)
  source: dict = dataclasses.field(default_factory=dict)


@functools.cache
def _shapes(module: Callable[[Any], nn.Module], config) -> dict[str, tuple[int, ...]]:
  params = nn.meta.unbox(diffusion.abstract_params(module(config)))
  return {path: tuple(x.shape) for path, x in models.flatten(params).items()}


@dataclasses.dataclass(frozen=True)
class Component:
  """How UNet or autoencoder are made and converted.

  Attributes:
    class_name: diffusers' class.
    from_hf: reads their config.json.
    to_hf: writes it.
    module: the module of a config.
    table: the weight table of a config, and of a layout and prefix.
  """

  class_name: str
  from_hf: Callable[[Mapping], Any]
  to_hf: Callable[[Any], dict]
  module: Callable[[Any], nn.Module]
  table: Callable[..., Table]

  def shapes(self, config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    return _shapes(self.module, config)

  def read(self, source: Path | str, files: Any, config, **layout) -> dict[str, Any]:
    """The parameters in some opened files; UserError, listing every misfit, where they are not those of `config`."""
    weights, shapes = self.table(config, **layout), self.shapes(config)
    match = engine.match(weights, files, config, shapes)
    if match.problems:
      raise UserError(
        f"{source} does not fit its config.json "
        "(+ in the file but not in our table, - needed but not in the file, ! otherwise wrong):\n"
        + "\n".join(match.problems)
      )
    return models.unflatten(engine.read(match, files, config, shapes, jnp.dtype(config.run.param_dtype)))

  def tensors(self, params: Mapping, config, dtype: str, **layout):
    """Yields names and tensors of `dtype` in PyTorch's form; UserError where `params` are not those of `config`."""
    flat = models.flatten(params)
    hub.require_shapes({path: tuple(x.shape) for path, x in flat.items()}, self.shapes(config), self.class_name)
    for name, array in engine.save(self.table(config, **layout), flat, config, prefixed=True):
      yield name, hub.cast_to(name, array, dtype)

  def hf_config(self, config, said: Mapping[str, Any]) -> dict:
    """config.json: what it said where that still describes `config`, and else what we say."""
    unchanged = said and dataclasses.replace(self.from_hf(said), run=config.run) == config
    return {**said, **({} if unchanged else self.to_hf(config)), "_class_name": self.class_name}


UNET = Component(
  "UNet2DConditionModel",
  diffusion.unet_config_from_hf,
  diffusion.unet_config_to_hf,
  diffusion.UNet,
  unet_table,
)
AUTOENCODER = Component(
  "AutoencoderKL",
  diffusion.autoencoder_config_from_hf,
  diffusion.autoencoder_config_to_hf,
  diffusion.Autoencoder,
  autoencoder_table,
)


def load_diffusers_folder(
  folder: Path | str,
  *,
  run: models.Run | None = None,
  parts: Collection[str] | None = None,
  variant: str | None = None,
) -> DiffusersModel:
  """Reads a folder that `diffusers` wrote, or that of a training run of such a model.

  Args:
    folder: holds model_index.json and a folder for every part; or see `diffusion_run.load_run`.
    run: dtypes and layout of layers; parameters are in `run.param_dtype`.
    parts: which of `PARTS` to read; by default all that model_index.json names.
    variant: of the weight files, such as "fp16"; None for the files without one, see `io.WeightFiles`.

  Raises:
    UserError: not such a folder, a part that it lacks or that we do not know, or weights that do not fit.
  """
  folder, run = Path(folder), run or models.Run()
  if checkpoints.is_checkpoint(folder):
    from convert_torch import diffusion_run

    return diffusion_run.load_run(folder, run=run)
  return read_parts(folder, run, parts, variant)


def read_parts(
  folder: Path, run: models.Run, parts: Collection[str] | None, variant: str | None = None
) -> DiffusersModel:
  """Reads parts of a folder in the layout of `diffusers`; see `load_diffusers_folder`."""
  model_index = read_model_index(folder)
  named = [part for part in PARTS if (model_index.get(part) or [None])[0] is not None]
  unknown = sorted(set(parts or ()) - set(PARTS))
  if unknown:
    raise UserError(f"a diffusers folder has no part {unknown[0]!r}; known: {', '.join(PARTS)}")
  wanted = [part for part in PARTS if part in (named if parts is None else parts)]
  missing = [part for part in wanted if not (folder / part).is_dir()]
  if missing:
    raise UserError(f"{folder} lacks the folder{'s' * (len(missing) > 1)} {', '.join(missing)}; download it again")
  found: dict[str, Any] = {"model_index": model_index, "hf_configs": {}, "text_encoders": []}
  hashes: dict[str, str] = {}
  # All that can be refused by a config is refused before the first weights are read.
  components = (("unet", "unet", UNET), ("vae", "autoencoder", AUTOENCODER))
  for part, name, component in components:
    if part in wanted:
      said = io.read_config(folder / part)
      found["hf_configs"][part] = said
      found[f"{name}_config"] = read_config(folder / part, component, said, run)
  if "scheduler" in wanted:
    found["scheduler_config"] = checkpoints.read_json(folder / "scheduler" / "scheduler_config.json")
  for part, name, component in components:
    if part in wanted:
      files = io.WeightFiles(folder / part, io.DIFFUSERS_NAMES, variant)
      found[f"{name}_params"] = component.read(folder / part, files, found[f"{name}_config"])
      hashes |= {f"{part}/{file}": sha256 for file, sha256 in files.sha256().items()}
  for part in TEXT_ENCODERS:
    if part in wanted:
      read = hub.load_hub_folder(folder / part, run=run, variant=variant)
      found["text_encoders"].append(TextEncoder(read.family, read.config, read.params, read.head))
      found["hf_configs"][part] = read.hf_config
      hashes |= {f"{part}/{file}": sha256 for file, sha256 in read.source["sha256"].items()}
  tokenizers = tuple(folder / part for part in _TOKENIZERS if part in wanted)
  return DiffusersModel(**found, tokenizer_folders=tokenizers, source={"path": str(folder), "sha256": hashes})


def read_model_index(folder: Path) -> dict:
  """A folder's model_index.json; UserError says what is missing where it is no such folder."""
  if not (folder / "model_index.json").is_file():
    raise UserError(f"{folder} has no model_index.json, so it is not a folder that diffusers wrote")
  return checkpoints.read_json(folder / "model_index.json")


def read_config(folder: Path, component: Component, said: Mapping[str, Any], run: models.Run) -> Any:
  """The config of a part from its config.json, with the choices of a run."""
  try:
    return dataclasses.replace(component.from_hf(said), run=run)
  except UserError as error:
    raise UserError(f"{folder}: {error}") from None


def save_diffusers_folder(
  folder: Path | str,
  model: DiffusersModel,
  *,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a folder that `diffusers` loads as its own.

  Parts that we do not read, as the safety checker, are left out of model_index.json.

  Args:
    folder: where; must not exist, or be empty.
    model: as `load_diffusers_folder` reads it, perhaps with other parameters.
    dtype: of the tensors: "float32", "float16" or "bfloat16" (or "float64").
    max_shard_bytes: size above which a part's weights are split.

  Raises:
    UserError: the folder is not empty, parameters are not those of their config, or a value does not fit `dtype`.
  """
  if dtype not in engine.FLOATS:
    raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(engine.FLOATS)}")
  with checkpoints.new_folder(folder) as inside:
    for part, component, config, params in (
      ("unet", UNET, model.unet_config, model.unet_params),
      ("vae", AUTOENCODER, model.autoencoder_config, model.autoencoder_params),
    ):
      if config is not None:
        said = component.hf_config(config, model.hf_configs.get(part, {}))
        tensors = component.tensors(params, config, dtype)
        io.write_folder(inside / part, tensors, said, None, max_shard_bytes, stem="diffusion_pytorch_model")
    for part, encoder in zip(TEXT_ENCODERS, model.text_encoders):
      said = model.hf_configs[part]
      num_labels, label_names = hub.read_labels(said)
      hub.save_hub_folder(
        inside / part,
        encoder.params,
        family=encoder.family,
        config=encoder.config,
        head=encoder.head,
        num_labels=num_labels,
        label_names=label_names,
        hf_config=said,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
      )
    for part, path in zip(_TOKENIZERS, model.tokenizer_folders):
      shutil.copytree(path, inside / part)
    if model.scheduler_config is not None:
      (inside / "scheduler").mkdir()
      io.write_json(inside / "scheduler" / "scheduler_config.json", model.scheduler_config)
    io.write_json(inside / "model_index.json", _written_index(model, inside))


def _written_index(model: DiffusersModel, folder: Path) -> dict:
  """model_index.json without the parts that were not written."""
  return {
    name: [None, None] if isinstance(value, list) and not (folder / name).is_dir() else value
    for name, value in model.model_index.items()
  }
