"""What run choices may and may not change: vocabulary padding, scan, precision, dropout, and mistakes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_reference import QUICK, make_batch, make_pair, run_ours

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_vocabulary_padding_changes_no_real_row(tied):
  with jax.enable_x64(True):
    plain, padded = (
      make_pair("bert", "masked_lm", run={"vocab_multiple": multiple}, tie_word_embeddings=tied) for multiple in (1, 64)
    )
    assert (plain.config.vocab_rows, padded.config.vocab_rows) == (101, 128)
    batch = make_batch(plain)
    # What lies in the padding rows must not matter.
    params = models.flatten(padded.params)
    rows = {
      path: next(axis for axis, size in enumerate(x.shape) if size == 128)
      for path, x in params.items()
      if 128 in x.shape
    }
    assert len(rows) == (2 if tied else 3)
    for path, axis in rows.items():
      np.moveaxis(params[path], axis, 0)[101:] = 5.0
    ours, reference = run_ours(padded, batch, models.unflatten(params)), run_ours(plain, batch)
  np.testing.assert_allclose(ours["logits"][..., :101], reference["logits"], rtol=1e-12, atol=1e-12)
  assert (ours["logits"][..., 101:] == -np.inf).all()
  assert ours["loss"] == pytest.approx(float(reference["loss"]), rel=1e-12)
  gradients, expected = models.flatten(ours["gradients"]), models.flatten(reference["gradients"])
  for path, gradient in gradients.items():
    if path in rows:
      gradient = np.moveaxis(gradient, rows[path], 0)
      assert not gradient[101:].any(), path
      gradient = np.moveaxis(gradient[:101], 0, rows[path])
    np.testing.assert_allclose(gradient, expected[path], rtol=1e-9, atol=1e-12, err_msg=path)


def test_bfloat16_runs_and_stays_near_float32():
  high = make_pair("bert", "masked_lm", dtype="float32")
  low = dataclasses.replace(high, model=models.build("bert", high.config.with_run(dtype="bfloat16"), "masked_lm"))
  batch = make_batch(high)
  ours, reference = run_ours(low, batch), run_ours(high, batch)
  assert ours["logits"].dtype == jnp.bfloat16 and ours["loss"].dtype == np.float32
  assert {x.dtype for x in jax.tree.leaves(ours["gradients"])} == {np.dtype("float32")}
  correlation = np.corrcoef(ours["logits"].astype(np.float32).ravel(), reference["logits"].ravel())[0, 1]
  assert 0.999 < correlation < 1
  assert ours["loss"] == pytest.approx(float(reference["loss"]), rel=0.02)


@pytest.fixture(scope="module")
def dropping():
  """`apply(params, batch, rngs)` of a scanned model with dropout, its parameters and a batch."""
  pair = make_pair("bert", "base", dtype="float32", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
  batch = make_batch(pair)

  def apply(seed, deterministic):
    rngs = {"dropout": jax.random.key(seed)}
    outputs = pair.model.apply({"params": pair.params}, **batch, deterministic=deterministic, rngs=rngs)
    return outputs.last_hidden_state

  return jax.jit(apply, static_argnums=1, compiler_options=QUICK), pair, batch


def test_deterministic_ignores_the_key_and_needs_none(dropping):
  apply, pair, batch = dropping
  np.testing.assert_array_equal(apply(0, True), apply(1, True))
  no_rates = models.build("bert", dataclasses.replace(pair.config, dropout=Dropout(hidden=0, attention=0)))
  for deterministic in (True, False):
    outputs = no_rates.apply({"params": pair.params}, **batch, deterministic=deterministic)
    np.testing.assert_allclose(outputs.last_hidden_state, apply(0, True), atol=1e-4)


def test_dropout_follows_its_key(dropping):
  apply, *_ = dropping
  np.testing.assert_array_equal(apply(0, False), apply(0, False))
  assert np.abs(apply(0, False) - apply(1, False)).max() > 0.1
  assert np.abs(apply(0, False) - apply(0, True)).max() > 0.1


@pytest.mark.parametrize("scan", [True, False])
def test_layers_drop_differently(scan):
  # Blocks that add nothing but the bias of their feed-forward: what a layer adds then shows its dropout alone.
  config = models.TransformerConfig(
    vocab_size=8, embed_dim=64, num_layers=3, num_heads=4, mlp_dim=8, norm_placement="pre", embedding_norm=False,
    dropout=Dropout(hidden=0.5, attention=0.0), run=models.Run(scan_layers=scan),
  )
  model = models.build("bert", config)
  flat = models.flatten(jax.tree.map(lambda x: jnp.zeros(x.shape), nn.meta.unbox(models.abstract_params(model))))
  flat = {path: jnp.ones_like(x) if path.endswith("mlp/wo/bias") else x for path, x in flat.items()}
  outputs = model.apply(
    {"params": models.unflatten(flat)},
    jnp.zeros((2, 16), int),
    deterministic=False,
    output_hidden_states=True,
    rngs={"dropout": jax.random.key(0)},
  )
  added = np.diff(np.stack(outputs.hidden_states), axis=0)
  assert set(np.unique(added)) == {0.0, 2.0}
  dropped = added == 0
  assert abs(dropped.mean() - 0.5) < 4 * 0.5 / np.sqrt(dropped.size)
  for first, second in ((0, 1), (0, 2), (1, 2)):
    assert 0.3 < (dropped[first] != dropped[second]).mean() < 0.7


def test_hidden_states_only_on_request():
  pair = make_pair("bert", "base", dtype="float32")
  outputs = pair.model.apply({"params": pair.params}, **make_batch(pair))
  assert outputs.hidden_states is None and outputs.pooler_output is not None


def test_multiple_choice_says_what_it_takes():
  pair = make_pair("bert", "multiple_choice", dtype="float32")
  with pytest.raises(ValueError, match=r"\[batch, choices, length\], got shape \(2, 5\)"):
    pair.model.apply({"params": pair.params}, jnp.zeros((2, 5), int))


@pytest.mark.parametrize("choice", ["dtype", "param_dtype", "remat", "attention"])
def test_an_unknown_choice_is_answered_with_the_known_ones(choice):
  with pytest.raises(UserError, match=f"unknown {choice} 'half'; known: "):
    models.Run(**{choice: "half"})


def test_every_remat_policy_is_one():
  for name in models.config.REMAT_POLICIES:
    assert callable(getattr(jax.checkpoint_policies, name))


def test_rows_longer_than_the_position_table_are_refused():
  pair = make_pair("bert", "base", dtype="float32")
  length = pair.config.positions.usable_length + 1
  with pytest.raises(ValueError, match=f"{length} tokens, but the model has positions for {length - 1}"):
    pair.model.apply({"params": pair.params}, jnp.zeros((1, length), int))


def test_roberta_counts_positions_of_real_tokens_only():
  positions = models.LearnedPositions(length=12, skip_padding=1)
  ids = jnp.array([[5, 6, 1, 1], [1, 7, 1, 8], [1, 1, 1, 1]])
  np.testing.assert_array_equal(positions.ids(ids), [[2, 3, 1, 1], [1, 2, 1, 3], [1, 1, 1, 1]])
  assert positions.usable_length == 10 and models.LearnedPositions(length=12).usable_length == 12
  np.testing.assert_array_equal(models.LearnedPositions(length=12).ids(ids), [[0, 1, 2, 3]] * 3)


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match="embed_dim 30 is not a multiple of num_heads 4"):
    models.TransformerConfig(vocab_size=8, embed_dim=30, num_layers=1, num_heads=4, mlp_dim=8)
