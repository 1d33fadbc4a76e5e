"""The UNet of Stable Diffusion 1, 2 and XL.

Source: Rombach et al. 2022, https://arxiv.org/abs/2112.10752; Podell et al. 2023, https://arxiv.org/abs/2307.01952.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models.attention import CrossAttention
from fsb_jax.models.cache import KeyValues, LayerCache
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.diffusion.blocks import (
  IMAGE_AXES,
  NARROWS,
  WIDENS,
  Convolution,
  GroupNorm,
  downsample,
  resnet,
  upsample,
)
from fsb_jax.models.diffusion.config import UNetConfig
from fsb_jax.models.layers import at_least_float32, dense, multiply, project
from fsb_jax.models.masks import Mask
from fsb_jax.models.transformer import Context, Stack


def embed_numbers(numbers: jax.Array, width: int, cosine_first: bool, shift: float, dtype) -> jax.Array:
  """Sinusoids of numbers (Ho et al. 2020, https://arxiv.org/abs/2006.11239): `[...] -> [..., width]`.

  Args:
    numbers: any shape.
    width: even; half of it are frequencies from 1 down to about 1/10000.
    cosine_first: cosines come before sines.
    shift: taken from the number of frequencies in the exponent.
    dtype: of the result; sinusoids are computed in at least float32.
  """
  wide, half = at_least_float32(dtype), width // 2
  frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=wide) / (half - shift))
  angles = numbers.astype(wide)[..., None] * frequencies
  waves = [jnp.sin(angles), jnp.cos(angles)]
  return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=-1).astype(dtype)


class TimeMlp(nn.Module):
  """Two linear maps with SiLU between them, to `time_dim`."""

  config: UNetConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., width]` to `[..., time_dim]`."""
    features = (self.config.time_dim,)
    hidden = nn.silu(dense(self.config, features, ("embed", "mlp"), "linear_1")(x))
    return dense(self.config, features, ("mlp", "embed"), "linear_2")(hidden)


class ImageTransformer(nn.Module):
  """A transformer over the pixels of an image, which also reads the text; a residual around it.

  Attributes:
    config: the UNet's.
    stack: the transformer's.
  """

  config: UNetConfig
  stack: TransformerConfig
  deterministic: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, encoded: jax.Array, keys_values: Any = None) -> jax.Array:
    """Maps an image to one of its shape.

    Args:
      x: `[batch, height, width, channels]`.
      encoded: the text, `[batch, length, text_dim]`.
      keys_values: of the text in every layer, see `UNet.text_keys_values`; None where they are to be made.
    """
    config, channels = self.config, x.shape[-1]
    hidden = GroupNorm(config, 1e-6, name="norm")(x)
    hidden = dense(config, (channels,), WIDENS, "project_in")(hidden)
    context = Context(mask=Mask(), encoded=encoded, encoded_mask=Mask(), deterministic=self.deterministic)
    hidden = hidden.reshape(x.shape[0], -1, channels)
    hidden, _ = Stack(self.stack, name="blocks")(hidden, context, keys_values)
    hidden = dense(config, (channels,), NARROWS, "project_out")(hidden.reshape(x.shape))
    return nn.with_logical_constraint(x + hidden, IMAGE_AXES)


