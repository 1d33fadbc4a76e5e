"""Every lever beside the loop that people write for it in PyTorch: same weights, batches, losses, parameters."""

import re

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.interpreters import partial_eval
from torch_reference import QUICK, make_batch, make_pair

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training.levers import Levers, rate_factors
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.optimizers import adamw
from fsb_jax.training.step import Update, abstract_state

STEPS, LEARNING_RATE, WEIGHT_DECAY = 4, 3e-3, 0.1
LAYOUTS = pytest.mark.parametrize(
  "scan", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["scanned", "unrolled"]
)
# Whole parameters, some of a stack and others not, a layer of it, and half a learning rate.
RATES = {r"^token_type_embed|embedding_norm": 0.0, r"layers_\d/mlp/wi/": 0, r"layers_0/": 0.0, r"layers_1/": 0.5}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def pair_of(head, scan):
  return make_pair(
    "bert", head, run={"scan_layers": scan}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
  )


def batches(pair):
  keep = np.array([0, 1, 2, 3, 5])  # not the row without a token
  return [{name: x[keep] for name, x in make_batch(pair, seed=seed).items()} for seed in range(STEPS)]


def our_run(pair, params, levers, clip):
  """Losses, gradient norms, and the state after every step, arrays by path."""
  optimizer = adamw(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_gradient_norm=clip)
  update = Update(pair.model, OBJECTIVES[pair.head], optimizer, levers=levers)
  step = jax.jit(update, compiler_options=QUICK)
  state = update.first_state(jax.tree.map(jnp.asarray, params))
  metrics, states = [], []
  for batch in batches(pair):
    state, one = step(state, {**batch, "weights": np.ones(len(batch["input_ids"]), np.float32)})
    metrics.append(jax.device_get(one))
    states.append(jax.device_get(state))
  return metrics, states


def our_name(slot):
  return slot.path.replace("/layers/", f"/layers_{slot.index}/")


def torch_run(pair, gradients, clip, rates=None):
  """The usual loop around `gradients(model, batch)`, which leaves `.grad` behind and returns the loss.

  Returns:
    Losses, gradient norms before clipping, and our trees of the parameters before the run and after every step.
  """
  model = pair.theirs.train()
  groups = {}
  named = dict(model.named_parameters(remove_duplicate=False))
  for slot in pair.slots:
    rate = next((rate for pattern, rate in (rates or {}).items() if re.search(pattern, our_name(slot))), 1.0)
    if rate == 0:
      named[slot.theirs].requires_grad_(False)
    else:
      decay = WEIGHT_DECAY if slot.path.endswith(("/kernel", "/embedding")) else 0.0
      groups.setdefault((rate, decay), []).append(named[slot.theirs])
  optimizer = torch.optim.AdamW(
    [{"params": p, "lr": rate * LEARNING_RATE, "weight_decay": decay} for (rate, decay), p in groups.items()]
  )
  losses, norms, trees = [], [], [pair.params]
  for batch in batches(pair):
    optimizer.zero_grad()
    losses.append(gradients(model, {name: torch.from_numpy(x) for name, x in batch.items()}))
    found = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((g**2).sum() for g in found))
    for gradient in found:
      # By hand: torch.nn.utils.clip_grad_norm_ scales by clip / (norm + 1e-6), which is not the definition.
      gradient.mul_(min(1.0, clip / norm.item()))
    optimizer.step()
    norms.append(norm.item())
    trees.append(pair.params)
  assert min(norms) < clip < max(norms), norms
  return losses, norms, trees


def plain(model, batch):
  loss = model(**batch).loss
  loss.backward()
  return loss.item()


def assert_same_run(ours, theirs):
  metrics, states = ours
  losses, norms, trees = theirs
  np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=0, atol=1e-9)
  np.testing.assert_allclose([m["gradient_norm"] for m in metrics], norms, rtol=1e-9)
  assert_same_tree(states[-1].params, trees[-1])


