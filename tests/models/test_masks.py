"""Masks against a double loop over queries and keys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsb_jax.models import Mask
from fsb_jax.models.masks import mask_from_attention_mask

BATCH, HEADS, QUERIES, KEYS = 2, 3, 4, 6
RANDOM = np.random.default_rng(0)
VALUES = {
  "keys": RANDOM.random((BATCH, KEYS)) < 0.6,
  "segments": np.array([[1, 1, 2, 2, 2, 3], [1, 2, 2, 2, 2, 2]]),
  "dense": RANDOM.random((BATCH, QUERIES, KEYS)) < 0.6,
  "causal": True,
  "window": 1,
}
COMBINATIONS = [parts for count in range(1, len(VALUES) + 1) for parts in itertools.combinations(VALUES, count)]


def chosen(parts):
  # Segments are of one sequence with itself, so they meet square scores only.
  square = "segments" in parts
  values = {name: VALUES[name] for name in parts}
  if square and "dense" in parts:
    values["dense"] = np.random.default_rng(1).random((BATCH, KEYS, KEYS)) < 0.6
  return values, KEYS if square else QUERIES


def sees(values, row, query, key, queries):
  """Whether one query sees one key; the last query stands at the last key."""
  position = query + KEYS - queries
  return (
    ("keys" not in values or values["keys"][row, key])
    and ("segments" not in values or values["segments"][row, query] == values["segments"][row, key])
    and ("dense" not in values or values["dense"][row, query, key])
    and ("causal" not in values or key <= position)
    and ("window" not in values or abs(key - position) <= values["window"])
  )


def by_loop(values, queries):
  result = np.zeros((BATCH, queries, KEYS), bool)
  for row, query, key in np.ndindex(*result.shape):
    result[row, query, key] = sees(values, row, query, key, queries)
  return result


@pytest.mark.parametrize("parts", COMBINATIONS, ids="-".join)
def test_every_combination_of_parts_against_a_double_loop(parts):
  values, queries = chosen(parts)
  allowed = Mask(**values).allowed(queries, KEYS)
  expected = by_loop(values, queries)
  assert expected.any() and not expected.all()
  np.testing.assert_array_equal(np.broadcast_to(allowed[:, 0], expected.shape), expected)


def attend_by_loop(scores, allowed, fill):
  """Probabilities of masked softmax, one row at a time, in float64."""
  result = np.zeros(scores.shape)
  for row, head, query in np.ndindex(*scores.shape[:3]):
    s, a = scores[row, head, query].astype(np.float64), allowed[row, query]
    if fill == "minus_10000":
      s = s - 10000.0 * ~a
    elif a.any():
      s = np.where(a, s, -np.inf)
    else:
      s = np.zeros_like(s)  # nothing to see: every key alike
    e = np.exp(s - s.max())
    result[row, head, query] = e / e.sum()
    if fill == "zeroed":
      result[row, head, query] *= a
  return result


@pytest.mark.parametrize("fill", ["finfo_min", "minus_10000", "zeroed"])
def test_fill_rules_against_a_loop_over_rows(fill):
  scores = np.random.default_rng(2).normal(size=(BATCH, HEADS, QUERIES, KEYS)) * 3
  allowed = VALUES["dense"].copy()
  allowed[0, 1] = False  # a row with nothing to see
  mask = Mask(dense=allowed, fill=fill)
  with jax.enable_x64(True):
    probabilities = mask.apply_to_probabilities(jax.nn.softmax(mask.apply(jnp.asarray(scores)), axis=-1))
  np.testing.assert_allclose(probabilities, attend_by_loop(scores, allowed, fill), rtol=1e-9, atol=1e-12)
  blind = np.asarray(probabilities[0, :, 1])
  if fill == "finfo_min":
    np.testing.assert_allclose(blind, 1 / KEYS, rtol=1e-6)
  elif fill == "minus_10000":
    assert np.ptp(blind, axis=-1).min() > 0.1  # it still follows its scores
  else:
    assert not blind.any()


@pytest.mark.parametrize("fill", ["finfo_min", "minus_10000", "zeroed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_scores_stay_finite(fill, dtype):
  scores = jnp.full((1, 1, 2, 3), -1e4, dtype)
  mask = Mask(dense=np.array([[[0, 0, 0], [1, 0, 0]]]), fill=fill)
  assert mask.apply(scores).dtype == dtype
  assert jnp.isfinite(mask.apply(scores)).all() and jnp.isfinite(jax.nn.softmax(mask.apply(scores), axis=-1)).all()


def test_nothing_given_masks_nothing():
  scores = jnp.ones((1, 1, 2, 3))
  mask = Mask()
  assert mask.allowed(2, 3) is None and mask.bias(2, 3, jnp.float32) is None
  assert mask.apply(scores) is scores and mask.apply_to_probabilities(scores) is scores


def test_what_users_pass():
  two, three = np.ones((2, 5), int), np.ones((2, 5, 5), int)
  assert mask_from_attention_mask(None, "zeroed") == Mask(fill="zeroed")
  assert mask_from_attention_mask(two, "zeroed").keys is two
  assert mask_from_attention_mask(three, "minus_10000").dense is three
  assert mask_from_attention_mask(three, "minus_10000").fill == "minus_10000"
  with pytest.raises(ValueError, match=r"shape \(2, 1, 5, 5\).*\[batch, query, key\]"):
    mask_from_attention_mask(three[:, None], "zeroed")
