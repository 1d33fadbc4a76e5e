"""DeBERTa's buckets against transformers' own, over every distance; scores by offset against a gather."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from fsb_jax.models.attention import by_offset
from fsb_jax.models.disentangled import DisentangledPositions


@pytest.mark.parametrize(
  "buckets,max_distance,length", [(256, 512, 700), (32, 128, 300), (8, 24, 40), (50, 600, 900), (None, 20, 50)]
)
def test_every_distance_is_in_transformers_bucket(buckets, max_distance, length):
  positions = DisentangledPositions(length=length, buckets=buckets, max_distance=max_distance)
  layer = torch.zeros(1, length, 1)
  theirs = build_relative_position(layer, layer, bucket_size=buckets or -1, max_position=max_distance)[0].numpy()
  span = buckets or max_distance
  expected = np.clip(theirs + span, 0, 2 * span - 1)
  queries, keys = np.indices((length, length))
  np.testing.assert_array_equal(positions.rows(length)[queries - keys + length - 1], expected)
  assert len(np.unique(expected)) > min(span, length) / 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (9, 9), (1, 5), (4, 11), (5, 2), (2, 1)])
def test_scores_by_offset_equal_a_gather(shape):
  x = np.random.default_rng(0).normal(size=(2, 3, shape[0], sum(shape) - 1)).astype(np.float32)
  queries, keys = np.indices(shape)
  expected = x[:, :, queries, keys - queries + shape[0] - 1]
  np.testing.assert_array_equal(by_offset(jnp.asarray(x)), expected)
