"""The training loss of latent diffusion against PyTorch, and what it draws against formulas."""

import dataclasses

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_denoiser
import tiny_diffusers
import torch
from convert_torch import engine
from convert_torch.weights import table

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models import diffusion
from fsb_jax.training.denoising_loss import denoising

BATCH = 4


def batch_of():
  random = np.random.default_rng(0)
  shape = (BATCH, 8, 8, 4)
  return {
    "input_ids": random.integers(1, 32, (BATCH, 8)).astype(np.int32),
    "latent_mean": random.normal(size=shape) * 5,
    "noise": random.normal(size=shape),
    "timesteps": np.array([3, 700, 250, 999]),
    "weights": np.array([1, 1, 1, 0], np.float32),
    "prior": np.array([0, 1, 0, 0], np.float32),
  }


def to_torch(x):
  return torch.tensor(x).permute(0, 3, 1, 2)


def their_loss(unet, text_encoder, batch, prediction_type, gamma, prior_weight):
  """Written down as diffusers' examples do it: mean over the rows of each kind, the second one weighted."""
  scheduler = diffusers.DDPMScheduler(**tiny_denoiser.SCALED, prediction_type=prediction_type)
  scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=float) ** 2, 0)
  latents, noise = to_torch(batch["latent_mean"]) * 0.18215, to_torch(batch["noise"])
  timesteps = torch.tensor(batch["timesteps"])
  noisy = scheduler.add_noise(latents, noise, timesteps)
  states = text_encoder(torch.tensor(batch["input_ids"]))[0]
  prediction = unet(noisy, timesteps, states).sample
  target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
  errors = ((prediction - target) ** 2).mean(dim=(1, 2, 3))
  if gamma is not None:
    kept = scheduler.alphas_cumprod[timesteps]
    ratio = kept / (1 - kept)
    errors = errors * torch.clamp(ratio, max=gamma) / (ratio if prediction_type == "epsilon" else ratio + 1)
  real, prior = torch.tensor(batch["weights"]) > 0, torch.tensor(batch["prior"]) > 0
  return errors[real & ~prior].mean() + prior_weight * errors[real & prior].mean()


@pytest.mark.parametrize(
  ("prediction_type", "gamma"), [("epsilon", None), pytest.param("v_prediction", 5.0, marks=pytest.mark.slow)]
)
def test_the_loss_and_every_gradient_are_those_of_pytorch(prediction_type, gamma, tmp_path):
  unet, text_encoder = tiny_denoiser.theirs()
  batch = batch_of()
  reference = their_loss(unet, text_encoder, batch, prediction_type, gamma, 0.7)
  reference.backward()
  with jax.enable_x64(True):
    schedule = tiny_denoiser.schedule(prediction_type=prediction_type)
    denoiser, params, read = tiny_denoiser.read(
      unet, text_encoder, tmp_path, schedule=schedule, min_snr_gamma=gamma
    )

    @jax.jit
    def loss(params):
      inputs = {name: batch[name] for name in models.input_names(denoiser) if name in batch}
      return denoising(0.7)(denoiser.apply({"params": params}, **inputs), batch)

    result, gradients = jax.value_and_grad(loss)(params)
    assert abs(result - reference.item()) <= 1e-9 * max(1, abs(reference.item()))
    ours = {f"unet.{name}": x for name, x in tiny_diffusers.in_their_names(denoiser.unet, gradients["unet"]).items()}
    saved = engine.save(table("bert"), models.flatten(gradients["text_encoder"]), read.config, prefixed=False)
    ours |= {f"text.{name}": x for name, x in saved}
    for module, prefix in ((unet, "unet."), (text_encoder, "text.")):
      for name, parameter in module.named_parameters():
        expected = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        largest = max(1, np.abs(expected).max())
        assert np.abs(np.asarray(ours[prefix + name]) - expected).max() <= 1e-9 * largest, name
    word_embeddings = text_encoder.embeddings.word_embeddings.weight.grad
    assert word_embeddings.abs().max() > 1e-6


