"""The train and eval steps: what they count, what dropout depends on, and that microbatches are the whole batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_hub import SHAPE
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.training.levers import Levers
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.optimizers import adamw
from fsb_jax.training.step import Update, eval_step, global_norm

ROWS, LENGTH, CHOICES = 4, 6, 3
REAL = np.array([6, 3, 1, 5])


def jitted(function):
  return jax.jit(function, compiler_options=QUICK)


def made(head="sequence_classification", dropout=0.0, **run):
  hf = {**SHAPE, "num_hidden_layers": 1, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
  model = models.build("bert", models.family("bert").config_from_hf(hf).with_run(**run), head, 3)
  # Wide enough that a change of the inputs shows in the loss.
  random = np.random.default_rng(0)
  shapes = nn.meta.unbox(models.abstract_params(model))
  return model, jax.tree.map(lambda x: jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype), shapes)


def batch_of(head="sequence_classification", rows=ROWS, weights=None):
  random = np.random.default_rng(0)
  inner = (rows, CHOICES, LENGTH) if head == "multiple_choice" else (rows, LENGTH)
  real = np.resize(REAL, rows).reshape(-1, *(1,) * (len(inner) - 1))
  batch = {
    "input_ids": random.integers(1, 101, inner).astype(np.int32),
    "attention_mask": np.broadcast_to(np.arange(LENGTH) < real, inner).astype(np.int32),
    "labels": random.integers(0, 3, rows).astype(np.int32),
    "weights": np.ones(rows, np.float32) if weights is None else np.array(weights, np.float32),
    "example_ids": np.arange(rows),
  }
  if head == "masked_lm":
    batch["labels"] = np.where(random.random(inner) < 0.5, random.integers(0, 101, inner), -100).astype(np.int32)
  return batch


def one_step(model, params, batch, *, head="sequence_classification", optimizer=None, steps_done=0, **options):
  update = Update(model, OBJECTIVES[head], optimizer or optax.sgd(1.0), **options)
  return jitted(update)(update.first_state(params).replace(step=jnp.int32(steps_done)), batch)


def furthest(a, b):
  """The largest difference of any parameter."""
  pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
  return max(float(np.abs(x - y).max()) for x, y in pairs)


def test_a_step_of_plain_descent_is_the_gradient():
  model, params = made()
  batch = batch_of()
  state, metrics = one_step(model, params, batch)

  def loss(params):
    outputs = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"])
    picked = jnp.take_along_axis(jax.nn.log_softmax(outputs.logits), batch["labels"][:, None], axis=-1)
    return -picked.mean()

  expected, gradients = jitted(jax.value_and_grad(loss))(params)
  assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
  assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
  assert furthest(state.params, jax.tree.map(np.subtract, *jax.device_get((params, gradients)))) < 1e-5
  assert state.step == 1 and state.step.dtype == jnp.int32
  assert metrics["gradient_norm"] > 0.1


@pytest.mark.parametrize("head", ["sequence_classification", "multiple_choice", "masked_lm"])
def test_examples_and_tokens_count_real_rows_only(head):
  model, params = made(head)
  weights = [1, 1, 0, 1]
  _, metrics = one_step(model, params, batch_of(head, weights=weights), head=head)
  assert metrics["examples"] == 3
  per_row = CHOICES if head == "multiple_choice" else 1
  assert metrics["tokens"] == per_row * (REAL * np.array(weights)).sum()


def test_tokens_of_a_dense_mask_are_those_some_query_sees():
  model, params = made()
  batch = batch_of()
  dense = {**batch, "attention_mask": np.repeat(batch["attention_mask"][:, None], LENGTH, axis=1)}
  _, metrics = one_step(model, params, dense)
  assert metrics["tokens"] == REAL.sum()


@pytest.mark.parametrize("microbatches", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_microbatches_with_filling_rows_are_the_whole_batch(microbatches):
  model, params = made("masked_lm")
  # The filling rows leave the last microbatches with fewer rows, the last of four with none.
  batch = batch_of("masked_lm", rows=8, weights=[1, 1, 1, 0, 1, 1, 0, 0])
  whole, whole_metrics = one_step(model, params, batch, head="masked_lm")
  parts, metrics = one_step(model, params, batch, head="masked_lm", microbatches=microbatches)
  assert metrics["loss"] == pytest.approx(float(whole_metrics["loss"]), rel=1e-5)
  assert furthest(parts.params, whole.params) < 2e-5
  assert furthest(whole.params, params) > 1e-2


def test_filling_rows_do_not_train():
  model, params = made()
  batch = batch_of(weights=[1, 1, 0, 1])
  other = {**batch, "input_ids": batch["input_ids"].copy(), "labels": batch["labels"].copy()}
  other["input_ids"][2], other["labels"][2] = 7, (batch["labels"][2] + 1) % 3
  first, second = (one_step(model, params, b)[0].params for b in (batch, other))
  assert furthest(first, second) == 0
  third = one_step(model, params, {**other, "weights": np.ones(ROWS, np.float32)})[0].params
  assert furthest(first, third) > 1e-3


def test_dropout_depends_on_seed_and_step():
  model, params = made(dropout=0.5)
  batch = batch_of()
  losses = {}
  for seed in (0, 1):
    update = Update(model, OBJECTIVES["sequence_classification"], optax.sgd(1.0))
    step, state = jitted(update), update.first_state(params, seed)
    for steps_done in (0, 1, 0):
      _, metrics = step(state.replace(step=jnp.int32(steps_done)), batch)
      losses.setdefault((seed, steps_done), set()).add(float(metrics["loss"]))
  assert all(len(values) == 1 for values in losses.values())  # step 0 came twice
  assert len({value for values in losses.values() for value in values}) == 4
  still = one_step(*made(dropout=0.0), batch)[1]["loss"]
  assert float(still) not in {value for values in losses.values() for value in values}


def test_microbatches_drop_differently():
  # The same row in every place: with one key for all microbatches both halves would have one loss.
  model, params = made(dropout=0.5)
  batch = {name: np.repeat(x[:1], 2, axis=0) for name, x in batch_of().items()}
  _, both = one_step(model, params, batch, microbatches=2)

  def half(index):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), index)
    inputs = batch["input_ids"][:1], batch["attention_mask"][:1]
    outputs = model.apply({"params": params}, *inputs, deterministic=False, rngs={"dropout": key})
    return OBJECTIVES["sequence_classification"](outputs, {"labels": batch["labels"][:1]})

  halves = [float(jitted(half)(index)) for index in (0, 1)]
  assert abs(halves[0] - halves[1]) > 1e-2
  assert both["loss"] == pytest.approx(sum(halves) / 2, rel=1e-4)


def test_bfloat16_activations_train_float32_parameters():
  model, params = made(dtype="bfloat16")
  state, metrics = one_step(model, params, batch_of(), optimizer=adamw(learning_rate=1e-3))
  exact, exact_metrics = one_step(*made(), batch_of(), optimizer=adamw(learning_rate=1e-3))
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  assert metrics["loss"].dtype == jnp.float32
  assert metrics["loss"] == pytest.approx(float(exact_metrics["loss"]), rel=0.05)
  assert metrics["loss"] != exact_metrics["loss"]


def test_eval_step_returns_rows_and_sums():
  model, params = made(dropout=0.5)
  batch = batch_of(weights=[1, 1, 0, 1])
  step = jitted(eval_step(model, OBJECTIVES["sequence_classification"]))
  result = step(params, batch)
  for name in ("labels", "weights", "example_ids"):
    np.testing.assert_array_equal(result[name], batch[name])
  log_probabilities = jax.nn.log_softmax(result["logits"])
  losses = -np.take_along_axis(np.asarray(log_probabilities), batch["labels"][:, None], axis=-1)[:, 0]
  assert result["sums"]["classes"] == pytest.approx((losses * batch["weights"]).sum(), rel=1e-5)
  assert result["term_weights"]["classes"] == 3
  np.testing.assert_array_equal(step(params, batch)["logits"], result["logits"])  # nothing is dropped


def same_bits(a, b):
  pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
  return all(x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def test_a_batch_that_is_not_finite_changes_nothing():
  model, params = made()
  levers = Levers(ema_decay=0.9, skip_bad_batches=True)
  update = Update(model, OBJECTIVES["sequence_classification"], adamw(learning_rate=1e-2), levers=levers)
  step, good = jitted(update), batch_of()
  # An id beyond the table: its embedding is not a number.
  broken = {**good, "input_ids": good["input_ids"] + 1000 * (np.arange(ROWS) == 1)[:, None].astype(np.int32)}
  before, _ = step(update.first_state(params), good)
  after, metrics = step(before, broken)
  assert np.isnan(metrics["loss"]) and metrics["bad"] == 1
  assert after.step == 2 and same_bits(after.replace(step=before.step), before)
  # The run goes on as if that batch had not been: without dropout only the count of steps tells.
  end, metrics = step(after, good)
  straight, _ = step(before, good)
  assert metrics["bad"] == 0 and end.step == 3 and same_bits(end.params, straight.params)
  assert furthest(end.params, before.params) > 1e-3


class Points(nn.Module):
  """Scores of two classes: `scale * x + sqrt(root)` and 0. At a root of 0 its gradient is infinite."""

  @nn.compact
  def __call__(self, input_ids, attention_mask=None, deterministic=True):
    scale, root = self.param("kernel", nn.initializers.ones_init(), (2,))
    score = scale * input_ids + jnp.sqrt(root)
    return models.SequenceClassificationOutput(logits=jnp.concatenate([score, jnp.zeros_like(score)], axis=-1))


def points(xs, labels):
  xs = jnp.asarray(xs, jnp.float32)[:, None]
  ones = np.ones(len(xs), np.float32)
  return {"input_ids": xs, "attention_mask": jnp.ones(xs.shape, int), "labels": np.array(labels), "weights": ones}


def test_an_infinite_gradient_of_a_finite_loss_is_bad():
  levers = Levers(skip_bad_batches=True)
  update = Update(Points(), OBJECTIVES["sequence_classification"], optax.sgd(0.1), levers=levers)
  for root, bad in ((0.0, 1), (1.0, 0)):
    before = update.first_state({"kernel": jnp.array([1.0, root])})
    after, metrics = jitted(update)(before, points([1.0, -2.0], [0, 1]))
    assert np.isfinite(metrics["loss"]) and metrics["bad"] == bad
    assert same_bits(after.params, before.params) == bool(bad)
    assert after.good_steps == 1 - bad


@pytest.mark.parametrize("factor", [None, 3.0])
def test_an_explosion_is_a_loss_above_the_typical_one(factor):
  levers = Levers(explosion_factor=factor, skip_bad_batches=True)
  update = Update(Points(), OBJECTIVES["sequence_classification"], optax.sgd(0.01), levers=levers)
  step, state = jitted(update), update.first_state({"kernel": jnp.array([1.0, 1.0])})
  random, losses = np.random.default_rng(0), []
  wrong = points([9.0, 9.0], [1, 1])
  for number in range(130):
    _, metrics = step(state, wrong)
    assert metrics["loss"] > 3 * 2  # far above any of the good ones
    # Not before there are 20 good ones to compare with.
    assert metrics["bad"] == (factor is not None and number >= 20)
    xs = random.normal(size=4)
    state, metrics = step(state, points(xs, xs < 0))
    assert metrics["bad"] == 0 and metrics["loss"] < 2
    losses.append(float(metrics["loss"]))
    if number < 100:
      assert float(state.typical_loss) == pytest.approx(np.mean(losses), rel=1e-5)
  # From then on the last hundred weigh most.
  old, new = np.mean(losses[:100]), np.mean(losses)
  expected = old
  for loss in losses[100:]:
    expected += (loss - expected) / 100
  assert float(state.typical_loss) == pytest.approx(expected, rel=1e-5) and old != new
  after, metrics = step(state, wrong)
  assert same_bits(after.replace(step=state.step), state) == (factor is not None)
  # Above the recent mean but not by so much.
  _, metrics = step(state, points([-0.9, -0.9], [1, 1]))
  assert state.typical_loss < metrics["loss"] < 3 * state.typical_loss and metrics["bad"] == 0


def test_norms_are_global():
  model, params = made()
  state, metrics = one_step(model, params, batch_of(), optimizer=optax.sgd(0.5))
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(jax.device_get(state.params))]
  assert global_norm(state.params) == pytest.approx(np.sqrt(sum((x**2).sum() for x in leaves)), rel=1e-5)
  moved = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, *jax.device_get((params, state.params)))
  gradient = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(moved))) / 0.5
  assert metrics["gradient_norm"] == pytest.approx(gradient, rel=1e-4)
  assert {name: x.dtype for name, x in metrics.items()} == {
    "loss": "float32", "gradient_norm": "float32", "bad": "float32", "examples": "float32", "tokens": "int32",
  }


def test_norms_of_bfloat16_parameters_are_taken_in_float32():
  _, params = made(param_dtype="bfloat16", dtype="bfloat16")
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(jax.device_get(params))]
  norm = global_norm(params)
  assert jax.tree.leaves(params)[0].dtype == jnp.bfloat16 and norm.dtype == jnp.float32
  assert norm == pytest.approx(np.sqrt(sum((x**2).sum() for x in leaves)), rel=1e-5)


def test_the_compiled_function_has_a_name():
  model, params = made()
  update = Update(model, OBJECTIVES["sequence_classification"], optax.sgd(1.0))
  lowered = jax.jit(update).lower(jax.eval_shape(update.first_state, params), batch_of())
  assert "module @jit_update " in lowered.as_text()