def assert_same_tree(ours, theirs, atol=1e-9):
  ours, theirs = models.flatten(ours), models.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for path, expected in theirs.items():
    np.testing.assert_allclose(ours[path], expected, rtol=0, atol=atol, err_msg=path)


@LAYOUTS
def test_label_smoothing_and_average(scan):
  share, decay = 0.2, 0.3

  def smoothed(model, batch):
    logits = model(**{name: x for name, x in batch.items() if name != "labels"}).logits
    loss = torch.nn.CrossEntropyLoss(label_smoothing=share)(logits.flatten(0, 1), batch["labels"].flatten())
    loss.backward()
    return loss.item()

  pair = pair_of("masked_lm", scan)
  losses, norms, trees = torch_run(pair, smoothed, 7.0)
  metrics, states = our_run(pair, trees[0], Levers(label_smoothing=share, ema_decay=decay), 7.0)
  assert_same_run((metrics, states), (losses, norms, trees))
  shadow = models.flatten(trees[0])
  for updates, (tree, state) in enumerate(zip(trees[1:], states, strict=True)):
    d = min(decay, (1 + updates) / (10 + updates))
    shadow = {path: d * mean + (1 - d) * models.flatten(tree)[path] for path, mean in shadow.items()}
    assert_same_tree(state.average, models.unflatten(shadow))
    assert state.model_params is state.average
  # It lags: the comparison above could tell it from the parameters.
  bias = "head/masked_lm/bias"
  assert np.abs(models.flatten(states[-1].average)[bias] - models.flatten(states[-1].params)[bias]).max() > 1e-4


class FGM:
  """The class that goes from notebook to notebook."""

  def __init__(self, model, epsilon, name):
    self.model, self.epsilon, self.name, self.backup = model, epsilon, name, {}

  def attack(self):
    for name, parameter in self.model.named_parameters():
      if parameter.requires_grad and self.name in name:
        self.backup[name] = parameter.data.clone()
        norm = torch.norm(parameter.grad)
        if norm != 0 and not torch.isnan(norm):
          parameter.data.add_(self.epsilon * parameter.grad / norm)

  def restore(self):
    for name, parameter in self.model.named_parameters():
      if name in self.backup:
        parameter.data = self.backup[name]
    self.backup = {}


@pytest.mark.parametrize(
  "ours,theirs,scan",
  [
    (None, "word_embeddings", True),
    pytest.param(None, "word_embeddings", False, marks=pytest.mark.slow),
    pytest.param("_embed/", "_embeddings", True, marks=pytest.mark.slow),
  ],
)
def test_fast_gradient_method(ours, theirs, scan):
  def adversarial(model, batch):
    fgm = FGM(model, 1.5, theirs)
    loss = model(**batch).loss
    loss.backward()
    fgm.attack()
    moved = model(**batch).loss
    moved.backward()
    fgm.restore()
    assert moved > loss + 0.05
    return loss.item()

  pair = pair_of("masked_lm", scan)
  expected = torch_run(pair, adversarial, 13.0)
  levers = Levers(fgm=1.5, **({} if ours is None else {"fgm_parameters": ours}))
  assert_same_run(our_run(pair, expected[-1][0], levers, 13.0), expected)


