"""Latent diffusion: the UNet that takes noise away, and the autoencoder between images and latents.

Images and latents are `[batch, height, width, channels]`.
"""

from fsb_jax.models.diffusion.autoencoder import Autoencoder
from fsb_jax.models.diffusion.config import UNET_SIZES, AutoencoderConfig, UNetConfig
from fsb_jax.models.diffusion.denoiser import Denoiser, DenoisingOutput, require_trainable, signal_weights
from fsb_jax.models.diffusion.hub_config import (
  autoencoder_config_from_hf,
  autoencoder_config_to_hf,
  unet_config_from_hf,
  unet_config_to_hf,
)
from fsb_jax.models.diffusion.initialise import abstract_params, dummy_inputs
from fsb_jax.models.diffusion.tiling import decode_sliced, decode_tiled
from fsb_jax.models.diffusion.unet import UNet, embed_numbers

__all__ = [
  "UNET_SIZES",
  "Autoencoder",
  "AutoencoderConfig",
  "Denoiser",
  "DenoisingOutput",
  "UNet",
  "UNetConfig",
  "abstract_params",
  "autoencoder_config_from_hf",
  "autoencoder_config_to_hf",
  "decode_sliced",
  "decode_tiled",
  "dummy_inputs",
  "embed_numbers",
  "require_trainable",
  "signal_weights",
  "unet_config_from_hf",
  "unet_config_to_hf",
]
