"""Attention in blocks is the reference's, and makes no array of all scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hub import QUICK

from fsb_jax.models import Mask
from fsb_jax.models.attention import attend
from fsb_jax.partitioning import Partitioner, make_mesh


def draw(batch, queries, keys, heads, kv_heads, dtype="float64"):
  random = np.random.default_rng(0)
  shapes = (batch, queries, heads, 6), (batch, keys, kv_heads, 6), (batch, keys, kv_heads, 5)
  return [2 * random.normal(size=shape).astype(dtype) for shape in shapes]


def with_gradients(implementation, mask=None, **options):
  """A function of query, key and value: the result, and the gradients of its product with fixed numbers."""

  def product(query, key, value):
    result = attend(query, key, value, mask or Mask(), scale=0.7, implementation=implementation, **options)
    return (result * jnp.cos(jnp.arange(result.size).reshape(result.shape))).sum(), result

  return jax.value_and_grad(product, argnums=(0, 1, 2), has_aux=True)


@pytest.mark.parametrize(
  "sizes",
  [
    # Groups of two heads, three blocks of a head's queries, two rows too many.
    (1, 1100, 1030, 4, 2),
    # Two heads at a time, and one is left.
    (1, 600, 600, 5, 5),
    pytest.param((2, 4096, 77, 2, 2), marks=pytest.mark.slow),
  ],
)
def test_blocks_are_the_reference(sizes):
  with jax.enable_x64(True):
    arrays = draw(*sizes)
    results = [jax.jit(with_gradients(which), compiler_options=QUICK)(*arrays) for which in ("auto", "reference")]
    for ours, reference in zip(*map(jax.tree.leaves, results), strict=True):
      assert ours.shape == reference.shape
      assert np.abs(ours - reference).max() <= 1e-12 * max(1, np.abs(reference).max())


def test_on_a_mesh():
  with jax.enable_x64(True):
    arrays = draw(4, 1100, 1030, 2, 2)
    expected = jax.jit(with_gradients("reference"), compiler_options=QUICK)(*arrays)
    partitioner = Partitioner(make_mesh(data=2, fsdp=2, tensor=2))
    split = jax.sharding.NamedSharding(
      partitioner.mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor", None)
    )
    placed = [jax.device_put(x, split) for x in arrays]
    results = partitioner.jit(with_gradients("auto"), compiler_options=QUICK)(*placed)
    for ours, reference in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
      assert np.abs(ours - reference).max() <= 1e-11 * max(1, np.abs(reference).max())


@pytest.mark.parametrize(
  "options",
  [
    dict(mask=Mask(keys=np.arange(600)[None] < 500)),
    dict(mask=Mask(causal=True)),
    dict(bias=np.linspace(0, 3, 600, dtype=np.float32)[None, None, None]),
    dict(dropout_rate=0.5, dropout_rng=jax.random.key(0)),
  ],
)
def test_what_blocks_lack_is_left_to_the_reference(options):
  arrays = draw(1, 600, 600, 1, 1, "float32")
  options = {"mask": Mask(), **options}
  auto, reference = (attend(*arrays, scale=0.7, implementation=which, **options) for which in ("auto", "reference"))
  np.testing.assert_array_equal(auto, reference)
  assert np.abs(auto - attend(*arrays, Mask(), scale=0.7)).max() > 0.01


def test_sixteen_bits_stay_near_float32():
  arrays = draw(1, 600, 600, 1, 1, "float32")
  (_, high), high_gradients = jax.jit(with_gradients("reference"), compiler_options=QUICK)(*arrays)
  for dtype in ("bfloat16", "float16"):
    run = jax.jit(with_gradients("auto"), compiler_options=QUICK)
    (_, low), low_gradients = run(*(jnp.asarray(x, dtype) for x in arrays))
    for got, want in zip((low, *low_gradients), (high, *high_gradients), strict=True):
      assert got.dtype == dtype
      error = np.abs(np.asarray(got, np.float32) - want).max() / np.abs(want).max()
      assert 1e-5 < error < (0.05 if dtype == "bfloat16" else 0.01)


def test_long_values_do_not_overflow_sixteen_bits():
  query, key, value = (x.astype("float16") for x in draw(1, 600, 600, 1, 1, "float32"))
  result = attend(0 * query, key, 0 * value + 1000, Mask(), scale=1.0)
  np.testing.assert_array_equal(result, np.full_like(result, 1000))


def test_memory_is_linear_in_the_length():
  # All scores of one head are 64 MiB.
  arrays = [jax.ShapeDtypeStruct((1, 4096, 1, width), jnp.float32) for width in (6, 6, 5)]

  def temporaries(implementation):
    compiled = jax.jit(with_gradients(implementation), compiler_options=QUICK).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20

  assert temporaries("auto") < 20
  assert temporaries("reference") > 64
