"""Counting a model's matrix products, and holding a step's rate against the chip's peak."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from fsb_jax import models
from fsb_jax.training import flops, measure


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_berts_products_are_those_of_its_formula(scan_layers, remat):
  config = models.sized("bert", "erlangshen_roberta_110m").with_run(scan_layers=scan_layers, remat=remat)
  model = models.build("bert", config, "masked_lm")
  batch, length, width, vocabulary = 4, 64, config.embed_dim, config.vocab_size
  ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  counted = flops.matmul_flops(
    lambda params, ids: model.apply({"params": params}, input_ids=ids), models.abstract_params(model), ids
  )
  tokens = batch * length
  layer = 2 * tokens * (4 * width**2 + 2 * width * config.mlp_dim) + 4 * tokens * length * width
  assert counted == config.num_layers * layer + 2 * tokens * width * (width + vocabulary)


def test_loops_convolutions_and_branches():
  x, kernel = jnp.ones((2, 8, 16, 16)), jnp.ones((32, 8, 3, 3))
  assert flops.matmul_flops(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), x, kernel) == 2 * 2 * 32 * 16**2 * 8 * 9
  square = jnp.ones((16, 16))
  looped = lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=5)[0]  # noqa: E731
  assert flops.matmul_flops(looped, square) == 5 * 2 * 16**3
  branched = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)  # noqa: E731
  assert flops.matmul_flops(branched, square) == 2 * 2 * 16**3
  differentiated = jax.grad(lambda a: jnp.sum(jnp.tanh(a @ square)))
  assert flops.matmul_flops(differentiated, square) == 2 * 2 * 16**3


def test_utilisation_is_the_rate_over_the_peak_of_all_devices(monkeypatch):
  monkeypatch.setattr(measure, "peak_per_second", lambda device: 1e9)
  metrics = {name: jnp.float32(1) for name in ("loss", "gradient_norm", "examples", "tokens")} | {"bad": jnp.float32(0)}
  now = 100.0
  monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: now))
  window = measure.Window({128: 10**8, 64: 4 * 10**7})
  for length in (128, 64, 128):
    now += 0.25
    window.add(metrics, length, waited=0.0625)
  now += 0.125  # until the device is done
  _, result = window.close()
  window.finish()
  assert result["flops_utilisation"] == pytest.approx(2.4e8 / 0.875 / (1e9 * jax.device_count()))
  assert result["data_wait_share"] == pytest.approx(3 * 0.0625 / 0.875)
  assert result["step_seconds"] == pytest.approx(0.875 / 3)


def test_this_machines_peak_is_not_made_up():
  assert flops.peak_per_second(jax.devices()[0]) is None