@LAYOUTS
def test_parameter_rates_and_freezing(scan):
  pair = pair_of("masked_lm", scan)
  theirs = torch_run(pair, plain, 5.0, RATES)
  start = theirs[-1][0]
  metrics, states = our_run(pair, start, Levers(parameter_rates=RATES, ema_decay=0.3), 5.0)
  assert_same_run((metrics, states), theirs)
  # What is frozen is so to the last bit, in the average too, and the rest is not.
  before, after, average = (models.flatten(tree) for tree in (start, states[-1].params, states[-1].average))
  still, moved = set(), set()
  for path, x in before.items():
    for i in range(3) if "/layers/" in path else [...]:
      unchanged = np.array_equal(x[i], after[path][i])
      assert unchanged == np.array_equal(x[i], average[path][i])
      (still if unchanged else moved).add(path.replace("/layers/", f"/layers_{i}/"))
  frozen = {name for name in still | moved if any(rate == 0 for p, rate in RATES.items() if re.search(p, name))}
  assert still == frozen
  assert "encoder/layers_2/mlp/wi/bias" in still and "encoder/layers_1/attention/query/kernel" in moved
  moments = models.flatten(optax.tree.get(states[-1].optimizer, "mu"))
  assert "embedding_norm/scale" in after and "embedding_norm/scale" not in moments
  assert not [path for path in moments if "/wi/" in path] and len(moments) < len(after)
  if scan:
    moment = moments["encoder/layers/attention/query/kernel"]
    assert not moment[0].any() and moment[1].any()


def test_the_average_approaches_its_decay():
  params = {"head": {"kernel": jnp.zeros(1)}}
  update = Update(Line(), OBJECTIVES["sequence_classification"], optax.sgd(0.0), levers=Levers(ema_decay=0.9))
  state = update.first_state(params).replace(params={"head": {"kernel": jnp.ones(1)}})
  # After no update d is 1/10, after 80 it is 81/90 = 0.9, and there it stays.
  for done, d in ((0, 0.1), (8, 0.5), (80, 0.9), (1000, 0.9)):
    after, _ = jax.jit(update)(state.replace(step=jnp.int32(done)), line_batch([1.0], [0]))
    np.testing.assert_allclose(after.average["head"]["kernel"], 1 - d, rtol=1e-12)


@pytest.mark.parametrize("dtype,expected", [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_the_average_is_a_copy_in_at_least_float32(dtype, expected):
  update = Update(Line(), OBJECTIVES["sequence_classification"], optax.sgd(1e-3), levers=Levers(ema_decay=0.999))
  state = update.first_state({"head": {"kernel": jnp.ones(1, dtype)}})
  assert state.average["head"]["kernel"] == 1
  for _ in range(2):
    # Donated, as in training: the two may not share memory.
    state, _ = jax.jit(update, donate_argnums=0)(state, line_batch([1.0, 2.0], [0, 1]))
    assert state.average["head"]["kernel"].dtype == expected and state.params["head"]["kernel"].dtype == dtype


class Line(nn.Module):
  """Scores of two classes: `kernel * x` and 0, with noise from the dropout key where one is given."""

  @nn.compact
  def __call__(self, input_ids, attention_mask=None, deterministic=True):
    kernel = Kernel(name="head")()
    noise = 0.0 if deterministic else jax.random.normal(self.make_rng("dropout"), input_ids.shape)
    score = kernel * (input_ids + noise)
    return models.SequenceClassificationOutput(logits=jnp.concatenate([score, jnp.zeros_like(score)], axis=-1))


class Kernel(nn.Module):
  """The one parameter."""

  @nn.compact
  def __call__(self):
    return self.param("kernel", nn.initializers.ones_init(), (1,))


def line_batch(xs, labels, weights=None):
  xs = jnp.asarray(xs, float)[:, None]
  weights = np.ones(len(xs), np.float32) if weights is None else np.array(weights, np.float32)
  return {
    "input_ids": xs, "attention_mask": jnp.ones(xs.shape, jnp.int32), "labels": np.array(labels), "weights": weights
  }


@pytest.mark.parametrize("microbatches", [1, 2])
def test_r_drop(microbatches):
  """Against the loop's formula over all rows, from the scores that each microbatch's two passes have."""
  alpha, smoothing, kernel = 0.7, 0.1, np.array([0.8])
  batch = line_batch([0.5, -1.0, 2.0, 1.5, -0.3, 9.0], [0, 1, 1, 0, -100, 1], [1, 1, 1, 1, 1, 0])
  batch["input_ids"] = batch["input_ids"].astype(jnp.float64)
  levers = Levers(r_drop=alpha, label_smoothing=smoothing)
  update = Update(
    Line(), OBJECTIVES["sequence_classification"], optax.sgd(1.0), microbatches=microbatches, levers=levers
  )
  params = {"head": {"kernel": jnp.asarray(kernel)}}
  state, metrics = jax.jit(update)(update.first_state(params, seed=5), batch)
  inputs = np.zeros((2, 6, 1))  # of both passes, noise added
  for index in range(microbatches):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), index)
    for number, one in enumerate(jax.random.split(key)):
      xs = batch["input_ids"][index::microbatches]
      logits = Line().apply({"params": params}, xs, deterministic=False, rngs={"dropout": one}).logits
      inputs[number, index::microbatches] = logits[:, :1] / kernel
  after = float(state.params["head"]["kernel"][0])
  weight = torch.tensor(kernel, requires_grad=True)
  keep, labels = torch.arange(4), torch.from_numpy(batch["labels"][:4])
  scores = [torch.cat([weight * x, 0 * x], dim=-1) for x in torch.from_numpy(inputs)]
  p, q = (x[keep] for x in scores)
  cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
  kl = torch.nn.functional.kl_div
  divergence = (
    kl(p.log_softmax(-1), q.softmax(-1), reduction="none").sum(-1).mean()
    + kl(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1).mean()
  ) / 2
  loss = (cross_entropy(p, labels) + cross_entropy(q, labels)) / 2 + alpha * divergence
  loss.backward()
  assert divergence > 0.05
  assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-12)
  assert kernel[0] - after == pytest.approx(weight.grad.item(), abs=1e-12)


