"""Latent diffusion: the UNet that takes noise away, and the autoencoder between images and latents.

Images and latents are `[batch, height, width, channels]`.
"""

from fsb_jax.models.diffusion.autoencoder import Autoencoder
from fsb_jax.models.diffusion.config import AutoencoderConfig, UNetConfig
from fsb_jax.models.diffusion.tiling import decode_sliced, decode_tiled
from fsb_jax.models.diffusion.unet import UNet, embed_numbers

__all__ = [
  "Autoencoder",
  "AutoencoderConfig",
  "UNet",
  "UNetConfig",
  "decode_sliced",
  "decode_tiled",
  "embed_numbers",
]
