"""Low-rank factors against the formula, on kernels of every form."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models import lora


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


IDS = np.arange(16, dtype=np.int32).reshape(2, 8)


def tiny(family="bert", scan_layers=True):
  config = dataclasses.replace(
    models.sized(family, "tiny"), vocab_size=32, embed_dim=16, num_heads=4, mlp_dim=24, num_layers=2,
    initializer_range=0.3, run=models.Run(dtype="float64", param_dtype="float64", scan_layers=scan_layers),
  )  # fmt: skip
  return models.build(family, config)


def by_hand(kernel, down, up, scale, layers, outputs):
  """kernel + scale * down · up, flattened to matrices, layer by layer."""
  if layers:
    return np.stack([by_hand(*each, scale, 0, outputs) for each in zip(kernel, down, up)])
  rows = int(np.prod(kernel.shape[: kernel.ndim - outputs]))
  return kernel + scale * (down.reshape(rows, -1) @ up.reshape(up.shape[0], -1)).reshape(kernel.shape)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fresh_factors_fit_every_kernel_and_change_nothing(family, scan_layers):
  boxed = models.abstract_params(tiny(family, scan_layers))
  flat = models.flatten(boxed)
  random = np.random.default_rng(0)
  params = {path: random.normal(size=nn.meta.unbox(box).shape) for path, box in flat.items()}
  factors = models.flatten(lora.fresh_factors(jax.random.key(0), boxed, "kernel$", 3))
  same = models.flatten(lora.merged(models.unflatten(params), nn.meta.unbox(models.unflatten(factors)), 6.0))
  for path, kernel in params.items():
    np.testing.assert_array_equal(same[path], kernel)
  random_factors = {path: random.normal(size=nn.meta.unbox(box).shape) for path, box in factors.items()}
  changed = models.flatten(lora.merged(models.unflatten(params), models.unflatten(random_factors), 6.0))
  kernels = [path for path in params if path.endswith("/kernel")]
  assert {path.rpartition("/")[0] for path in factors} == {*kernels}
  for path in kernels:
    names, down, up = flat[path].names, factors[f"{path}/down"], factors[f"{path}/up"]
    layers, outputs = lora.kernel_axes(names)
    assert layers == ("/layers/" in path) and outputs == 1 + path.split("/")[-2].startswith(("query", "key", "value"))
    # Split like the kernel: the rank belongs to no axis of the mesh.
    assert (*down.names[:-1], *up.names[layers + 1 :]) == names and down.names[-1] is None and up.names[layers] is None
    # alpha / rank is 2.
    expected = by_hand(
      params[path], random_factors[f"{path}/down"], random_factors[f"{path}/up"], 2.0, layers, outputs
    )
    np.testing.assert_allclose(changed[path], expected, rtol=0, atol=1e-12)
  # What no pattern names is as it was.
  assert all(changed[path] is params[path] for path in params if path not in kernels)


def test_gradients_are_those_of_the_changed_kernels():
  model = tiny()
  adapted = lora.Adapted(model, rank=2, alpha=6.0, pattern="attention/(query|out)/kernel$")
  params = nn.meta.unbox(jax.jit(adapted.init)(jax.random.key(0), models.dummy_ids(adapted)))["params"]
  assert {*params} == {"model", "lora"}
  random = np.random.default_rng(0)
  params["lora"] = jax.tree.map(lambda x: x + random.normal(size=x.shape), params["lora"])
  changed = lora.with_changes(params, 6.0)

  def loss(module, params):
    return (module.apply({"params": params}, IDS).last_hidden_state ** 3).sum()

  value, gradients = jax.jit(jax.value_and_grad(lambda p: loss(adapted, p)))(params)
  expected, slopes = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(changed)
  assert abs(value - expected) < 1e-9 * abs(expected)
  slopes, ours, factors = (models.flatten(tree) for tree in (slopes, gradients["lora"], params["lora"]))
  assert len(ours) == 4
  for path in (name.removesuffix("/down") for name in ours if name.endswith("/down")):
    down, up = factors[f"{path}/down"], factors[f"{path}/up"]
    layers, rank = down.shape[0], down.shape[-1]
    slope = np.asarray(slopes[path]).reshape(layers, np.prod(down.shape[1:-1]), -1)
    along_up = 3.0 * np.einsum("lio,lro->lir", slope, np.reshape(up, (layers, rank, -1)))
    along_down = 3.0 * np.einsum("lio,lir->lro", slope, np.reshape(down, (layers, -1, rank)))
    for got, want in ((ours[f"{path}/down"], along_up), (ours[f"{path}/up"], along_down)):
      want = want.reshape(got.shape)
      assert np.abs(got - want).max() <= 1e-9 * max(1, np.abs(want).max())


def test_an_adapted_model_takes_what_the_model_takes():
  model = tiny()
  adapted = lora.Adapted(model, rank=2)
  assert models.input_names(adapted) == models.input_names(model)
  assert adapted.config is model.config
  boxed = models.flatten(models.abstract_params(adapted))
  query = "lora/encoder/layers/attention/query/kernel"
  assert boxed[f"{query}/down"].names == ("layers", "embed", None)
  assert boxed[f"{query}/up"].names == ("layers", None, "heads", "kv")
  plain = models.flatten(models.abstract_params(model))
  assert {path: box.names for path, box in plain.items()} == {
    path.removeprefix("model/"): box.names for path, box in boxed.items() if path.startswith("model/")
  }


def test_mistakes_are_told():
  boxed = models.abstract_params(tiny())
  with pytest.raises(UserError, match="LORA_PATTERN 'nothing' matches no kernel; there are .*kernel"):
    lora.fresh_factors(jax.random.key(0), boxed, "nothing", 2)
  with pytest.raises(UserError, match="LORA_PATTERN .* regular expression"):
    lora.adapted_paths(boxed, "(")
  with pytest.raises(UserError, match="LORA_RANK"):
    lora.fresh_factors(jax.random.key(0), boxed, lora.ATTENTION, 0)
  params = {"a": {"kernel": np.zeros((3, 4))}}
  good = {"down": np.zeros((3, 2)), "up": np.zeros((2, 4))}
  assert lora.merged(params, {"a": {"kernel": good}})["a"]["kernel"].shape == (3, 4)
  with pytest.raises(UserError, match="b/kernel, which the model does not have"):
    lora.merged(params, {"b": {"kernel": good}})
  with pytest.raises(UserError, match=r"do not fit a/kernel \(3, 4\)"):
    lora.merged(params, {"a": {"kernel": {**good, "up": np.zeros((2, 5))}}})