def test_fast_gradient_method_moves_the_table_for_each_microbatch():
  pair = pair_of("sequence_classification", True)
  batch = {name: x[:4] for name, x in batches(pair)[0].items()}
  batch["labels"][1::2] = -100  # the second microbatch has nothing to learn from, so no direction either
  batch["weights"] = np.ones(4, np.float32)
  params = jax.tree.map(jnp.asarray, pair.params)
  steps = {}
  for count, rows in ((2, slice(None)), (1, slice(0, None, 2))):
    update = Update(
      pair.model, OBJECTIVES[pair.head], optax.sgd(1.0), microbatches=count, levers=Levers(fgm=2.0)
    )
    step = jax.jit(update, compiler_options=QUICK)
    steps[count], _ = step(update.first_state(params), {name: x[rows] for name, x in batch.items()})
  assert_same_tree(jax.device_get(steps[2].params), jax.device_get(steps[1].params))


def matrix_products(function, *args):
  """How many a program has, inner ones included, once all is gone that no result needs; the compiler drops that too."""

  def count(jaxpr):
    inner = sum(count(each) for eqn in jaxpr.eqns for each in jax.extend.core.jaxprs_in_params(eqn.params))
    return inner + sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)

  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


@LAYOUTS
def test_what_is_frozen_costs_no_gradient(scan):
  pair = pair_of("sequence_classification", scan)
  params = jax.tree.map(jnp.asarray, pair.params)
  batch = {**batches(pair)[0], "weights": np.ones(5, np.float32)}

  def products(rates):
    update = Update(
      pair.model, OBJECTIVES[pair.head], adamw(learning_rate=1e-3), levers=Levers(parameter_rates=rates)
    )
    return matrix_products(update, update.first_state(params), batch)

  def forward(params):
    return pair.model.apply({"params": params}, batch["input_ids"], batch["attention_mask"]).logits

  layers = 1 if scan else 3
  everything = products({})
  # Below it something is trained, so that only the product of its own gradient is gone.
  assert products({"attention/query/kernel": 0}) == everything - layers
  # Nothing of the encoder has a gradient, nor needs one to be passed through: the classifier's kernel is left.
  assert products({"^head/": 1, "": 0}) == matrix_products(forward, params) + 1
  # One layer of a stack is not whole; unrolled it is.
  assert everything - products({"layers_1/mlp/wo/kernel": 0}) == (0 if scan else 1)


