"""Pooled texts and options against the formulas in PyTorch, float64 on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fsb_jax import models

TEXTS, LENGTH, WIDTH = 5, 7, 16
REAL = np.arange(LENGTH) < np.array([7, 4, 1, 6, 3])[:, None]


@pytest.fixture(scope="module")
def states():
  random = np.random.default_rng(0)
  return tuple(random.normal(size=(TEXTS, LENGTH, WIDTH)) for _ in range(4))


def output_of(states):
  return models.BaseOutput(last_hidden_state=jnp.asarray(states[-1]), hidden_states=tuple(map(jnp.asarray, states)))


def torch_pool(states, kind):
  tensors = [torch.from_numpy(x) for x in states]
  real = torch.from_numpy(REAL).double()[..., None]
  hidden = {"first": tensors[-1], "mean": tensors[-1], "first_last_mean": (tensors[1] + tensors[-1]) / 2}[kind]
  return hidden[:, 0] if kind == "first" else (hidden * real).sum(1) / real.sum(1)


@pytest.mark.parametrize("kind", ["first", "mean", "first_last_mean"])
def test_pooling_and_cosines_are_pytorchs(states, kind):
  with jax.enable_x64(True):
    ours = models.pool(output_of(states), jnp.asarray(REAL.astype(np.int64)), kind)
    cosines = models.cosine_similarity(ours[:2], ours[2:])
  theirs = torch_pool(states, kind)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
  expected = torch.nn.CosineSimilarity(dim=-1)(theirs[:2, None], theirs[None, 2:])
  np.testing.assert_allclose(cosines, expected, rtol=0, atol=1e-12)
  # The nearest texts are the same ones.
  np.testing.assert_array_equal(np.argsort(cosines, axis=1), torch.argsort(expected, dim=1))


@pytest.mark.parametrize("kind", ["first", "mean", "first_last_mean"])
def test_padding_is_no_part_of_a_text(states, kind):
  changed = [np.where(REAL[..., None], x, np.nan) for x in states]
  mask = REAL.astype(np.int32)
  one, other = (models.pool(output_of(x), mask, kind) for x in (states, changed))
  np.testing.assert_array_equal(one, other)


def test_without_a_mask_all_tokens_are_real(states):
  output = output_of(states)
  np.testing.assert_allclose(
    models.pool(output, None, "mean"), models.pool(output, np.ones((TEXTS, LENGTH)), "mean"), rtol=1e-6
  )


def test_a_text_without_tokens_is_nothing_and_no_error():
  output = models.BaseOutput(last_hidden_state=jnp.ones((1, 3, 4)))
  vector = models.pool(output, jnp.zeros((1, 3)), "mean")
  assert not np.asarray(vector).any()
  gradient = jax.grad(lambda x: models.cosine_similarity(x, jnp.ones((1, 4))).sum())(vector)
  assert np.isfinite(gradient).all() and float(models.cosine_similarity(vector, vector)[0, 0]) == 0


def test_mistakes_are_named(states):
  output = output_of(states)
  with pytest.raises(ValueError, match="unknown pooling 'max'; known: first, mean, first_last_mean"):
    models.pool(output, None, "max")
  with pytest.raises(ValueError, match="call the model with output_hidden_states=True"):
    models.pool(output.replace(hidden_states=None), None, "first_last_mean")


@pytest.mark.parametrize("dtype,expected", [("bfloat16", "float32"), ("float64", "float64")])
def test_pooled_in_at_least_float32(states, dtype, expected):
  with jax.enable_x64(True):
    output = models.BaseOutput(last_hidden_state=jnp.asarray(states[0], dtype))
    assert models.pool(output, None, "mean").dtype == models.pool(output, None).dtype == expected


def test_probabilities_of_options_are_a_softmax_over_all_positions_but_the_others():
  random = np.random.default_rng(1)
  logits = 3 * random.normal(size=(3, 9, 20))
  # Rows that pad a vocabulary are -inf.
  logits[..., 18:] = -np.inf
  mask = np.zeros((3, 9), bool)
  mask[0, [1, 4]], mask[1, [1, 2, 3, 5]] = True, True
  yes = np.array([4, 7, 2])
  with jax.enable_x64(True):
    ours = np.asarray(models.option_probabilities(jnp.asarray(logits), mask, yes))
  chosen = torch.from_numpy(np.stack([row[:, token] for row, token in zip(logits, yes)]))
  theirs = (chosen + torch.from_numpy(np.where(mask, 0.0, -10000.0))).softmax(-1).numpy()
  np.testing.assert_allclose(ours[:2], theirs[:2], rtol=0, atol=1e-12)
  np.testing.assert_allclose(ours[:2].sum(1), 1)
  # A row that only fills the batch up has no options, and is no error.
  assert not ours[2].any()
