"""Sines and cosines of rotary positions against transformers', in float32, for every way to scale them."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fsb_jax import models
from fsb_jax.models.positions import Span

SHAPE = dict(
  vocab_size=9, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8,
  max_position_embeddings=40,
)  # fmt: skip
FORMS = {
  "plain": None,
  "linear": dict(rope_type="linear", factor=2.5),
  "dynamic": dict(rope_type="dynamic", factor=2.0),
  "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=10),
  "yarn_set": dict(
    rope_type="yarn", factor=8.0, original_max_position_embeddings=5000, beta_fast=16.0, beta_slow=2.0,
    attention_factor=1.25, truncate=False,
  ),
  "llama3": dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
  ),
}  # fmt: skip
WITHIN = np.array([[0, 1, 2, 7, 39], [3, 3, 0, 11, 2]])
BEYOND = np.array([[0, 1, 2, 7, 55], [40, 39, 0, 60, 2]])


def tables(form, position_ids, **changes):
  """(sine, cosine) `[batch, length, head_dim]` of theirs and of ours."""
  rope = {"rope_theta": 5000.0, "rope_type": "default", **(FORMS[form] or {})}
  hf = LlamaConfig(**{**SHAPE, **changes}, rope_parameters=rope)
  cosine, sine = LlamaRotaryEmbedding(hf)(torch.zeros(1), torch.from_numpy(position_ids))
  config = models.family("llama").config_from_hf(hf.to_dict())
  span = Span(queries=position_ids.shape[1], keys=position_ids.shape[1], position_ids=position_ids)
  ours = (np.concatenate([x, x], -1)[:, :, 0] for x in config.positions.shared(config, span))
  return (sine.numpy(), cosine.numpy()), tuple(ours)


@pytest.mark.parametrize("position_ids", [WITHIN, BEYOND], ids=["within", "beyond"])
@pytest.mark.parametrize("form", FORMS)
def test_angles_are_those_of_transformers(form, position_ids):
  theirs, ours = tables(form, position_ids)
  for want, got in zip(theirs, ours):
    assert got.dtype == np.float32
    # An angle of up to 60 is a float32 itself.
    np.testing.assert_allclose(got, want, atol=6e-6, rtol=0)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("plain", "dynamic")])
def test_every_scaling_scales(form):
  (plain, _), (scaled, _) = (tables(name, WITHIN)[1] for name in ("plain", form))
  assert np.abs(plain - scaled).max() > 0.05


def test_dynamic_scaling_begins_beyond_the_original_length():
  within, beyond = (np.abs(tables("plain", ids)[1][0] - tables("dynamic", ids)[1][0]).max() for ids in (WITHIN, BEYOND))
  assert within < 1e-7 and beyond > 0.05


def test_heads_may_be_narrower_than_the_model():
  theirs, ours = tables("llama3", WITHIN, head_dim=6)
  np.testing.assert_allclose(ours[0], theirs[0], atol=6e-6, rtol=0)
  assert ours[0].shape == (2, 5, 6)
