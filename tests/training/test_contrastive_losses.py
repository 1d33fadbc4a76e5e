"""The loss of texts and images against PyTorch in float64; what fills a batch up, and how a mesh splits it."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from fsb_jax import models
from fsb_jax.partitioning import Partitioner, make_mesh
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.step import Update, abstract_state

ROWS = 16
QUICK = {"xla_backend_optimization_level": 0}
cross_entropy = torch.nn.functional.cross_entropy


def loss_of(logits, weights=None):
  batch = {"input_ids": np.zeros((len(logits), 1))} | ({} if weights is None else {"weights": weights})
  return OBJECTIVES["clip"](SimpleNamespace(logits_per_text=logits, logits_per_image=logits.T), batch)


@pytest.mark.parametrize("weights", [None, [1] * 6, [1, 1, 0, 1, 1, 0]], ids=str)
def test_loss_and_gradient_are_those_of_the_rows_that_count(weights):
  logits = np.random.default_rng(0).normal(scale=5, size=(6, 6))
  real = np.flatnonzero([1] * 6 if weights is None else weights)
  theirs = torch.tensor(logits, requires_grad=True)
  part, own = theirs[real][:, real], torch.arange(len(real))
  expected = (cross_entropy(part, own) + cross_entropy(part.T, own)) / 2
  expected.backward()
  with jax.enable_x64(True):
    weights = weights and jnp.array(weights, float)
    loss, gradient = jax.value_and_grad(loss_of)(jnp.asarray(logits), weights)
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-9)
  np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-9)


def test_rows_that_count_for_nothing_may_be_all_there_are_and_hold_anything():
  logits = jnp.array(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
  loss, gradient = jax.value_and_grad(loss_of)(logits, jnp.zeros(4))
  assert loss == 0 and (gradient == 0).all()
  spoilt = logits.at[3].set(1e30).at[:, 3].set(1e30)
  weights = jnp.array([1.0, 1, 1, 0])
  assert loss_of(spoilt, weights) == loss_of(logits, weights) > 0


def config_for(partitioner, family):
  tiny = models.sized(family, "tiny", dtype="float64", param_dtype="float64", vocab_multiple=partitioner.vocab_multiple)
  small = dict(embed_dim=32, num_heads=8, mlp_dim=64, initializer_range=0.3)
  vision = dataclasses.replace(tiny.vision, **small)
  dropout = dataclasses.replace(tiny.dropout, attention=0.1)
  return dataclasses.replace(tiny, **small, vision=vision, dropout=dropout, vocab_size=101, projection_dim=24)


def a_batch():
  random = np.random.default_rng(0)
  lengths = random.integers(3, 9, (ROWS, 1))
  return {
    "input_ids": random.integers(1, 101, (ROWS, 8)).astype(np.int32),
    "attention_mask": (np.arange(8) < lengths).astype(np.int32),
    "pixel_values": random.normal(size=(ROWS, 32, 32, 3)),
    "weights": np.array([1] * (ROWS - 1) + [0], np.float32),
  }


def one_step(mesh, family, params=None, batch=None, microbatches=1):
  """Parameters, and loss and gradients of one step from them on a mesh."""
  one = Partitioner(make_mesh(devices=jax.devices()[:1]))
  partitioner = Partitioner(mesh) if mesh else one
  model = models.build(family, config_for(partitioner, family), "clip")
  update = Update(model, OBJECTIVES["clip"], optax.trace(0.0), microbatches=microbatches)
  boxed = abstract_state(update)
  partitioner.validate(boxed)
  shardings = partitioner.shardings(boxed)
  if params is None:
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda x: random.normal(scale=0.3, size=x.shape), nn.meta.unbox(boxed.params))
  # The vocabulary, which no mesh divides.
  padded = jax.tree.map(lambda x, like: np.resize(x, like.shape), params, nn.meta.unbox(boxed.params))
  placed = jax.tree.map(jax.device_put, padded, shardings.params)
  state = partitioner.jit(update.first_state, out_shardings=shardings, compiler_options=QUICK)(placed, 3)
  step = partitioner.jit(update, out_shardings=(shardings, None), compiler_options=QUICK)
  state, metrics = step(state, partitioner.shard_batch(batch or a_batch()))
  gradients = jax.tree.map(
    lambda x, like: np.asarray(x)[tuple(map(slice, like.shape))], optax.tree.get(state.optimizer, "trace"), params
  )
  return params, float(metrics["loss"]), models.flatten(gradients), placed


@pytest.fixture(scope="module")
def single():
  with jax.enable_x64(True):
    return one_step(None, "clip")


MESHES = [
  {"data": 8},
  {"data": 2, "fsdp": 2, "tensor": 2},
  # Rows of patches are split by no mesh.
  pytest.param({"sequence": 2, "tensor": 4}, marks=pytest.mark.slow),
  pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_tells_a_row_from_all_others_of_the_batch(mesh, single):
  params, loss, gradients, _ = single
  with jax.enable_x64(True):
    _, got_loss, got, placed = one_step(mesh, "clip", params)
  assert got_loss == pytest.approx(loss, abs=1e-9)
  for path, want in gradients.items():
    np.testing.assert_allclose(got[path], want, atol=1e-9, rtol=1e-9, err_msg=path)
  assert abs(gradients["logit_scale"]) > 1e-3 and np.abs(gradients["vision/patch_embed/kernel"]).max() > 1e-4
  kernel = placed["text"]["encoder"]["layers"]["mlp"]["wi"]["kernel"]
  assert kernel.addressable_shards[0].data.size * np.prod([mesh.get(x, 1) for x in ("fsdp", "tensor")]) == kernel.size


@pytest.mark.slow
def test_taiyi_on_a_mesh_equals_one_device():
  with jax.enable_x64(True):
    params, loss, gradients, _ = one_step(None, "taiyi_clip")
    _, got_loss, got, _ = one_step({"data": 2, "fsdp": 2, "tensor": 2}, "taiyi_clip", params)
  assert got_loss == pytest.approx(loss, abs=1e-9)
  for path, want in gradients.items():
    np.testing.assert_allclose(got[path], want, atol=1e-9, rtol=1e-9, err_msg=path)
  # The features' loss: what is projected is the first token, so that nothing trains the pooler.
  assert not gradients["text/pooler/kernel"].any() and gradients["text/token_embed/embedding"].any()


@pytest.mark.slow
def test_a_microbatch_is_told_from_itself_alone(single):
  params, loss, _, _ = single
  batch = {**a_batch(), "weights": np.ones(ROWS, np.float32)}
  with jax.enable_x64(True):
    config = config_for(Partitioner(make_mesh(devices=jax.devices()[:1])), "clip")
    config = dataclasses.replace(config, dropout=models.Dropout(hidden=0, attention=0))
    model = models.build("clip", config, "clip")
    inputs = [{n: batch[n][part::2] for n in models.input_names(model) if n in batch} for part in range(2)]
    parts = [OBJECTIVES["clip"](model.apply({"params": params}, **each), each) for each in inputs]
    update = Update(model, OBJECTIVES["clip"], optax.sgd(0.0), microbatches=2)
    _, metrics = jax.jit(update, compiler_options=QUICK)(update.first_state(params), batch)
  assert float(metrics["loss"]) == pytest.approx(np.mean(parts), abs=1e-9) and abs(metrics["loss"] - loss) > 0.01
