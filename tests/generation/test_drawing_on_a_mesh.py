"""Drawing where several devices share the work."""

import flax.linen as nn
import jax
import numpy as np

from fsb_jax.generation.images import _programs, _Rows
from fsb_jax.models import diffusion
from fsb_jax.partitioning import Partitioner


def test_every_process_has_the_images_whole():
  autoencoder = diffusion.Autoencoder(diffusion.AutoencoderConfig(channels=(8,), resnets=1, norm_groups=4))
  unet = diffusion.UNet(diffusion.UNetConfig())
  partitioner = Partitioner({"data": 8})
  boxed = diffusion.abstract_params(autoencoder)
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), nn.meta.unbox(boxed))
  params = partitioner.put(params, partitioner.shardings(boxed))
  latents = _Rows(8, partitioner).put(np.ones((8, 4, 4, 4), np.float32))
  images = _programs(unet, autoencoder, partitioner).decode(params, latents)
  # NumPy reads no array of which other processes hold a part.
  assert not latents.sharding.is_fully_replicated and images.sharding.is_fully_replicated
