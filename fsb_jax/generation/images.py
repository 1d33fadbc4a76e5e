"""From noise to images: latent diffusion (Rombach et al. 2021, https://arxiv.org/abs/2112.10752).

The loop over steps is on the host, around one compiled step whose slots are donated: it shows progress, can be stopped,
and any number of steps and any sampler of as many slots runs without compiling again. An accelerator does not wait for
the host, which only queues the next step while this one runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.models.diffusion import decode_sliced, decode_tiled
from fsb_jax.models.diffusion.schedulers import Schedule, scale_model_input, step
from fsb_jax.partitioning import Partitioner


@flax.struct.dataclass
class Conditioning:
  """What prompts say to a UNet, a row for every image.

  Attributes:
    hidden_states: `[rows, length, embed]`, the text encoders' states, which are all attended to.
    text_embeds: `[rows, embed]`, where the UNet also reads one vector of the whole prompt; else None.
    time_ids: `[rows, 6]`, where it reads sizes: original height and width, top and left of the crop, height and width.
  """

  hidden_states: jax.Array
  text_embeds: jax.Array | None = None
  time_ids: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModel:
  """Networks that draw, and their parameters.

  Attributes:
    unet: says what noise is in latents.
    unet_params: its parameters.
    autoencoder: images to latents and back.
    autoencoder_params: its parameters.
    partitioner: whose mesh holds the parameters; None for the default device.
  """

  unet: nn.Module
  unet_params: Any
  autoencoder: nn.Module
  autoencoder_params: Any
  partitioner: Partitioner | None = None

  def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
    """(height, width, channels) of the latents of an image; UserError where it has none."""
    config = self.autoencoder.config
    if height < 1 or width < 1 or height % config.reduction or width % config.reduction:
      raise UserError(f"size {width}x{height}: width and height must be multiples of {config.reduction}")
    return height // config.reduction, width // config.reduction, config.latent_channels


@flax.struct.dataclass
class _Inpainting:
  """What stays of an image: latents, the noise they are mixed with, and where it is drawn anew (1)."""

  latents: jax.Array
  noise: jax.Array
  mask: jax.Array


class _Programs:
  """The compiled functions of an `ImageModel`'s networks."""

  def __init__(self, unet: nn.Module, autoencoder: nn.Module, partitioner: Partitioner | None):
    jit = jax.jit if partitioner is None else partitioner.jit
    scaling, shift = autoencoder.config.scaling_factor, autoencoder.config.shift_factor

    # Apart, for times are compiled anew for every number of steps: a moment, where texts take a second.
    def embed_times(params, timesteps, text_embeds, time_ids):
      return unet.apply({"params": params}, timesteps[:, None], text_embeds, time_ids, method="time_embeddings")

    def read_texts(params, hidden_states):
      return unet.apply({"params": params}, hidden_states, method="text_keys_values")

    def one_step(params, slots, plan, time, conditioning, texts, guidance, rescale, extra, noise, kept, next_level):
      inputs = scale_model_input(plan, slots, 0)
      if extra is not None:
        inputs = jnp.concatenate([inputs, extra], axis=-1)
      if guidance is not None:
        inputs = jnp.repeat(inputs, 2, axis=0)
      timesteps = jnp.broadcast_to(plan.timesteps[0], len(inputs))
      output = unet.apply(
        {"params": params}, inputs, timesteps, conditioning.hidden_states, conditioning.text_embeds,
        conditioning.time_ids, text_keys_values=texts, time_embedding=time,
      ).astype(slots.dtype)  # fmt: skip
      if guidance is not None:
        output = _guided(output, guidance, rescale)
      slots = step(plan, slots, 0, output, noise)
      if kept is not None:
        known = next_level[0] * kept.latents + next_level[1] * kept.noise
        slots = slots.at[0].set((1 - kept.mask) * known + kept.mask * slots[0])
      return slots

    def encode(params, images):
      mean, _ = autoencoder.apply({"params": params}, images, method="encode")
      return (mean.astype(images.dtype) - shift) * scaling

    def decode(params, latents):
      return autoencoder.apply({"params": params}, latents, method="decode")

    self.embed_times, self.read_texts, self.encode = jit(embed_times), jit(read_texts), jit(encode)
    # Every process has images whole, wherever they were made.
    self.decode = jit(decode, **({} if partitioner is None else {"out_shardings": partitioner.replicated}))
    self.step = jit(one_step, donate_argnums=1)
    self.noise = jit(seeded_noise, static_argnums=2)


