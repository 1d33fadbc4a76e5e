"""Blocks against the dense path, which tokens are global, and how memory grows."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_hub import torch_model

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models import sliding_window
from fsb_jax.models.attention import attend
from fsb_jax.models.masks import Mask
from fsb_jax.models.sliding_window import Window, attend_in_window, block_mask


@pytest.mark.parametrize("length,window,reach,everywhere", [
  (23, 4, None, None),
  (24, 4, 2, [[0, 3, 24], [1, 18, 24]]),
  (7, 3, None, [[6], [0]]),
  (2, 5, None, None),
])  # fmt: skip
def test_blocks_equal_the_dense_path(length, window, reach, everywhere):
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    query, key, value = (jnp.asarray(random.normal(size=(2, length, 3, 4))) for _ in range(3))
    real = jnp.arange(length) < np.array([[length], [max(1, length - 5)]])
    mask = Mask(
      keys=real, queries=real, window=window, fill="zeroed", reach=None if reach is None else jnp.array(reach),
      everywhere=None if everywhere is None else jnp.array(everywhere),
    )  # fmt: skip

    def total(path, query, key, value):
      result = path(query, key, value)
      # Global queries see more on the dense path.
      counted = jnp.ones((2, length), bool) if everywhere is None else ~mask.is_everywhere(length)
      return jnp.sum(jnp.sin(result) * jnp.arange(length)[:, None, None] * counted[..., None, None])

    blocks, dense = (
      jax.jit(jax.value_and_grad(lambda *arrays, path=path: total(path, *arrays), argnums=(0, 1, 2)))(query, key, value)
      for path in (
        lambda *arrays: attend_in_window(*arrays, mask, block_mask(mask, length), scale=0.7),
        lambda *arrays: attend(*arrays, mask, scale=0.7, implementation="reference"),
      )
    )
    for ours, reference in zip(jax.tree.leaves(blocks), jax.tree.leaves(dense)):
      np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-12)


def test_probabilities_are_those_of_the_blocks():
  config = models.sized("longformer", "tiny", attention="reference")
  config = dataclasses.replace(config, window=dataclasses.replace(config.window, reach=(2, 3)))
  model = models.build("longformer", config)
  ids = np.random.default_rng(0).integers(2, 100, (2, 30))
  inputs = dict(
    attention_mask=np.arange(30) < np.array([[30], [25]]), global_attention_mask=np.isin(np.arange(30), [0, 7])[None]
    .repeat(2, 0),
  )  # fmt: skip
  params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
  asked, plain = (
    jax.jit(lambda params, more=more: model.apply({"params": params}, ids, **inputs, **more))(params)
    for more in ({"output_attentions": True}, {})
  )
  np.testing.assert_allclose(asked.last_hidden_state, plain.last_hidden_state, atol=1e-5)
  for layer, probabilities in enumerate(np.asarray(x) for x in asked.attentions):
    sums = np.broadcast_to(inputs["attention_mask"][:, None], (2, 2, 30))
    np.testing.assert_allclose(probabilities.sum(-1), sums, atol=1e-5)
    assert (probabilities[0, 0, 15] > 0).nonzero()[0].tolist() == sorted({0, 7, *range(13 - layer, 18 + layer)})
    assert (probabilities[1, 0, 7] > 0).nonzero()[0].tolist() == list(range(25))


def test_heads_choose_their_global_tokens_as_in_transformers():
  random = np.random.default_rng(0)
  for head in ("question_answering", "multiple_choice", "sequence_classification"):
    theirs = torch_model("longformer", head)
    ids = random.integers(3, 101, (2, 3, 14) if head == "multiple_choice" else (2, 14))
    ids[..., 5] = ids[..., 6] = ids[..., 13] = theirs.config.sep_token_id
    config = models.family("longformer").config_from_hf(theirs.config.to_dict())
    model = models.build("longformer", config, head, theirs.config.num_labels)
    rule = model.head.global_tokens
    flat = ids.reshape(-1, 14)
    expected = {"question": list(range(5)), "answer": list(range(7, 14)), "first": [0]}[rule]
    positions = np.asarray(config.window.global_tokens(None, rule, jnp.asarray(flat)))
    assert [[p for p in row if p < 14] for row in positions.tolist()] == [expected] * len(flat)
    with torch.no_grad():
      given = np.isin(np.arange(14), expected)[None].repeat(len(flat), 0).reshape(ids.shape)
      own, told = (
        theirs(torch.from_numpy(ids), **extra)[0].numpy()
        for extra in ({}, {"global_attention_mask": torch.from_numpy(given.astype(np.int64))})
      )
    np.testing.assert_allclose(own, told, atol=1e-6)


def test_without_a_separator_no_token_is_global():
  window = Window(reach=(2,))
  for rule in ("question", "answer"):
    ids = jnp.full((1, 9), 7)
    assert window.global_tokens(None, rule, ids) is None
    assert (np.asarray(jax.jit(window.global_tokens, static_argnums=1)(None, rule, ids)) == 9).all()


def test_more_global_tokens_than_the_limit():
  window, ids = Window(reach=(2,), global_limit=3), jnp.ones((2, 9), jnp.int32)
  asked = jnp.array([[1] * 3 + [0] * 6, [1] * 4 + [0] * 5])
  with pytest.raises(UserError, match="a row has more than 3 global tokens; ask for fewer, or raise"):
    window.global_tokens(asked, "none", ids)
  config = dataclasses.replace(models.sized("longformer", "tiny"), window=Window(reach=(1, 1), global_limit=3))
  model = models.build("longformer", config)
  params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
  out = jax.jit(model.apply)({"params": params}, ids, global_attention_mask=asked).last_hidden_state
  assert not np.isnan(out[0]).any() and np.isnan(out[1]).all()


def test_global_tokens_take_as_many_slots_as_the_fullest_row():
  window, ids = Window(reach=(2,), global_limit=6), jnp.ones((2, 9), jnp.int32)
  asked = jnp.zeros((2, 9), jnp.int32).at[0, 4].set(1).at[1, jnp.array([1, 5, 7])].set(1)
  real = jnp.arange(9) < jnp.array([[9], [6]])
  choose = window.global_tokens
  np.testing.assert_array_equal(choose(asked, "none", ids), [[4, 9, 9, 9], [1, 5, 7, 9]])
  np.testing.assert_array_equal(choose(asked, "none", ids, real), [[4, 9], [1, 5]])
  np.testing.assert_array_equal(choose(None, "first", ids, real[:, ::-1]), [[0], [9]])
  assert choose(0 * asked, "none", ids) is None
  # A compiled function sees what it closes over, and not its arguments.
  assert jax.jit(lambda: choose(asked, "none", ids))().shape == (2, 4)
  np.testing.assert_array_equal(
    jax.jit(lambda asked: choose(asked, "none", ids, real))(asked), [[4, *[9] * 5], [1, 5, *[9] * 4]]
  )


@pytest.mark.parametrize("attention_bias", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_few_global_tokens_get_what_many_would(attention_bias, monkeypatch):
  """Both orders of the products, with dropout, to the last gradient."""
  with jax.enable_x64(True):
    config = dataclasses.replace(
      models.sized("longformer", "tiny", dtype="float64", param_dtype="float64"), window=Window(reach=(2, 3)),
      initializer_range=0.3, attention_bias=attention_bias, dropout=models.Dropout(hidden=0.0, attention=0.5),
    )  # fmt: skip
    model = models.build("longformer", config, "sequence_classification")
    ids = np.random.default_rng(0).integers(3, 99, (2, 20))
    real = np.arange(20) < np.array([[20], [13]])
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
    params = jax.tree.map(lambda x: x + 0.1, nn.meta.unbox(params))

    def loss(params):
      out = model.apply({"params": params}, ids, real, deterministic=False, rngs={"dropout": jax.random.key(1)})
      return jnp.sum(jnp.sin(out.logits))

    few = jax.jit(jax.value_and_grad(loss))(params)
    monkeypatch.setattr(sliding_window, "reads_unprojected", lambda slots, config: False)
    many = jax.jit(jax.value_and_grad(loss))(params)
  gradients = models.flatten(few[1])
  assert all(np.abs(x).max() > 1e-6 for path, x in gradients.items() if "global" in path and "key/bias" not in path)
  for got, want in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_masks_that_do_not_go_with_a_window():
  ids = jnp.ones((1, 4), jnp.int32)
  windowed, plain = (models.build(name, models.sized(name, "tiny")) for name in ("longformer", "bert"))
  with pytest.raises(UserError, match=r"a model with a window takes an attention_mask \[batch, length\]"):
    jax.eval_shape(windowed.init, jax.random.key(0), ids, attention_mask=jnp.ones((1, 4, 4)))
  with pytest.raises(UserError, match="the model has no window"):
    jax.eval_shape(plain.init, jax.random.key(0), ids, global_attention_mask=ids)


def test_memory_grows_with_the_length_and_not_with_its_square():
  config = models.sized("erlangshen_longformer", "tiny")
  config = dataclasses.replace(config, positions=dataclasses.replace(config.positions, length=16384))
  model = models.build("erlangshen_longformer", config, "sequence_classification")

  def memory(length):
    ids = jax.ShapeDtypeStruct((1, length), "int32")
    params = models.abstract_params(model)

    def loss(params, ids):
      return model.apply({"params": params}, ids, ids).logits.sum()

    return jax.jit(jax.grad(loss)).lower(params, ids).compile().memory_analysis().temp_size_in_bytes

  short, long = memory(4096), memory(16384)
  assert long < 4.2 * short
  # Dense scores alone would take four times as much.
  assert long < 16384**2 * config.num_heads * config.num_layers * 4 / 4
