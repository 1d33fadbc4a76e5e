"""The loss of a `models.diffusion.Denoiser`."""

from typing import Any

import jax
import jax.numpy as jnp

from fsb_jax.training.losses import Batch, Objective, Term


def _errors(outputs: Any, batch: Batch) -> jax.Array:
  """Mean squared errors of the rows, weighted by how noisy they are: `[batch]`."""
  squares = jnp.square(outputs.prediction - outputs.target)
  return outputs.weight * jnp.mean(squares, axis=tuple(range(1, squares.ndim)))


def _is_prior(batch: Batch) -> jax.Array:
  return batch["prior"] if "prior" in batch else jnp.zeros(len(batch["input_ids"]))


def denoising(prior_weight: float = 1.0) -> Objective:
  """The mean squared error; rows whose `batch["prior"]` is 1 make a mean of their own, which is added.

  These keep a model that learns one subject from forgetting others of its class: DreamBooth's prior preservation (Ruiz
  et al. 2022, https://arxiv.org/abs/2208.12242, equation 2).

  Args:
    prior_weight: what their mean is multiplied by.
  """
  return Objective(
    (
      Term("denoising", _errors, lambda batch: 1 - _is_prior(batch)),
      Term("prior", _errors, _is_prior, prior_weight),
    )
  )