@functools.lru_cache(maxsize=8)
def _programs(unet: nn.Module, autoencoder: nn.Module, partitioner: Partitioner | None) -> _Programs:
  return _Programs(unet, autoencoder, partitioner)


def seeded_noise(seeds: jax.Array, index: Any, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal noise `[rows, *shape]` of step `index`; a row depends on its own seed alone."""
  return jax.vmap(lambda seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape))(seeds)


def _guided(output: jax.Array, guidance: jax.Array, rescale: jax.Array | None) -> jax.Array:
  """Away from the negative prompt (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

  `rescale` takes back that share of what this does to the standard deviation (Lin et al. 2023, section 3.4).
  """
  negative, positive = (output.reshape(-1, 2, *output.shape[1:])[:, i] for i in range(2))
  guided = negative + guidance * (positive - negative)
  if rescale is None:
    return guided
  axes = tuple(range(1, guided.ndim))
  ratio = positive.std(axis=axes, keepdims=True) / guided.std(axis=axes, keepdims=True)
  return guided * (rescale * ratio + 1 - rescale)


def generate_images(
  model: ImageModel,
  schedule: Schedule,
  prompts: Conditioning,
  negative: Conditioning | None,
  *,
  height: int,
  width: int,
  seeds: Sequence[int],
  steps: int = 50,
  guidance: float = 7.5,
  guidance_rescale: float = 0.0,
  image: np.ndarray | None = None,
  mask: np.ndarray | None = None,
  strength: float = 1.0,
  noise: np.ndarray | None = None,
  tiled: bool = False,
  on_step: Callable[[int, int], None] | None = None,
) -> np.ndarray:
  """Draws images.

  Args:
    model: the networks.
    schedule: the noise, and how to go back along it.
    prompts: a row for every image.
    negative: as many rows that guidance leads away from; not read where guidance <= 1.
    height: of the images, in pixels.
    width: of the images.
    seeds: one for every image. An image depends on its own seed, not on those beside it.
    steps: from noise to an image; with an image that share of them that `strength` says.
    guidance: how much further to go the way from the negative prompt to the prompt; 1 and below go without it.
    guidance_rescale: share of guidance's larger contrast that is taken back.
    image: `[rows or 1, height, width, 3]` in [-1, 1], to begin with.
    mask: `[rows or 1, height, width, 1]`, 1 where the image is drawn anew and 0 where it stays.
    strength: how much of the image's own latents is lost to noise.
    noise: `[rows, latent height, latent width, channels]` to begin with, instead of the seeds'.
    tiled: decode in parts, see `decode_tiled`.
    on_step: called with (steps done, steps) after each one.

  Returns:
    float `[rows, height, width, 3]` in [0, 1].

  Raises:
    UserError: inputs that do not fit, before anything is compiled; and images that are not numbers.
  """
  latent_shape = model.latent_shape(height, width)
  first = _first_step(steps, strength)
  plan = schedule.plan(steps, first=first)
  _require_channels(model, latent_shape[-1], image, mask)
  require_noise(noise, (len(seeds), *latent_shape))
  programs = _programs(model.unet, model.autoencoder, model.partitioner)
  rows = _Rows(len(seeds), model.partitioner)
  seeds = rows.put(np.asarray(seeds, np.uint32))
  noise = programs.noise(seeds, 0, latent_shape) if noise is None else rows.put(noise)
  conditioning = rows.put(prompts)
  if guidance > 1:
    both = jax.tree.map(lambda *pair: np.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:]), negative, prompts)
    conditioning = rows.put(both, each=2)
  texts = programs.read_texts(model.unet_params, conditioning.hidden_states)
  times = programs.embed_times(model.unet_params, plan.timesteps, conditioning.text_embeds, conditioning.time_ids)

  extra = kept = None
  if image is None:
    slots = plan.init(noise)
  else:
    image = rows.put(image)
    latents = programs.encode(model.autoencoder_params, image)
    slots = plan.init(noise) if mask is not None and strength == 1 else plan.start(plan.add_noise(latents, noise))
  if mask is not None:
    factor = height // latent_shape[0]
    small = rows.put(mask[:, ::factor, ::factor])
    if model.unet.config.in_channels > latent_shape[-1]:
      hidden = programs.encode(model.autoencoder_params, image * (1 - rows.put(mask)))
      extra = jnp.concatenate([small, hidden], axis=-1)
    else:
      kept = _Inpainting(latents=latents, noise=noise, mask=small)
  numbers = (np.float32(guidance) if guidance > 1 else None, np.float32(guidance_rescale) if guidance_rescale else None)
  for i in range(plan.steps):
    fresh = programs.noise(seeds, i + 1, latent_shape) if plan.draws else None
    next_level = plan.levels[i + 1] if i + 1 < plan.steps else np.array([1, 0], np.float32)
    slots = programs.step(
      model.unet_params, slots, plan.at(i), times[i], conditioning, texts, *numbers, extra, fresh, kept, next_level
    )
    if on_step is not None:
      jax.block_until_ready(slots)
      on_step(i + 1, plan.steps)
  images = np.clip(_decoded(model, slots[0], tiled)[: rows.count] / 2 + 0.5, 0, 1)
  if not np.isfinite(images).all():
    raise UserError(
      "the drawing is not made of numbers: the networks overflowed; draw with dtype float32 or bfloat16, less guidance "
      "or more steps"
    )
  return images


def require_noise(noise: np.ndarray | None, shape: tuple[int, ...]) -> None:
  """UserError where noise is given that does not have this shape."""
  if noise is not None and noise.shape != shape:
    raise UserError(f"noise has shape {noise.shape}, but the images begin with {shape}")


def _decoded(model: ImageModel, latents: jax.Array, tiled: bool) -> np.ndarray:
  autoencoder, params = model.autoencoder, model.autoencoder_params
  latents = latents / autoencoder.config.scaling_factor + autoencoder.config.shift_factor
  if model.partitioner is None:
    # One at a time: decoding takes many times the memory of a step.
    decode = functools.partial(decode_sliced, autoencoder)
  else:
    decode = _programs(model.unet, autoencoder, model.partitioner).decode
  images = decode_tiled(autoencoder, params, latents, decode=decode) if tiled else decode(params, latents)
  return np.asarray(images, np.float32)


def _first_step(steps: int, strength: float) -> int:
  if not 0 < strength <= 1:
    raise UserError(f"strength={strength} must be above 0 and at most 1")
  return steps - min(int(steps * strength), steps)


def _require_channels(model: ImageModel, channels: int, image: Any, mask: Any) -> None:
  reads = model.unet.config.in_channels
  if mask is not None and image is None:
    raise UserError("a mask says what of an image to draw anew; give the image too")
  if reads == channels or (reads == 2 * channels + 1 and mask is not None):
    return
  if reads == 2 * channels + 1:
    raise UserError("the model fills holes of an image; give an image and a mask")
  raise UserError(f"the UNet reads {reads} channels but latents have {channels}: they do not belong together")


class _Rows:
  """Rows of a batch, filled up with copies of the first so that a mesh divides them."""

  def __init__(self, count: int, partitioner: Partitioner | None):
    multiple = 1 if partitioner is None else partitioner.batch_multiple
    self.count, self._partitioner = count, partitioner
    self._size = -(-count // multiple) * multiple

  def put(self, tree: Any, each: int = 1) -> Any:
    """Arrays with a row for every image (or one for all, or `each` of them) on the devices."""

    def one(array):
      array = np.asarray(array)
      if len(array) == 1 and self.count * each > 1:
        array = np.repeat(array, self.count * each, axis=0)
      array = np.concatenate([array, np.repeat(array[:1], self._size * each - len(array), axis=0)])
      if self._partitioner is None:
        return jnp.asarray(array)
      names = ("activation_batch", *(None,) * (array.ndim - 1))
      return self._partitioner.put(array, self._partitioner.shardings(nn.LogicallyPartitioned(array, names)))

    return jax.tree.map(one, tree)
