import itertools

import numpy as np
import pytest
from convert_torch import ops
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.models import Run, TransformerConfig


def config_of(heads, head_dim, vocab=7, multiple=1):
  run = Run(vocab_multiple=multiple)
  return TransformerConfig(
    vocab_size=vocab, embed_dim=heads * head_dim, num_layers=1, num_heads=heads, mlp_dim=1, run=run
  )


# op -> (shape of theirs, shape of ours), from (heads, head_dim, other, vocabulary, padded vocabulary).
CASES = {
  "same": (ops.same, lambda h, d, o, v, p: ((o, d), (o, d))),
  "linear": (ops.linear, lambda h, d, o, v, p: ((o, d), (d, o))),
  "heads_out": (ops.heads_out, lambda h, d, o, v, p: ((h * d, o), (o, h, d))),
  "heads_bias": (ops.heads_bias, lambda h, d, o, v, p: ((h * d,), (h, d))),
  "heads_in": (ops.heads_in, lambda h, d, o, v, p: ((o, h * d), (h, d, o))),
  "pad_vocab": (ops.pad_vocab, lambda h, d, o, v, p: ((v, o), (p, o))),
  "pad_vocab of a bias": (ops.pad_vocab, lambda h, d, o, v, p: ((v,), (p,))),
  "pad_vocab then linear": (ops.then(ops.pad_vocab, ops.linear), lambda h, d, o, v, p: ((v, o), (o, p))),
}


@pytest.mark.parametrize("case", CASES)
@given(
  heads=st.integers(1, 4),
  head_dim=st.integers(1, 4),
  other=st.integers(1, 5),
  vocab=st.integers(1, 9),
  multiple=st.integers(1, 8),
  dtype=st.sampled_from(["float64", "float32", "float16"]),
  seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_save_undoes_load(case, heads, head_dim, other, vocab, multiple, dtype, seed):
  op, shapes = CASES[case]
  config = config_of(heads, head_dim, vocab, multiple)
  theirs, ours = shapes(heads, head_dim, other, vocab, config.vocab_rows)
  x = np.random.default_rng(seed).normal(size=theirs).astype(dtype)
  loaded = op.load(x, config)
  assert loaded.shape == ours and loaded.dtype == x.dtype
  back = op.save(loaded, config)
  assert back.dtype == x.dtype
  np.testing.assert_array_equal(back, x)


def test_padding_rows_are_zero():
  config = config_of(1, 2, vocab=5, multiple=4)
  padded = ops.pad_vocab.load(np.ones((5, 2)), config)
  assert padded.shape == (8, 2)
  assert (padded[:5] == 1).all() and (padded[5:] == 0).all()


def test_projections_compute_what_pytorch_computes():
  config, random = config_of(2, 3), np.random.default_rng(0)
  x, weight, bias = random.normal(size=(4, 5)), random.normal(size=(6, 5)), random.normal(size=6)
  expected = (x @ weight.T + bias).reshape(4, 2, 3)  # how PyTorch splits heads
  ours = np.einsum("be,ehd->bhd", x, ops.heads_out.load(weight, config)) + ops.heads_bias.load(bias, config)
  np.testing.assert_allclose(ours, expected, atol=1e-12)
  back = random.normal(size=(5, 6))
  ours = np.einsum("bhd,hde->be", expected, ops.heads_in.load(back, config))
  np.testing.assert_allclose(ours, expected.reshape(4, 6) @ back.T, atol=1e-12)


@given(heads=st.integers(1, 4), head_dim=st.integers(1, 4), parts=st.integers(1, 3), width=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_parts_that_take_turns_by_head_are_found_and_joined(heads, head_dim, parts, width):
  config = config_of(heads, head_dim)
  whole = np.arange(heads * parts * head_dim * width).reshape(-1, width)
  fused = [ops.fused_by_head(ops.heads_out, part, parts) for part in range(parts)]
  loaded = [op.load(whole, config) for op in fused]
  for part, (head, feature) in itertools.product(range(parts), np.ndindex(heads, head_dim)):
    row = (head * parts + part) * head_dim + feature
    np.testing.assert_array_equal(loaded[part][:, head, feature], whole[row])
  saved = [op.save(x, config) for op, x in zip(fused, loaded)]
  assert fused[0].whole(saved[0].shape) == whole.shape
  np.testing.assert_array_equal(fused[0].join(saved, config), whole)
