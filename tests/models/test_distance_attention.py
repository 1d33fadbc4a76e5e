"""Scores by content and distance against their formula, and what a cache lets a Transformer-XL remember."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.models.attention import Attention
from fsb_jax.models.cache import new_cache
from fsb_jax.models.distance_attention import DistanceAttention
from fsb_jax.models.masks import Mask
from fsb_jax.models.positions import LearnedPositions, Span
from fsb_jax.models.transformer import Context

TINY = dataclasses.replace(
  models.sized("transfo_xl", "tiny", dtype="float64", param_dtype="float64"),
  vocab_size=40, embed_dim=16, num_heads=4, mlp_dim=24, num_layers=3, memory=None,
)  # fmt: skip
ABSOLUTE = dataclasses.replace(TINY, positions=LearnedPositions(length=30), attention=Attention)
IDS = np.random.default_rng(1).integers(0, 40, (2, 11))


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def random_params(module, *arguments):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
  random = np.random.default_rng(0)
  flat = models.flatten(nn.meta.unbox(shapes))
  return models.unflatten({path: random.normal(size=x.shape) * 0.5 for path, x in flat.items()})


class OneLayer(nn.Module):
  @nn.compact
  def __call__(self, hidden):
    length = hidden.shape[1]
    shared = TINY.positions.shared(TINY, Span(queries=length, keys=length))
    context = Context(mask=Mask(causal=True), shared=shared, output_attentions=True)
    return DistanceAttention(TINY, name="attention")(hidden, context)[:2]


def test_attention_is_that_of_the_formula():
  hidden = np.random.default_rng(2).normal(size=(2, 6, 16))
  params = random_params(OneLayer(), hidden)
  result, probabilities = OneLayer().apply({"params": params}, hidden)
  biases, projections = params["attention_biases"], params["attention"]
  query, key, value = (
    np.einsum("ble,ehd->blhd", hidden, projections[name]["kernel"]) + projections[name]["bias"]
    for name in ("query", "key", "value")
  )
  expected = np.zeros((2, 4, 6, 6))
  for i in range(6):
    for j in range(i + 1):
      angles = (i - j) * 10000.0 ** (-np.arange(0, 16, 2) / 16)
      code = np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
      distance = np.einsum("e,ehd->hd", code, projections["distance"]["kernel"]) + projections["distance"]["bias"]
      score = (query[:, i] + biases["content_bias"]) * key[:, j] + (query[:, i] + biases["distance_bias"]) * distance
      expected[:, :, i, j] = np.exp(score.sum(-1) / 2)
  expected /= expected.sum(-1, keepdims=True)
  np.testing.assert_allclose(probabilities, expected, rtol=1e-9, atol=1e-12)
  out = projections["out"]
  expected = np.einsum("bhqk,bkhd,hde->bqe", expected, value, out["kernel"]) + out["bias"]
  np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


def whole_and_stepwise(config, chunks, mask=None):
  """Logits of all of `IDS` at once with `mask`, and of chunks of it with a cache."""
  model = models.build("transfo_xl", config, "causal_lm")
  params = {"params": random_params(model, IDS)}
  apply = jax.jit(model.apply, compiler_options=QUICK)
  cache, steps = new_cache(config, len(IDS), 13), []
  for ids in np.split(IDS, np.cumsum(chunks)[:-1], axis=1):
    output = apply(params, ids, cache=cache)
    cache = output.cache
    steps.append(output.logits)
  return apply(params, IDS, mask).logits, np.concatenate(steps, axis=1)


@pytest.mark.parametrize(
  "config,chunks",
  [
    (TINY, (9, 1, 1)),
    pytest.param(TINY, (4, 1, 1, 3, 1, 1), marks=pytest.mark.slow),
    pytest.param(TINY.with_run(scan_layers=False), (1, 10), marks=pytest.mark.slow),
    pytest.param(ABSOLUTE, (2, 8, 1), marks=pytest.mark.slow),
  ],
)
def test_with_a_cache_logits_are_the_same(config, chunks):
  # All of it is remembered.
  for memory in (None, 10):
    whole, stepwise = whole_and_stepwise(dataclasses.replace(config, memory=memory), chunks)
    np.testing.assert_allclose(stepwise, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [TINY, pytest.param(ABSOLUTE, marks=pytest.mark.slow)])
def test_a_cache_remembers_so_many_tokens_before_a_call(config):
  chunks = (4, 1, 1, 3, 1, 1)
  first = np.repeat(np.cumsum(chunks) - chunks, chunks)
  seen = np.arange(11) >= first[:, None] - 2
  mask = np.broadcast_to(seen, (2, 11, 11)).astype(np.int64)
  whole, stepwise = whole_and_stepwise(dataclasses.replace(config, memory=2), chunks, mask)
  np.testing.assert_allclose(stepwise, whole, rtol=1e-9, atol=1e-9)
  everything, _ = whole_and_stepwise(config, chunks)
  assert np.abs(everything - whole).max() > 0.1
