"""Layers with a backward pass of their own: the gradients are autodiff's, and little is kept for them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsb_jax import models
from fsb_jax.models import layers
from fsb_jax.models.attention import softmax
from fsb_jax.partitioning import make_mesh

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def value_and_gradients(function, *arrays):
  """The value under fixed random weights and the gradient for every array."""

  def weighted(*arrays):
    out = function(*arrays)
    return jnp.sum(out * np.random.default_rng(1).normal(size=out.shape))

  return jax.value_and_grad(weighted, argnums=tuple(range(len(arrays))))(*arrays)


def require_equal(got, want):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), got, want)


def kept(function, *arrays):
  """Numbers that the backward pass keeps of the forward one, apart from the arguments."""
  residuals = jax.tree.leaves(jax.vjp(function, *arrays)[1])
  return sum(x.size for x in residuals if not any(np.array_equal(x, y) for y in arrays))


@pytest.mark.parametrize(
  "rows, inputs, features", [((5,), (4,), (3,)), ((2, 5), (4,), (3, 6)), ((2, 5), (3, 4), (6,)), ((), (4,), (3,))]
)
def test_a_projection_has_the_gradients_of_einsum(rows, inputs, features):
  x, kernel = RANDOM.normal(size=rows + inputs), RANDOM.normal(size=inputs + features)
  letters = "abc"[: len(rows)], "mn"[: len(inputs)], "xy"[: len(features)]
  formula = f"{letters[0]}{letters[1]},{letters[1]}{letters[2]}->{letters[0]}{letters[2]}"
  got = value_and_gradients(lambda x, kernel: layers.project(x, kernel, len(inputs)), x, kernel)
  require_equal(got, value_and_gradients(lambda x, kernel: jnp.einsum(formula, x, kernel), x, kernel))


def test_the_gradient_of_a_kernel_needs_no_copy():
  dense, x = layers.Dense((3, 6), ("embed", "heads", "kv")), jnp.ones((2, 8, 4), jnp.float32)
  params = nn.meta.unbox(dense.init(jax.random.key(0), x))

  def traced():
    return str(jax.make_jaxpr(jax.grad(lambda params: dense.apply(params, x).sum()))(params))

  alone = traced()
  assert "transpose" not in alone and "f32[16,4]" in alone
  # What a mesh splits is not flattened.
  with jax.set_mesh(make_mesh(sequence=8)):
    split = traced()
  assert "transpose" not in split and "f32[16,4]" not in split


def test_products_stay_visible_to_what_remat_keeps():
  module = models.sized("bert", "tiny")
  mlp, x = layers.Mlp(module), jnp.ones((2, 4, module.embed_dim), jnp.float32)
  params = nn.meta.unbox(mlp.init(jax.random.key(0), x, True))

  def products(policy):
    def loss(params, x):
      return jnp.sum(mlp.apply(params, x, True) ** 2)

    if policy is not None:
      loss = jax.checkpoint(loss, policy=getattr(jax.checkpoint_policies, policy))
    return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x)).count("dot_general")

  # Two forward, four backward; one who keeps nothing does both again.
  assert (products(None), products("dots_saveable"), products("nothing_saveable")) == (6, 6, 8)


@pytest.mark.parametrize("kind, theirs", [("layer", nn.LayerNorm), ("rms", nn.RMSNorm)])
def test_a_norm_equals_flax_in_value_and_gradients(kind, theirs):
  run = models.Run(dtype="float64", param_dtype="float64")
  ours = layers.NormSpec(kind=kind, epsilon=1e-3)("norm", run)
  theirs = theirs(epsilon=1e-3, use_fast_variance=False, dtype="float64", param_dtype="float64")
  x = RANDOM.normal(size=(2, 3, 8)) * 3 + 1
  params = jax.tree.map(lambda leaf: RANDOM.normal(size=leaf.shape), theirs.init(jax.random.key(0), x)["params"])
  assert jax.tree.structure(nn.meta.unbox(ours.init(jax.random.key(0), x)["params"])) == jax.tree.structure(params)

  def of(module):
    def apply(x, *leaves):
      return module.apply({"params": dict(zip(params, leaves))}, x)

    return value_and_gradients(apply, x, *params.values())

  require_equal(of(ours), of(theirs))


def test_a_norm_of_bfloat16_takes_its_statistics_in_float32():
  run = models.Run(dtype="bfloat16")
  # Of mean 300: squared in bfloat16 nothing of the variance would be left.
  x = jnp.asarray(RANDOM.integers(-4, 5, (4, 64)) * 2.0 + 300, jnp.bfloat16)
  norm = layers.NormSpec()("norm", run)
  out = norm.apply(norm.init(jax.random.key(0), x), x)
  wide = np.asarray(x, np.float64)
  want = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=2.0**-8 * np.abs(want).max())


def test_softmax_equals_jax_in_value_and_gradient():
  scores = RANDOM.normal(size=(2, 3, 5)) * 10
  scores[0, 0, 2:] = np.finfo(np.float64).min
  scores[1, 1] = np.finfo(np.float64).min
  require_equal(value_and_gradients(softmax, scores), value_and_gradients(jax.nn.softmax, scores))


@pytest.mark.parametrize(
  "function, numbers",
  [
    (layers.ACTIVATIONS["gelu"], 0),
    (layers.ACTIVATIONS["gelu_new"], 0),
    (softmax, 64 * 32),
    (lambda x: layers.normalise(x, jnp.ones(32), jnp.ones(32), 1e-6, True), 2 * 64 + 2 * 32),
  ],
  ids=["gelu", "gelu_new", "softmax", "norm"],
)
def test_the_backward_pass_keeps_little(function, numbers):
  x = jnp.asarray(RANDOM.normal(size=(64, 32)))
  assert kept(function, x) <= numbers


def test_dropout_inside_the_feed_forward_block():
  config = models.TransformerConfig(
    vocab_size=10, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=64, dropout=models.Dropout(mlp=0.5)
  )
  mlp, x = layers.Mlp(config), jnp.ones((1, 1, 8), jnp.float32)
  params = mlp.init(jax.random.key(0), x, True)
  # Through the identity, so that what was dropped can be seen: half of it, the rest doubled.
  kernel = {"kernel": jnp.eye(64, 8), "bias": jnp.zeros(8)}
  params = {"params": {**params["params"], "wo": kernel}}
  kept = mlp.apply(params, x, True)
  for seed in range(20):
    dropped = mlp.apply(params, x, False, rngs={"dropout": jax.random.key(seed)})
    share = np.asarray(dropped / kept)
    assert set(np.round(share.ravel(), 5)) <= {0.0, 2.0}