def test_rates_are_by_the_unrolled_path():
  shapes = {"encoder": {"layers": {"wi": {"kernel": jnp.zeros((12, 2))}}}, "head": {"bias": jnp.zeros(3)}}
  kernel, bias = "encoder/layers/wi/kernel", "head/bias"
  factors = rate_factors(shapes, {r"layers_1/": 0.5, r"layers_\d/": 2, r"head": 0})
  np.testing.assert_array_equal(factors[kernel], [2, 0.5, *[2] * 8, 1, 1])
  assert factors[bias] == 0 and factors[bias].shape == ()
  # Layers that agree need no vector; with nothing said all is 1.
  assert rate_factors(shapes, {"layers_": 3})[kernel].shape == ()
  assert all(factor == 1 and factor.shape == () for factor in rate_factors(shapes, {}).values())


@pytest.mark.parametrize(
  "options,message",
  [
    ({"label_smoothing": 1.0}, "LABEL_SMOOTHING must be a number at least 0 and below 1, not 1.0"),
    ({"label_smoothing": "a"}, "LABEL_SMOOTHING must be a number .* not 'a'"),
    ({"r_drop": -1}, "R_DROP must be a number at least 0, not -1"),
    ({"fgm": float("nan")}, "FGM must be a number at least 0, not nan"),
    ({"fgm_parameters": "("}, r"FGM_PARAMETERS: '\(' is no regular expression"),
    ({"ema_decay": 1}, "EMA_DECAY must be a number None, or at least 0 and below 1, not 1"),
    ({"parameter_rates": [0.5]}, r"PARAMETER_RATES must be \{regular expression: factor\}, not \[0.5\]"),
    ({"parameter_rates": {"a[": 1.0}}, r"PARAMETER_RATES: 'a\[' is no regular expression"),
    ({"parameter_rates": {3: 1.0}}, "PARAMETER_RATES: 3 is no regular expression"),
    ({"parameter_rates": {"head": -0.1}}, "PARAMETER_RATES of 'head' must be a number at least 0, not -0.1"),
    ({"skip_bad_batches": 1}, "SKIP_BAD_BATCHES must be True or False, not 1"),
    ({"explosion_factor": 1.0}, "EXPLOSION_FACTOR must be a number None, or above 1, not 1.0"),
    ({"explosion_factor": True}, "EXPLOSION_FACTOR must be a number None, or above 1, not True"),
  ],
)
def test_mistakes_are_one_sentence(options, message):
  with pytest.raises(UserError, match=message):
    Levers(**options)


@pytest.mark.parametrize(
  "options,message",
  [
    (
      {"parameter_rates": {"bert.encoder": 0.5}},
      "no parameter matches 'bert.encoder'; there are embedding_norm/bias, encoder/layers_.* and others",
    ),
    ({"parameter_rates": {"": 0, "^head/": 1}}, r"earlier patterns take all that '\^head/' matches; move it up"),
    ({"parameter_rates": {"": 0}}, "PARAMETER_RATES freezes every parameter"),
    ({"fgm": 1.0, "fgm_parameters": "words"}, "FGM_PARAMETERS 'words' matches no .*; there are .*token_embed/"),
    (
      {"fgm": 1.0, "parameter_rates": {"token_embed": 0}},
      "FGM_PARAMETERS 'token_embed/' matches no embedding table that is trained; there are position_embed/embedding",
    ),
  ],
)
@LAYOUTS
def test_names_that_the_model_lacks_are_found_before_anything_is_allocated(options, message, scan):
  model = models.build("bert", models.sized("bert", "tiny", scan_layers=scan), "sequence_classification", 3)
  with pytest.raises(UserError, match=message):
    abstract_state(Update(model, OBJECTIVES["sequence_classification"], optax.sgd(1.0), levers=Levers(**options)))
