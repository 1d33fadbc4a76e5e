"""The autoencoder of latent diffusion, between images and what the UNet works on.

Source: Rombach et al. 2022, https://arxiv.org/abs/2112.10752.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models.attention import attend
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
from fsb_jax.models.diffusion.config import AutoencoderConfig
from fsb_jax.models.layers import dense
from fsb_jax.models.masks import Mask


class PixelAttention(nn.Module):
  """Attention of every pixel to all, with one head and a residual around it."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    config, channels = self.config, x.shape[-1]
    rows = GroupNorm(config, config.norm_epsilon, name="norm")(x).reshape(x.shape[0], -1, channels)
    query, key, value = (
      dense(config, (channels,), WIDENS, name)(rows)[:, :, None] for name in ("query", "key", "value")
    )
    result = attend(query, key, value, Mask(), scale=channels**-0.5, implementation=config.run.attention)
    result = dense(config, (channels,), NARROWS, "out")(result.reshape(x.shape))
    return nn.with_logical_constraint(x + result, IMAGE_AXES)


class Middle(nn.Module):
  """Attention, where the config has it, between two ResNets."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    x = resnet(self.config, x.shape[-1], "resnets_0")(x)
    if self.config.middle_attention:
      x = PixelAttention(self.config, name="attention")(x)
    return resnet(self.config, x.shape[-1], "resnets_1")(x)


class Level(nn.Module):
  """ResNets of one size of image, then a halving ("down") or doubling ("up") of it where another level follows."""

  config: AutoencoderConfig
  level: int
  way: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the level's channels, half or twice as large."""
    config, down = self.config, self.way == "down"
    for i in range(config.resnets + (not down)):
      x = resnet(config, config.channels[self.level], f"resnets_{i}")(x)
    if down and self.level < len(config.channels) - 1:
      # Zeros on the far sides only.
      x = downsample(config, x, (0, 1), "downsample")
    if not down and self.level > 0:
      x = upsample(config, x, None, "upsample")
    return x


class Encoder(nn.Module):
  """From images to mean and log variance, laid side by side."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, in_channels]` to `[batch, height / 8, width / 8, 2 * latent_channels]`."""
    config = self.config
    x = Convolution(config, config.channels[0], axes=(None, "inner_channels"), name="convolution_in")(images)
    x = nn.with_logical_constraint(x, IMAGE_AXES)
    for i in range(len(config.channels)):
      x = Level(config, i, "down", name=f"down_{i}")(x)
    x = Middle(config, name="middle")(x)
    x = GroupNorm(config, config.norm_epsilon, silu=True, name="norm_out")(x)
    features = 2 * config.latent_channels
    return Convolution(config, features, axes=("inner_channels", None), name="convolution_out")(x)


class Decoder(nn.Module):
  """From latents to images."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, latent_channels]` to `[batch, 8 * height, 8 * width, out_channels]`."""
    config = self.config
    x = Convolution(config, config.channels[-1], axes=(None, "inner_channels"), name="convolution_in")(latents)
    x = Middle(config, name="middle")(nn.with_logical_constraint(x, IMAGE_AXES))
    for i, place in enumerate(reversed(range(len(config.channels)))):
      x = Level(config, place, "up", name=f"up_{i}")(x)
    x = GroupNorm(config, config.norm_epsilon, silu=True, name="norm_out")(x)
    return Convolution(config, config.out_channels, axes=("inner_channels", None), name="convolution_out")(x)


class Autoencoder(nn.Module):
  """Encodes images as distributions of latents, and decodes latents; callers apply `config.scaling_factor`.

  The size of a latent is the image's divided by `config.reduction`, which is 8 for all published ones.
  """

  config: AutoencoderConfig

  def setup(self):
    """Declares both halves."""
    config = self.config.computing
    self.encoder, self.decoder = Encoder(config), Decoder(config)
    if config.quant_convolution:
      self.quant = dense(config, (2 * config.latent_channels,), (None, None))
    if config.post_quant_convolution:
      self.post_quant = dense(config, (config.latent_channels,), (None, None))

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The distribution of an image's latents: independent Gaussians.

    Args:
      images: `[batch, height, width, in_channels]`, from -1 to 1.

    Returns:
      Mean and log variance, each `[batch, height / 8, width / 8, latent_channels]`, the latter within [-30, 20].
    """
    moments = self.encoder(images)
    if self.config.quant_convolution:
      moments = self.quant(moments)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Images `[batch, 8 * height, 8 * width, out_channels]`, about -1 to 1, from `[batch, height, width, channels]`."""
    if self.config.post_quant_convolution:
      latents = self.post_quant(latents)
    return self.decoder(latents)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Images from the mean of what they are encoded as, of their shape."""
    return self.decode(self.encode(images)[0])
