"""The train step of a model that draws, on meshes and in parts, against one device."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import tiny_denoiser

from fsb_jax import models
from fsb_jax.models import lora
from fsb_jax.partitioning import Partitioner, make_mesh
from fsb_jax.training.denoising_loss import denoising
from fsb_jax.training.levers import Levers
from fsb_jax.training.step import Update, abstract_state

RATE = 0.1
# Compiles faster.
QUICK = {"xla_backend_optimization_level": 0}


def batch_of():
  random = np.random.default_rng(0)
  shape = (8, 8, 8, 4)
  return {
    "input_ids": random.integers(1, 32, (8, 8)).astype(np.int32),
    "attention_mask": np.ones((8, 8), np.int32),
    "latent_mean": random.normal(size=shape) * 5,
    "latent_deviation": random.uniform(size=shape),
    "prior": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    "weights": np.array([1] * 7 + [0], np.float32),
  }


def one_step(partitioner, adapted):
  model = tiny_denoiser.small(offset_noise=0.1, min_snr_gamma=5.0)
  levers = Levers()
  if adapted:
    model, levers = lora.Adapted(model, rank=2), Levers(parameter_rates={"^model/": 0.0})
  update = Update(model, denoising(0.5), optax.sgd(RATE), levers=levers)
  boxed = abstract_state(update)
  partitioner.validate(boxed.params)
  shardings = partitioner.shardings(boxed)
  random = np.random.default_rng(1)
  params = jax.tree.map(lambda x: random.normal(size=x.shape) * x.shape[-1] ** -0.5, nn.meta.unbox(boxed.params))
  state = update.first_state(jax.device_put(params, shardings.params), seed=3)
  step = partitioner.jit(update, out_shardings=(shardings, partitioner.replicated), compiler_options=QUICK)
  state, metrics = step(state, partitioner.shard_batch(batch_of()))
  before, after = models.flatten(params), models.flatten(state.params)
  return state, {path: (before[path] - np.asarray(x)) / RATE for path, x in after.items()}, metrics


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True], ids=["kernels", "factors"])
@pytest.mark.parametrize(
  "mesh",
  [
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "tensor": 2, "sequence": 2},
  ],
  ids=str,
)
def test_a_step_equals_that_of_one_device(mesh, adapted):
  with jax.enable_x64(True):
    _, expected, want = one_step(Partitioner(make_mesh(devices=jax.devices()[:1])), adapted)
    state, gradients, metrics = one_step(Partitioner(mesh), adapted)
    # Noise, timesteps and latents are drawn alike, so that the losses are the same.
    assert float(metrics["loss"]) == pytest.approx(float(want["loss"]), rel=1e-9)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(want["gradient_norm"]), rel=1e-9)
    assert {*gradients} == {*expected}
    for path, x in expected.items():
      assert np.abs(gradients[path] - x).max() <= 1e-9 * max(1, np.abs(x).max()), path
    assert any(np.abs(x).max() > 1e-3 for x in expected.values())
  if mesh != {"data": 8}:
    split = {path for path, x in models.flatten(state.params).items() if not x.sharding.is_fully_replicated}
    query = "unet/down_0/attentions_0/blocks/layers/attention/query/kernel"
    # Of factors the axes of heads split one, those of the embedding the other.
    paths = {f"lora/{query}/up", f"lora/{query}/down"} if adapted else {query}
    assert paths & split
