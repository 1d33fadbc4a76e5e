"""Shapes of the parameters of a UNet or an autoencoder."""

from typing import Any

import jax
import jax.numpy as jnp

from fsb_jax.models.diffusion.autoencoder import Autoencoder
from fsb_jax.models.diffusion.unet import UNet
from fsb_jax.models.initialise import initial_params


def dummy_inputs(model: UNet | Autoencoder) -> dict[str, jax.Array]:
  """The smallest arrays that `model.__call__` takes, by name; initialising from them makes all parameters."""
  config = model.config
  size = 2 ** (len(config.channels) - 1)
  if isinstance(model, Autoencoder):
    return {"images": jnp.zeros((1, size, size, config.in_channels))}
  inputs = {
    "sample": jnp.zeros((1, size, size, config.in_channels)),
    "timesteps": jnp.zeros(1, jnp.int32),
    "encoder_hidden_states": jnp.zeros((1, 2, config.text_dim)),
  }
  if config.added_dim is not None:
    # How many numbers there are the parameters do not say, only how wide all is together.
    inputs["added_text_embeds"] = jnp.zeros((1, config.added_dim - config.added_number_dim))
    inputs["added_time_ids"] = jnp.zeros((1, 1))
  return inputs


def abstract_params(model: UNet | Autoencoder) -> Any:
  """Shapes, dtypes and logical names (boxes) of a model's parameters; nothing is allocated."""
  return initial_params.eval_shape(model, jax.random.key(0), **dummy_inputs(model))