class Level(nn.Module):
  """ResNets, each with a transformer behind it where the level has any.

  Attributes:
    config: the UNet's.
    level: which of its levels.
    way: "down", then the image is halved; "up", then it is doubled.
  """

  config: UNetConfig
  level: int
  way: str
  deterministic: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, time: jax.Array, encoded: jax.Array, keys_values: dict, skips: tuple[jax.Array, ...] = ()
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs the level.

    Args:
      x: `[batch, height, width, channels]`.
      time: see `Resnet`.
      encoded: see `ImageTransformer`.
      keys_values: by transformers' places, see `UNet.text_keys_values`.
      skips: on the way up, what the way down left.

    Returns:
      The image, and all that was left for the way up, or what is still left of it.
    """
    config, level, down = self.config, self.level, self.way == "down"
    features, stack = config.channels[level], config.transformer(level)
    for i in range(config.resnets[level] + (not down)):
      if not down:
        x, skips = jnp.concatenate([x, skips[-1]], axis=-1), skips[:-1]
      x = resnet(config, features, f"resnets_{i}", self.deterministic)(x, time)
      if stack is not None:
        name = f"attentions_{i}"
        attention = ImageTransformer(config, stack, self.deterministic, name=name)
        x = attention(x, encoded, keys_values.get(f"{self.name}/{name}"))
      if down:
        skips = (*skips, x)
    if down and level < len(config.channels) - 1:
      x = downsample(config, x, (1, 1), "downsample")
      skips = (*skips, x)
    if not down and level > 0:
      # An odd size was rounded up on the way down.
      x = upsample(config, x, skips[-1].shape[1:3], "upsample")
    return x, skips


class UNet(nn.Module):
  """Predicts the noise in latents, or whatever it was trained to predict, from them, the time and a text."""

  config: UNetConfig

  def setup(self):
    """Declares what embeds the time."""
    self.time = TimeMlp(self.config)
    if self.config.added_number_dim is not None:
      self.added = TimeMlp(self.config)

  def time_embeddings(
    self, timesteps: jax.Array, added_text_embeds: jax.Array | None = None, added_time_ids: jax.Array | None = None
  ) -> jax.Array:
    """What depends on the step, and not on the latents: a loop makes that of all its steps at once.

    Args:
      timesteps: numbers, `[batch]`; or `[steps, 1]` for all steps at once.
      added_text_embeds: pooled text, `[batch, width]`, where the config adds to time.
      added_time_ids: numbers, `[batch, numbers]` (6 in SDXL), where the config adds to time.

    Returns:
      `[batch, time_dim]`, or `[steps, batch or 1, time_dim]`: a `time_embedding` of `__call__`, or one for every step.

    Raises:
      ValueError: the config adds to time, and what to add is not given.
    """
    config = self.config

    def embedded(numbers, width):
      return embed_numbers(numbers, width, config.cosine_first, config.frequency_shift, config.run.dtype)

    time = self.time(embedded(timesteps, config.channels[0]))
    if config.added_number_dim is not None:
      if added_text_embeds is None or added_time_ids is None:
        raise ValueError("this UNet needs added_text_embeds and added_time_ids")
      numbers = embedded(added_time_ids, config.added_number_dim).reshape(added_time_ids.shape[0], -1)
      time = time + self.added(jnp.concatenate([added_text_embeds.astype(config.run.dtype), numbers], axis=-1))
    return nn.silu(time)

  def text_keys_values(self, encoder_hidden_states: jax.Array) -> dict[str, Any]:
    """Keys and values of the text in every layer: the same at all steps, so that a loop makes them once.

    Args:
      encoder_hidden_states: `[batch, length, text_dim]`.

    Returns:
      Of every transformer by its place, such as "down_0/attentions_1", a `LayerCache` as its layers are laid out.
    """
    params = nn.meta.unbox(self.variables["params"])
    return {
      f"{level}/{name}": _keys_values(stack, params[level][name]["blocks"], encoder_hidden_states)
      for (level, name), stack in self.config.transformers().items()
    }

  @nn.compact
  def __call__(
    self,
    sample: jax.Array,
    timesteps: jax.Array,
    encoder_hidden_states: jax.Array,
    added_text_embeds: jax.Array | None = None,
    added_time_ids: jax.Array | None = None,
    text_keys_values: dict[str, Any] | None = None,
    time_embedding: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Predicts.

    Args:
      sample: noisy latents, `[batch, height, width, in_channels]`.
      timesteps: numbers, `[batch]`; not read where `time_embedding` is given.
      encoder_hidden_states: the text, `[batch, length, text_dim]`.
      added_text_embeds: see `time_embeddings`.
      added_time_ids: see `time_embeddings`.
      text_keys_values: what the method of that name made of `encoder_hidden_states`; None where it is to be made.
      time_embedding: what `time_embeddings` made, `[batch or 1, time_dim]`; None where it is to be made.
      deterministic: no dropout.

    Returns:
      `[batch, height, width, out_channels]`.
    """
    config, run = self.config, self.config.run
    if time_embedding is None:
      time_embedding = self.time_embeddings(timesteps, added_text_embeds, added_time_ids)
    encoded, keys_values = encoder_hidden_states.astype(run.dtype), text_keys_values or {}
    x = sample.astype(run.dtype)
    if config.centre_input:
      x = 2 * x - 1
    x = Convolution(config, config.channels[0], axes=(None, "inner_channels"), name="convolution_in")(x)
    x = nn.with_logical_constraint(x, IMAGE_AXES)
    skips, levels = (x,), range(len(config.channels))
    for i in levels:
      level = Level(config, i, "down", deterministic, name=f"down_{i}")
      x, skips = level(x, time_embedding, encoded, keys_values, skips)
    x = Middle(config, deterministic, name="middle")(x, time_embedding, encoded, keys_values)
    for i, place in enumerate(reversed(levels)):
      level = Level(config, place, "up", deterministic, name=f"up_{i}")
      x, skips = level(x, time_embedding, encoded, keys_values, skips)
    x = GroupNorm(config, config.norm_epsilon, silu=True, name="norm_out")(x)
    return Convolution(config, config.out_channels, axes=("inner_channels", None), name="convolution_out")(x)


class Middle(nn.Module):
  """A transformer between two ResNets."""

  config: UNetConfig
  deterministic: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array, encoded: jax.Array, keys_values: dict) -> jax.Array:
    """Maps an image to one of its shape; see `Level`."""
    config = self.config
    x = resnet(config, x.shape[-1], "resnets_0", self.deterministic)(x, time)
    attention = ImageTransformer(config, config.middle, self.deterministic, name="attentions_0")
    x = attention(x, encoded, keys_values.get("middle/attentions_0"))
    return resnet(config, x.shape[-1], "resnets_1", self.deterministic)(x, time)


def _keys_values(stack: TransformerConfig, params: dict, encoded: jax.Array) -> Any:
  """Keys and values in every layer of a transformer with these parameters."""
  reads_text = {"attention": issubclass(stack.attention, CrossAttention), "cross_attention": True}

  def projected(kernel):
    x, kernel = encoded.astype(stack.run.dtype), kernel.astype(stack.run.dtype)
    return multiply(kernel, x, 1) if stack.run.kernels == "outputs_first" else project(x, kernel, 1)

  def of(layer):
    made = {
      name: KeyValues.of(*(projected(layer[name][which]["kernel"]) for which in ("key", "value"))) if reads else None
      for name, reads in reads_text.items()
    }
    return LayerCache(**made)

  if stack.run.scan_layers:
    return jax.vmap(of)(params["layers"])
  return tuple(of(params[f"layers_{i}"]) for i in range(stack.num_layers))
