"""What a latent diffusion model is trained as: text encoder and UNet in one module that makes its own noise."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.models.diffusion.schedulers import Schedule
from fsb_jax.models.diffusion.unet import UNet
from fsb_jax.models.layers import at_least_float32


@flax.struct.dataclass
class DenoisingOutput:
  """What the UNet said, and what it should have said.

  Attributes:
    prediction: `[batch, height, width, channels]`.
    target: the same shape.
    weight: `[batch]`, how much a row's error counts; 1 unless it depends on how noisy the row is.
  """

  prediction: jax.Array
  target: jax.Array
  weight: jax.Array


def signal_weights(schedule: Schedule, gamma: float | None) -> np.ndarray:
  """How much an error counts after each step of the forward process: min-SNR-gamma.

  With s the ratio of signal to noise, alphas_cumprod / (1 - alphas_cumprod), an error of the clean sample counts
  min(s, gamma); that of the noise is s times as large, that of the velocity s + 1 times (Hang et al. 2023,
  https://arxiv.org/abs/2303.09556, section 3.4).

  Args:
    schedule: what is noise, and what the UNet says.
    gamma: 5 is usual; None for 1 everywhere.

  Returns:
    float64 `[num_train_timesteps]`.
  """
  kept = schedule.alphas_cumprod
  if gamma is None:
    return np.ones_like(kept)
  with np.errstate(divide="ignore"):
    ratio = kept / (1 - kept)
    # Of the noise, in the form that holds without any signal too.
    forms = {
      "epsilon": np.minimum(1, gamma / ratio), "v_prediction": np.minimum(ratio, gamma) / (ratio + 1),
      "sample": np.minimum(ratio, gamma),
    }  # fmt: skip
  return forms[schedule.prediction_type]


class Denoiser(nn.Module):
  """A text encoder and a UNet that finds the noise it is given.

  Noise, timesteps and latents are drawn from the rng "dropout", where they are not given: timesteps evenly from all,
  latents from the Gaussians that the autoencoder makes of an image. The text encoder sees no attention mask, for
  padding is text to the published models, and the UNet reads its last states.

  Attributes:
    unet: finds the noise.
    text_encoder: a model whose output has `last_hidden_state`.
    schedule: the noise, and what the UNet says of it.
    scaling_factor: what latents are multiplied by, after `shift_factor` was taken away.
    shift_factor: see above.
    offset_noise: standard deviation of noise that is the same all over a channel, which teaches very dark and very
      bright images (Guttenberg 2023, https://www.crosslabs.org/blog/diffusion-with-offset-noise).
    min_snr_gamma: see `signal_weights`.
  """

  unet: UNet
  text_encoder: nn.Module
  schedule: Schedule
  scaling_factor: float = 0.18215
  shift_factor: float = 0.0
  offset_noise: float = 0.0
  min_snr_gamma: float | None = None

  @property
  def config(self):
    """The UNet's config."""
    return self.unet.config

  def dummy_input(self) -> jax.Array:
    """The smallest `input_ids`."""
    return jnp.zeros((1, 8), jnp.int32)

  def __call__(
    self,
    input_ids: jax.Array,
    latent_mean: jax.Array | None = None,
    latent_deviation: jax.Array | None = None,
    noise: jax.Array | None = None,
    timesteps: jax.Array | None = None,
    deterministic: bool = True,
  ) -> DenoisingOutput:
    """Adds noise to latents and asks for it.

    Args:
      input_ids: captions, int `[batch, length]`.
      latent_mean: what the autoencoder made of the images, `[batch, height, width, channels]`; zeros of the smallest
        size if not given.
      latent_deviation: standard deviations about it, of the same shape; none if not given.
      noise: the same shape; drawn if not given.
      timesteps: int `[batch]`, from 0; drawn if not given.
      deterministic: no dropout.
    """
    text = self.text_encoder(input_ids, deterministic=deterministic).last_hidden_state
    if latent_mean is None:
      side = 2 ** (len(self.config.channels) - 1)
      latent_mean = jnp.zeros((len(input_ids), side, side, self.config.in_channels), text.dtype)
    wide = at_least_float32(latent_mean.dtype)
    latents, batch = latent_mean.astype(wide), len(latent_mean)
    if latent_deviation is not None:
      drawn = jax.random.normal(self.make_rng("dropout"), latents.shape, wide)
      latents = latents + latent_deviation.astype(wide) * drawn
    latents = (latents - self.shift_factor) * self.scaling_factor
    if timesteps is None:
      timesteps = jax.random.randint(self.make_rng("dropout"), (batch,), 0, self.schedule.num_train_timesteps)
    if noise is None:
      noise = self._noise(latents)
    noise = noise.astype(wide)
    noisy = self.schedule.add_noise(latents, noise, timesteps)
    prediction = self.unet(noisy, timesteps, text, deterministic=deterministic)
    target = {
      "epsilon": lambda: noise, "v_prediction": lambda: self.schedule.velocity(latents, noise, timesteps),
      "sample": lambda: latents,
    }[self.schedule.prediction_type]()  # fmt: skip
    weights = jnp.asarray(signal_weights(self.schedule, self.min_snr_gamma), wide)
    return DenoisingOutput(prediction=prediction.astype(wide), target=target, weight=weights[timesteps])

  def _noise(self, like: jax.Array) -> jax.Array:
    noise = jax.random.normal(self.make_rng("dropout"), like.shape, like.dtype)
    if not self.offset_noise:
      return noise
    shift = jax.random.normal(self.make_rng("dropout"), (len(like), 1, 1, like.shape[-1]), like.dtype)
    return noise + self.offset_noise * shift


def require_trainable(unet: UNet, latent_channels: int) -> None:
  """UserError where a `Denoiser` cannot be made of this UNet."""
  config = unet.config
  if config.added_number_dim is not None:
    raise UserError(
      "the UNet reads sizes and a second text encoder, as SDXL's does, which training does not give it yet; choose a "
      "model of Stable Diffusion 1 or 2, such as Taiyi-Stable-Diffusion-1B-Chinese-v0.1"
    )
  if config.in_channels != latent_channels or config.out_channels != latent_channels:
    raise UserError(
      f"the UNet reads {config.in_channels} channels and makes {config.out_channels}, but latents have "
      f"{latent_channels}; inpainting models are not trained, choose one that draws from text alone"
    )
