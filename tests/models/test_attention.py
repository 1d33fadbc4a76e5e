"""The attention entry: its paths agree, its dropout drops what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsb_jax.models import Mask
from fsb_jax.models.attention import attend

BATCH, LENGTH, HEADS, HEAD_DIM = 2, 8, 3, 4
SCALE = 0.5
RANDOM = np.random.default_rng(0)
QUERY, KEY, VALUE = (RANDOM.normal(size=(BATCH, LENGTH, HEADS, HEAD_DIM)).astype(np.float32) for _ in range(3))
DENSE = RANDOM.random((BATCH, LENGTH, LENGTH)) < 0.5
DENSE[:, 2] = False  # nothing to see
MASKS = {
  "none": Mask(),
  "keys": Mask(keys=np.arange(LENGTH) < np.array([[5], [8]])),
  "blind batch row": Mask(keys=np.arange(LENGTH) < np.array([[0], [3]])),
  "segments": Mask(segments=np.array([[1, 1, 1, 2, 2, 2, 2, 3], [1] * 8])),
  "dense": Mask(dense=DENSE),
  "causal": Mask(causal=True),
  "window": Mask(window=2),
  "all": Mask(keys=np.arange(LENGTH) < np.array([[5], [8]]), dense=DENSE, causal=True, window=3),
}


def both(implementation, mask, dtype="float32", **options):
  """Output and gradients for query, key and value."""
  weights = np.random.default_rng(1).normal(size=QUERY.shape)

  def loss(query, key, value):
    out = attend(query, key, value, mask, scale=SCALE, implementation=implementation, **options)
    return jnp.sum(out.astype(jnp.float32) * weights), out

  arrays = (jnp.asarray(x, dtype) for x in (QUERY, KEY, VALUE))
  (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
  return {"out": out, **dict(zip(("query", "key", "value"), gradients))}


@pytest.mark.parametrize("name", MASKS)
def test_the_fast_path_equals_the_reference(name):
  reference = both("reference", MASKS[name])
  for implementation in ("auto", "xla"):
    fast = both(implementation, MASKS[name])
    for part, expected in reference.items():
      np.testing.assert_allclose(fast[part], expected, rtol=1e-5, atol=2e-6, err_msg=f"{implementation} {part}")


def test_the_reference_against_a_loop():
  out = np.asarray(both("reference", MASKS["dense"])["out"])
  for row, query, head in np.ndindex(BATCH, LENGTH, HEADS):
    seen = DENSE[row, query] if DENSE[row, query].any() else np.ones(LENGTH, bool)
    weights = np.exp(KEY[row, seen, head].astype(np.float64) @ QUERY[row, query, head] * SCALE)
    expected = weights @ VALUE[row, seen, head] / weights.sum()
    if not DENSE[row, query].any():
      expected = VALUE[row, :, head].mean(axis=0)
    np.testing.assert_allclose(out[row, query, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", ["minus_10000", "zeroed"])
def test_auto_keeps_to_the_reference_where_the_fill_is_another(fill):
  mask = Mask(dense=DENSE, fill=fill)
  auto, reference = both("auto", mask), both("reference", mask)
  for part in reference:
    np.testing.assert_array_equal(auto[part], reference[part])
  assert np.abs(auto["out"] - both("auto", Mask(dense=DENSE))["out"]).max() > 0.1
  with pytest.raises(ValueError, match="only the finfo_min fill"):
    both("xla", mask)


def test_what_the_fast_path_lacks_is_refused_or_taken_by_the_reference():
  with pytest.raises(ValueError, match="no dropout"):
    both("xla", Mask(), dropout_rate=0.1, dropout_rng=jax.random.key(0))
  with jax.enable_x64(True):
    assert both("auto", Mask(), dtype="float64")["out"].dtype == "float64"
    with pytest.raises(ValueError, match="no float64"):
      both("xla", Mask(), dtype="float64")


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_bfloat16_stays_near_float32(implementation):
  low, high = both(implementation, MASKS["dense"], "bfloat16"), both("reference", MASKS["dense"])
  for part in high:
    assert low[part].dtype == jnp.bfloat16
    # bfloat16 has 8 bits: one rounding is up to 2**-9 of a number, and these are sums of some tens of products.
    error = np.abs(np.asarray(low[part], np.float32) - high[part])
    assert 1e-5 < error.max() < 0.03 * np.abs(high[part]).max(), part


def probabilities(rate, key):
  """Attention probabilities: with the identity as values the output is the probabilities themselves."""
  size = 64
  query, keys = (np.random.default_rng(s).normal(size=(4, size, 2, 8)).astype(np.float32) * 0.1 for s in (1, 2))
  values = np.broadcast_to(np.eye(size, dtype=np.float32)[None, :, None], (4, size, 2, size))
  options = dict(scale=1.0, implementation="reference", dropout_rate=rate, dropout_rng=key)
  return np.asarray(attend(query, keys, values, Mask(), **options))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate):
  whole, dropped = probabilities(rate, None), probabilities(rate, jax.random.key(0))
  gone = dropped == 0
  # Four standard deviations of the share of 32768 independent draws.
  assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / gone.size)
  np.testing.assert_allclose(dropped[~gone], whole[~gone] / (1 - rate), rtol=1e-5)
  assert (whole > 0).all()


def test_dropout_depends_on_the_key_alone():
  first, again, other = (probabilities(0.5, jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert ((first == 0) != (other == 0)).mean() > 0.4
  np.testing.assert_array_equal(probabilities(0.0, jax.random.key(0)), probabilities(0.0, None))