def test_weights_of_min_snr():
  # At the step where signal and noise are equal the ratio is 1.
  schedule = tiny_denoiser.schedule()
  ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
  weights = diffusion.signal_weights(schedule, 5.0)
  np.testing.assert_allclose(weights, [min(r, 5) / r for r in ratio], rtol=1e-12)
  assert weights[-1] == 1 and weights[0] < 0.01
  velocity = diffusion.signal_weights(dataclasses.replace(schedule, prediction_type="v_prediction"), 5.0)
  np.testing.assert_allclose(velocity, [min(r, 5) / (r + 1) for r in ratio], rtol=1e-12)
  assert (diffusion.signal_weights(schedule, None) == 1).all()
  # Where no signal is left, an error of the noise still counts once.
  nothing = tiny_denoiser.schedule(rescale_betas_zero_snr=True)
  assert diffusion.signal_weights(nothing, 5.0)[-1] == 1


class Silent(nn.Module):
  """A UNet's place, and a text encoder's: what the denoiser draws is then all there is."""

  config: diffusion.UNetConfig

  @nn.compact
  def __call__(self, x, *rest, deterministic=True):
    return models.BaseOutput(last_hidden_state=jnp.zeros((len(x), 1, 1))) if not rest else x * 0


def drawn(rows=2000, deviation=None, **options):
  silent = Silent(diffusion.UNetConfig(channels=(8,), resnets=(1,), heads=(1,), depths=(0,), text_only=(False,)))
  denoiser = diffusion.Denoiser(silent, silent, tiny_denoiser.schedule(**options.pop("schedule", {})), **options)
  shape = (rows, 4, 4, 4)
  inputs = {"latent_mean": np.full(shape, 3.0)}
  if deviation is not None:
    inputs["latent_deviation"] = np.full(shape, deviation)
  ids = np.zeros((rows, 8), np.int32)
  with jax.enable_x64(True):
    return denoiser.apply({}, ids, **inputs, rngs={"dropout": jax.random.key(0)})


def test_offset_noise_is_shared_by_a_channel():
  target = np.asarray(drawn(offset_noise=0.5).target)
  # One number a row and channel with variance 0.25, beside noise of variance 1 that 16 pixels average.
  assert abs(target.var() - 1.25) < 0.02
  assert abs(target.mean(axis=(1, 2)).var() - (0.25 + 1 / 16)) < 0.01
  assert abs(np.asarray(drawn().target).mean(axis=(1, 2)).var() - 1 / 16) < 0.005


def test_latents_are_drawn_from_the_posterior():
  clean = np.asarray(drawn(deviation=2.0, schedule={"prediction_type": "sample"}).target)
  assert abs(clean.mean() - 3 * 0.18215) < 0.01 and abs(clean.std() - 2 * 0.18215) < 0.01
  np.testing.assert_allclose(drawn(schedule={"prediction_type": "sample"}).target, 3 * 0.18215)
  shifted = drawn(schedule={"prediction_type": "sample"}, shift_factor=1.0, scaling_factor=0.5).target
  np.testing.assert_allclose(shifted, 1.0)


def test_timesteps_are_drawn_evenly_from_all():
  # The ratio of signal to noise tells the timestep.
  schedule = {"prediction_type": "sample"}
  found = np.asarray(drawn(min_snr_gamma=1e9, rows=20000, schedule=schedule).weight)
  ratios = diffusion.signal_weights(tiny_denoiser.schedule(**schedule), 1e9)
  steps = np.abs(np.log(ratios)[:, None] - np.log(found)).argmin(axis=0)
  counts = np.bincount(steps, minlength=1000)
  assert len(counts) == 1000 and counts.min() > 0
  assert np.abs(counts.reshape(4, -1).sum(axis=1) / 20000 - 0.25).max() < 0.02


def test_what_cannot_be_trained_is_said():
  unet = diffusion.UNet(diffusion.UNetConfig(added_number_dim=4, added_dim=34))
  with pytest.raises(UserError, match="SDXL"):
    diffusion.require_trainable(unet, 4)
  with pytest.raises(UserError, match="inpainting"):
    diffusion.require_trainable(diffusion.UNet(diffusion.UNetConfig(in_channels=9)), 4)
