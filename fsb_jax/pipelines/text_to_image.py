"""Images that prompts describe: Stable Diffusion in the folder layout of `diffusers`, Taiyi's among them."""

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fsb_jax import models
from fsb_jax.encodings import load_image, load_mask, load_tokenizer
from fsb_jax.errors import UserError
from fsb_jax.generation.images import Conditioning, ImageModel, generate_images, require_noise
from fsb_jax.models import diffusion
from fsb_jax.models.diffusion.schedulers import schedule_from_config
from fsb_jax.partitioning import Partitioner
from fsb_jax.pipelines.prompt_encoder import PromptEncoder
from fsb_jax.pipelines.prompt_encoder import ascii_punctuation as to_ascii
from fsb_jax.pretrained import find_folder
from fsb_jax.version import __version__

_PARTS = {"model_index.json": "the list of its parts", "unet": "the UNet", "vae": "the autoencoder (VAE)",
          "scheduler": "the noise schedule"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  """An image and what it was drawn from.

  Attributes:
    image: the image.
    seed: of its noise; with the same settings it draws the same image, whatever is drawn beside it.
    settings: prompt, negative_prompt, steps, guidance, scheduler, size, strength, model and version.
    flagged: the safety checker objects, and the image is black.
  """

  image: Image.Image
  seed: int
  settings: dict[str, Any]
  flagged: bool = False


class TextToImage:
  """Draws.

  Args:
    model: a folder in the layout of `diffusers`, or a Hub id: "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1".
    batch_size: images at a time.
    safety_checker: called with images, float `[images, height, width, 3]` in [0, 1]; says which ones to black out.
    mesh: a mesh, its sizes as a dict, or a `Partitioner`; None for the default device.
    dtype: of activations.
    param_dtype: of parameters.
    lora: LoRA files of diffusers or kohya-ss -> how strongly each changes the model, 1 for as it was trained.
    variant: which files to read where a folder holds several, such as "fp16".
  """

  def __init__(
    self, model: str | Path, *, batch_size: int = 4, safety_checker: Callable | None = None, mesh: Any = None,
    dtype: str = "float32", param_dtype: str = "float32",
    lora: Mapping[str | Path, float] = {}, variant: str | None = None,
  ):  # fmt: skip
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} draws nothing; give at least 1")
    partitioner = mesh if mesh is None or isinstance(mesh, Partitioner) else Partitioner(mesh)
    run = models.Run(
      dtype=dtype, param_dtype=param_dtype, scan_layers=False,
      vocab_multiple=partitioner.vocab_multiple if partitioner else 1,
    )  # fmt: skip
    if Path(model).suffix in (".ckpt", ".safetensors") and Path(model).is_file():
      raise UserError(f"{model} is a single file; fsb convert import {model} FOLDER makes a folder of it that draws")
    folder = find_folder(model)
    missing = [name for name in _PARTS if not (folder / name).exists()]
    if missing:
      raise UserError(f"{model} is no folder of diffusers: it lacks {missing[0]}, {_PARTS[missing[0]]}")
    from convert_torch import load_diffusers_folder, lora_files

    self._name, self._batch_size, self._checker = str(model), batch_size, safety_checker
    loaded = load_diffusers_folder(folder, run=run, variant=variant)
    for path, strength in lora.items():
      loaded = lora_files.with_lora(loaded, lora_files.load_lora(path, loaded), strength)
    self._lora = ", ".join(f"{path}={strength}" for path, strength in lora.items())
    self._scheduler_config = loaded.scheduler_config
    unet, autoencoder = diffusion.UNet(loaded.unet_config), diffusion.Autoencoder(loaded.autoencoder_config)
    self._model = ImageModel(
      unet=unet, unet_params=_placed(diffusion.abstract_params(unet), loaded.unet_params, partitioner),
      autoencoder=autoencoder, partitioner=partitioner,
      autoencoder_params=_placed(diffusion.abstract_params(autoencoder), loaded.autoencoder_params, partitioner),
    )  # fmt: skip
    # UNets that read sizes also read the text as SDXL's do.
    self._reads_sizes = unet.config.added_number_dim is not None
    self._encoders = []
    if not len(loaded.tokenizer_folders) == len(loaded.text_encoders) > 0:
      raise UserError(
        f"{model} has {len(loaded.text_encoders)} text encoders and {len(loaded.tokenizer_folders)} tokenizers; give "
        "a folder that has one for each"
      )
    for tokenizer_folder, encoder in zip(loaded.tokenizer_folders, loaded.text_encoders):
      tokenizer = load_tokenizer(tokenizer_folder)
      if tokenizer is None:
        raise UserError(f"{tokenizer_folder} holds no tokenizer; copy vocab.txt or tokenizer.json into it")
      text_encoder = models.build(encoder.family, encoder.config, encoder.head, None)
      params = _placed(models.abstract_params(text_encoder), encoder.params, partitioner)
      self._encoders.append(
        PromptEncoder(tokenizer, text_encoder, params, penultimate=self._reads_sizes, partitioner=partitioner)
      )
    self._zero_negative = self._reads_sizes and bool(loaded.model_index.get("force_zeros_for_empty_prompt"))
    self._size = (loaded.hf_configs["unet"].get("sample_size") or 64) * autoencoder.config.reduction

  def __call__(
    self,
    prompts: str | Sequence[str],
    *,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int = 50,
    guidance: float = 7.5,
    guidance_rescale: float = 0.0,
    seed: int | Sequence[int] | None = None,
    images_per_prompt: int = 1,
    scheduler: str | None = None,
    image: Any = None,
    mask: Any = None,
    strength: float | None = None,
    ascii_punctuation: bool = False,
    noise: np.ndarray | None = None,
    tiled: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    on_drawing: Callable[[Drawing], None] | None = None,
  ) -> list[Drawing]:
    """Draws `images_per_prompt` images for every prompt.

    Args:
      prompts: what to draw.
      negative_prompt: what to keep away from.
      height: in pixels; the image's, or what the model was trained with, if not given.
      width: in pixels.
      steps: from noise to an image.
      guidance: how closely to follow the prompt; 1 and below do without a negative prompt, at half the cost.
      guidance_rescale: share of guidance's larger contrast that is taken back; for models without signal at the start.
      seed: of the first image, those after it have the next ones; or a list with one for every image. A random one,
        which each `Drawing` tells, if not given.
      images_per_prompt: how many of each.
      scheduler: ddpm, ddim, pndm, euler, euler_ancestral or dpm++; the folder's own if not given.
      image: to begin with: an image of Pillow, a path, or an array `[height, width, 3]` of bytes.
      mask: the same; white is drawn anew, black stays.
      strength: how much of the image is lost, above 0 and at most 1; 0.8 if not given, with a mask 1.
      ascii_punctuation: write full-width punctuation of prompts as ASCII, which draws fewer watermarks.
      noise: `[images, height / 8, width / 8, channels]` instead of the seed's.
      tiled: images larger than the autoencoder was trained with are decoded in parts that overlap, in less memory.
      on_step: called with (steps done, all steps).
      on_drawing: called with every drawing as soon as its batch is done.

    Raises:
      UserError: settings that cannot be, before anything is compiled.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
      raise UserError("nothing to draw: give a prompt, or a list of them")
    if images_per_prompt < 1:
      raise UserError(f"images_per_prompt={images_per_prompt} draws nothing; give at least 1")
    if not math.isfinite(guidance):
      raise UserError(f"guidance={guidance} must be a number, such as 7.5")
    schedule = schedule_from_config(self._scheduler_config, scheduler)
    if not self._reads_sizes:
      schedule = schedule.of_latents()
    before = None if image is None else _read_image(image, "image", "RGB")
    hole = None if mask is None else _read_image(mask, "mask", "L")
    reduction = self._model.autoencoder.config.reduction
    natural = (self._size,) * 2 if before is None else tuple(side // reduction * reduction for side in before.size)
    width, height = (own if side is None else side for side, own in zip((width, height), natural))
    shape = self._model.latent_shape(height, width)
    if strength is not None and before is None:
      raise UserError("strength says how much of an image is lost; give the image too")
    strength = strength if strength is not None else 0.8 if before is not None and hole is None else 1.0
    seeds = _seeds(seed, len(prompts) * images_per_prompt)
    require_noise(noise, (len(seeds), *shape))
    if ascii_punctuation:
      prompts = [to_ascii(prompt) for prompt in prompts]
    arguments = dict(
      height=height, width=width, steps=steps, guidance=guidance, guidance_rescale=guidance_rescale, strength=strength,
      tiled=tiled,
      image=before and np.asarray(before.resize((width, height), Image.LANCZOS), np.float32)[None] / 127.5 - 1,
      mask=hole and (np.asarray(hole.resize((width, height), Image.LANCZOS))[None, ..., None] >= 127.5) * np.float32(1),
    )  # fmt: skip
    # What cannot be is said before the text encoders run.
    schedule.plan(steps)
    told = self._conditioning(prompts, height, width)
    negative = self._negative(negative_prompt, height, width) if guidance > 1 else None
    every, batches = np.repeat(np.arange(len(prompts)), images_per_prompt), range(0, len(seeds), self._batch_size)
    settings = {
      "negative_prompt": negative_prompt or "", "steps": steps, "guidance": guidance, "scheduler": schedule.sampler,
      "size": f"{width}x{height}", "model": self._name, "version": __version__,
    }  # fmt: skip
    settings |= {"guidance_rescale": guidance_rescale} if guidance_rescale else {}
    settings |= {"lora": self._lora} if self._lora else {}
    settings |= {"strength": strength} if before is not None else {}
    drawings = []
    for number, first in enumerate(batches):
      # All batches of a shape: the last one is filled up with its first image.
      here = np.arange(first, first + min(self._batch_size, len(seeds)))
      here = np.where(here < len(seeds), here, first)
      drawn = generate_images(
        self._model, schedule, jax.tree.map(lambda x, here=here: x[every[here]], told),
        negative and jax.tree.map(lambda x, here=here: np.repeat(x, len(here), axis=0), negative),
        seeds=[seeds[i] for i in here], noise=None if noise is None else noise[here],
        on_step=on_step and (lambda done, of, n=number: on_step(n * of + done, len(batches) * of)), **arguments,
      )[: len(seeds) - first]  # fmt: skip
      for i, image, flagged in zip(range(first, len(seeds)), drawn, self._flags(drawn)):
        pixels = np.zeros_like(image, np.uint8) if flagged else (image * 255).round().astype(np.uint8)
        drawings.append(
          Drawing(
            image=Image.fromarray(pixels), seed=seeds[i], settings={"prompt": prompts[every[i]], **settings},
            flagged=flagged,
          )
        )  # fmt: skip
        if on_drawing is not None:
          on_drawing(drawings[-1])
    return drawings

  def _flags(self, images: np.ndarray) -> list[bool]:
    """What the safety checker says of every image."""
    flags = [False] * len(images) if self._checker is None else [bool(flag) for flag in self._checker(images)]
    if len(flags) != len(images):
      raise UserError(f"the safety checker says something of {len(flags)} images, but is asked of {len(images)}")
    return flags

  def _conditioning(self, prompts: Sequence[str], height: int, width: int) -> Conditioning:
    encoded = [encoder(prompts) for encoder in self._encoders]
    states = np.concatenate([states for states, _ in encoded], axis=-1)
    if not self._reads_sizes:
      return Conditioning(hidden_states=states)
    sizes = np.float32([height, width, 0, 0, height, width])
    return Conditioning(
      hidden_states=states, text_embeds=encoded[-1][1], time_ids=np.repeat(sizes[None], len(prompts), axis=0)
    )

  def _negative(self, prompt: str | None, height: int, width: int) -> Conditioning:
    told = self._conditioning([prompt or ""], height, width)
    if prompt is not None or not self._zero_negative:
      return told
    return told.replace(hidden_states=0 * told.hidden_states, text_embeds=0 * told.text_embeds)


def _placed(boxed: Any, params: Any, partitioner: Partitioner | None) -> Any:
  """Parameters on the device, or on the mesh by the logical names in `boxed`."""
  if partitioner is None:
    return jax.tree.map(jnp.asarray, params)
  partitioner.validate(boxed)
  return jax.tree.map(jax.device_put, params, partitioner.shardings(boxed))


def _read_image(value: Any, name: str, mode: str) -> Image.Image:
  if isinstance(value, str | Path):
    return (load_image if mode == "RGB" else load_mask)(value)
  if isinstance(value, Image.Image):
    return value.convert(mode)
  try:
    array = np.asarray(value)
    if array.dtype not in (np.uint8, np.bool_):
      raise TypeError(f"its numbers are {array.dtype}; give bytes, from 0 to 255")
    return Image.fromarray(array).convert(mode)
  except (TypeError, ValueError) as error:
    raise UserError(f"{name} {type(value).__name__} cannot be read as an image: {error}") from error


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
  """One for every image."""
  if seed is None or np.ndim(seed) == 0:
    first = secrets.randbelow(2**31) if seed is None else int(seed)
    seeds = list(range(first, first + count))
  else:
    seeds = list(seed)
  if len(seeds) != count:
    raise UserError(f"{len(seeds)} seeds for {count} images; give one for every image, or one number")
  if not all(0 <= each < 2**32 for each in seeds):
    raise UserError(f"seed={seed} is not within 0 and 4294967295")
  return seeds
