"""The random field against an enumeration of all sequences of tags."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax import models

BATCH, COUNT = 3, 5
# (length, labels): of one tag, of one token, with fewer sequences than are asked for, and with many more.
SHAPES = [(1, 3), (3, 1), (2, 2), (5, 3)]
likelihood, decode = jax.jit(models.crf_log_likelihood), jax.jit(models.crf_decode)
decode_n_best = jax.jit(models.crf_decode_n_best, static_argnums=5)


def all_scores(emissions, transitions, start, end):
  """{tags: score} of one row without padding."""
  return {
    tags: start[tags[0]]
    + sum(emissions[i, tag] for i, tag in enumerate(tags))
    + sum(transitions[pair] for pair in itertools.pairwise(tags))
    + end[tags[-1]]
    for tags in itertools.product(range(emissions.shape[1]), repeat=len(emissions))
  }


def drawn(seed, scale, length, labels, dtype=np.float64):
  random = np.random.default_rng(seed)
  shapes = (BATCH, length, labels), (labels, labels), (labels,), (labels,)
  return [(scale * random.normal(size=shape)).astype(dtype) for shape in shapes], random


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.01, 1.0, 30.0]), data=st.data())
@pytest.mark.parametrize("length,labels", SHAPES)
def test_likelihood_and_the_best_sequences_are_those_of_an_enumeration(length, labels, seed, scale, data):
  (emissions, *transitions), random = drawn(seed, scale, length, labels)
  lengths = np.array(data.draw(st.lists(st.integers(1, length), min_size=BATCH, max_size=BATCH)))
  tags = random.integers(0, labels, (BATCH, length))
  mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
  # What stands at padding must not matter, numbers or none.
  emissions, given_tags = np.where(mask[..., None], emissions, 1e6), np.where(mask, tags, -100)
  with jax.enable_x64(True):
    likelihoods = np.asarray(likelihood(emissions, given_tags, mask, *transitions))
    best = np.asarray(decode(emissions, mask, *transitions))
    n_best, scores = (np.asarray(x) for x in decode_n_best(emissions, mask, *transitions, COUNT))
  assert likelihoods.dtype == scores.dtype == np.float64
  for row, real in enumerate(lengths):
    every = all_scores(emissions[row, :real], *transitions)
    ordered = sorted(every, key=every.get, reverse=True)[:COUNT]
    total = np.logaddexp.reduce(list(every.values()))
    np.testing.assert_allclose(likelihoods[row], every[tuple(tags[row, :real])] - total, rtol=1e-9, atol=1e-9 * scale)
    assert tuple(best[row, :real]) == ordered[0]
    assert [tuple(found[:real]) for found in n_best[row, : len(ordered)]] == ordered
    np.testing.assert_allclose(scores[row, : len(ordered)], [every[tags] for tags in ordered], rtol=1e-9)
    assert np.isneginf(scores[row, len(ordered) :]).all()
    assert not best[row, real:].any() and not n_best[row, : len(ordered), real:].any()


def test_probabilities_of_all_sequences_sum_to_one():
  (emissions, *transitions), _ = drawn(0, 2.0, 4, 3)
  sequences = np.array(list(itertools.product(range(3), repeat=4)))
  repeated = np.repeat(emissions[:1], len(sequences), axis=0)
  with jax.enable_x64(True):
    total = np.exp(likelihood(repeated, sequences, np.ones_like(sequences), *transitions)).sum()
  np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_half_precision_is_summed_in_float32():
  (emissions, *transitions), _ = drawn(0, 1.0, 5, 3, "bfloat16")
  tags, mask = np.zeros((BATCH, 5), np.int32), np.ones((BATCH, 5), np.int32)
  result = likelihood(emissions, tags, mask, *transitions)
  wide = likelihood(emissions.astype(np.float32), tags, mask, *(x.astype(np.float32) for x in transitions))
  assert result.dtype == np.float32
  np.testing.assert_array_equal(result, wide)


def test_a_row_of_padding_alone_is_finite():
  (emissions, *transitions), _ = drawn(0, 1.0, 5, 3)
  mask, tags = np.zeros((BATCH, 5), np.int32), np.full((BATCH, 5), -100)
  value, gradient = jax.value_and_grad(lambda x: likelihood(x, tags, mask, *transitions).sum())(emissions)
  assert np.isfinite(value) and np.isfinite(gradient).all()
