"""Decoding in parts, for large images and small memories."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.models.diffusion.autoencoder import Autoencoder


@functools.partial(jax.jit, static_argnums=0)
def _decode(autoencoder: Autoencoder, params: Any, latents: jax.Array) -> jax.Array:
  return autoencoder.apply({"params": params}, latents, method="decode")


def decode_sliced(autoencoder: Autoencoder, params: Any, latents: jax.Array) -> jax.Array:
  """`Autoencoder.decode`, one image after the other."""
  return jnp.concatenate([_decode(autoencoder, params, latents[i : i + 1]) for i in range(latents.shape[0])])


def decode_tiled(
  autoencoder: Autoencoder, params: Any, latents: jax.Array, overlap: float = 0.25, decode: Callable | None = None
) -> jax.Array:
  """`Autoencoder.decode` by overlapping tiles of `config.sample_size` pixels, blended where they overlap.

  What it gives is not what decoding at once gives: every tile is normalised by itself. Latents no larger than a tile
  are decoded at once.

  Args:
    autoencoder: the module.
    params: its parameters.
    latents: `[batch, height, width, latent_channels]`.
    overlap: of neighbouring tiles, as a part of one.
    decode: a compiled `Autoencoder.decode`, called with parameters and latents; our own on one device if not given.

  Returns:
    Images, `[batch, 8 * height, 8 * width, out_channels]`.
  """
  config, decode = autoencoder.config, decode or functools.partial(_decode, autoencoder)
  pixels, tile = config.sample_size, config.sample_size // config.reduction
  height, width = latents.shape[1:3]
  if max(height, width) <= tile:
    return decode(params, latents)
  step, blended = int(tile * (1 - overlap)), int(pixels * overlap)
  kept, above, result = pixels - blended, [], []
  for top in range(0, height, step):
    row: list[jax.Array] = []
    for column, left in enumerate(range(0, width, step)):
      image = decode(params, latents[:, top : top + tile, left : left + tile])
      if above:
        image = _blend(above[column], image, blended, axis=1)
      if row:
        image = _blend(row[-1], image, blended, axis=2)
      row.append(image)
    result.append(jnp.concatenate([image[:, :kept, :kept] for image in row], axis=2))
    above = row
  return jnp.concatenate(result, axis=1)


def _blend(before: jax.Array, image: jax.Array, extent: int, axis: int) -> jax.Array:
  """`image`, whose first rows or columns come gradually out of the last ones of `before`."""
  extent = min(before.shape[axis], image.shape[axis], extent)
  weights = jnp.expand_dims(np.arange(extent) / extent, tuple(i for i in range(4) if i != axis)).astype(image.dtype)
  last = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
  first = jax.lax.slice_in_dim(image, 0, extent, axis=axis)
  rest = jax.lax.slice_in_dim(image, extent, None, axis=axis)
  return jnp.concatenate([last * (1 - weights) + first * weights, rest], axis=axis)
