"""Schedules and AdamW against PyTorch's figures and against formulas."""

import json
import math
import os
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from convert_torch.weights import table
from tiny_hub import LM

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training.optimizers import adafactor, adamw, decay_mask, layer_by_layer, lion, schedule

GOLDENS = Path(os.environ.get("FSB_GOLDENS_DIR", Path(__file__).resolve().parents[3] / "shared" / "goldens"))
FIGURES = GOLDENS / "optim_schedules" / "data.json"
needs_figures = pytest.mark.skipif(not FIGURES.is_file(), reason=f"no {FIGURES}; set FSB_GOLDENS_DIR")


def values(steps, **options):
  with jax.enable_x64(True):
    rate = schedule(**options)
    return [float(rate(jnp.int32(step))) for step in range(steps)]


@needs_figures
@pytest.mark.parametrize(
  "theirs,kind,final",
  [
    ("linear", "linear", 0.0),
    ("polynomial", "linear", 1e-7),
    ("cosine", "cosine", 0.0),
    ("constant_with_warmup", "constant", 0.0),
  ],
)
def test_schedules_against_the_figures_of_the_original(theirs, kind, final):
  figures = json.loads(FIGURES.read_text())
  steps = figures["total_steps"]
  ours = values(
    steps + 1,
    kind=kind,
    learning_rate=figures["base_lr"],
    train_steps=steps,
    warmup_steps=figures["warmup_steps"],
    final_learning_rate=final,
  )
  # Beyond the run's length the original's cosine rises again and ours stays; nobody trains there.
  np.testing.assert_allclose(ours, figures["schedules"][theirs][: steps + 1], rtol=1e-9, atol=1e-18)


@needs_figures
def test_inverse_square_root_against_the_figures_of_the_original():
  figures = json.loads(FIGURES.read_text())["schedules"]["inverse_sqrt"]
  ours = values(len(figures), kind="inverse_sqrt", learning_rate=1e-4, train_steps=40, warmup_steps=10)
  # The original's warm-up ends 1e-9 (its lowest rate) beside ours, and its decay is the same function.
  np.testing.assert_allclose(ours[10:], figures[10:], rtol=1e-9)
  np.testing.assert_allclose(ours[:10], figures[:10], atol=1.1e-9)


def test_schedules_by_hand():
  options = dict(learning_rate=8.0, train_steps=12, warmup_steps=4)
  rising = [0.0, 2.0, 4.0, 6.0]
  assert values(14, kind="linear", **options) == rising + [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0]
  assert values(13, kind="linear", final_learning_rate=4.0, **options)[4:] == [8.0 - i / 2 for i in range(9)]
  assert values(14, kind="constant", **options) == rising + [8.0] * 10
  half = [4 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
  np.testing.assert_allclose(values(13, kind="cosine", **options), rising + half, atol=1e-12)
  floor = [2 + (8 - 2) / 8 * x for x in half]
  np.testing.assert_allclose(values(13, kind="cosine", final_learning_rate=2.0, **options), rising + floor, rtol=1e-12)
  np.testing.assert_allclose(
    values(17, kind="inverse_sqrt", learning_rate=8.0, train_steps=20, warmup_steps=4)[4:],
    [8 * math.sqrt(4 / step) for step in range(4, 17)],
  )


def test_warm_up_is_a_share_of_the_run_unless_given():
  by_ratio = values(20, learning_rate=1.0, train_steps=20, warmup_ratio=0.25)
  assert by_ratio == values(20, learning_rate=1.0, train_steps=20, warmup_steps=5)
  assert by_ratio[5] == 1.0 and by_ratio[4] == pytest.approx(0.8)
  assert values(2, learning_rate=1.0, train_steps=20, warmup_steps=0)[0] == 1.0
  # A run of nothing but warm-up.
  assert values(5, learning_rate=1.0, train_steps=4, warmup_steps=4) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="unknown learning rate schedule 'cosin'; known: linear, cosine"):
    schedule(kind="cosin", train_steps=10)
  with pytest.raises(UserError, match="warm-up of 11 steps does not fit into a run of 10"):
    schedule(train_steps=10, warmup_steps=11)
  with pytest.raises(UserError, match="warm-up of -1 steps"):
    schedule(train_steps=10, warmup_steps=-1)
  with pytest.raises(UserError, match="LEARNING_RATE must be a number above 0, not '2e-5x'"):
    schedule(train_steps=10, learning_rate="2e-5x")
  with pytest.raises(UserError, match="LEARNING_RATE must be a number above 0, not nan"):
    schedule(train_steps=10, learning_rate=float("nan"))
  with pytest.raises(UserError, match="WARMUP_RATIO must be a number from 0 to 1, not '10%'"):
    schedule(train_steps=10, warmup_ratio="10%")


def trained(params, gradients, make=adamw, **options):
  """Parameters after every update."""
  optimizer = make(**{"max_gradient_norm": None, **options})
  state, trajectory = optimizer.init(params), []
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    trajectory.append(params)
  return trajectory


@needs_figures
@pytest.mark.parametrize("name", ["torch_adamw", "torch_adamw_b2_0.95"])
def test_adamw_against_the_figures_of_the_original(name):
  figures = json.loads(FIGURES.read_text())
  options = figures["adamw"][name]["kwargs"]
  with jax.enable_x64(True):
    trajectory = trained(
      {"kernel": jnp.array(figures["adamw_w0"])},
      [{"kernel": jnp.array(g)} for g in figures["adamw_grads"]],
      learning_rate=options["lr"],
      beta1=options["betas"][0],
      beta2=options["betas"][1],
      epsilon=options["eps"],
      weight_decay=options["weight_decay"],
    )
  expected = figures["adamw"][name]["trajectory"]  # computed in float32
  np.testing.assert_allclose([p["kernel"] for p in trajectory], expected, rtol=2e-6, atol=2e-7)


def test_biases_and_norms_do_not_decay():
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    names = ("kernel", "embedding", "bias", "scale")
    start = {name: jnp.array(random.normal(size=(3, 4))) for name in names}
    gradients = [{name: jnp.array(random.normal(size=(3, 4))) for name in names} for _ in range(5)]
    ours = trained(start, gradients, learning_rate=0.01, weight_decay=0.5)[-1]
  tensors = {name: torch.nn.Parameter(torch.tensor(np.asarray(x))) for name, x in start.items()}
  groups = [
    {"params": [tensors["kernel"], tensors["embedding"]], "weight_decay": 0.5},
    {"params": [tensors["bias"], tensors["scale"]], "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
  for gradient in gradients:
    for name, tensor in tensors.items():
      tensor.grad = torch.tensor(np.asarray(gradient[name]))
    optimizer.step()
  for name, tensor in tensors.items():
    np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-12)


def drawn(steps, **shapes):
  """Parameters and gradients of some steps, of very different sizes."""
  random = np.random.default_rng(0)

  def tree():
    sizes = {name: 10.0 ** random.integers(-3, 2) for name in shapes}
    return {name: jnp.array(random.normal(size=shape) * sizes[name]) for name, shape in shapes.items()}

  return tree(), [tree() for _ in range(steps)]


def stacked_as(layers):
  """Trees by layer as one tree of a stack, and a parameter outside of it."""
  stack = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
  return {"encoder": {"layers": stack}, "head": layers[0]}


@pytest.mark.parametrize("relative", [True, False])
def test_adafactor_is_that_of_transformers(relative):
  with jax.enable_x64(True):
    shapes = dict(kernel=(6, 4), square=(5, 5), embedding=(9, 3), bias=(4,))
    start, gradients = drawn(8, **shapes)
    ours = trained(
      start, gradients, adafactor, learning_rate=0.01, scale_by_parameter=relative, clipping_threshold=0.9,
      smallest_factored=1,
    )
  tensors = {name: torch.nn.Parameter(torch.tensor(np.asarray(x))) for name, x in start.items()}
  optimizer = transformers.Adafactor(
    tensors.values(), lr=0.01, scale_parameter=relative, relative_step=False, clip_threshold=0.9
  )
  for gradient, mine in zip(gradients, ours, strict=True):
    for name, tensor in tensors.items():
      tensor.grad = torch.tensor(np.asarray(gradient[name]))
    optimizer.step()
    for name, tensor in tensors.items():
      # optax takes the decay of the squares in float32.
      np.testing.assert_allclose(mine[name], tensor.detach().numpy(), rtol=2e-6, atol=1e-9, err_msg=name)
  assert np.abs(ours[-1]["kernel"] - start["kernel"]).max() > 1e-3 * np.abs(start["kernel"]).max()


def test_adafactor_of_a_stack_is_that_of_its_layers():
  options = dict(learning_rate=0.01, weight_decay=0.1, smallest_factored=4)
  with jax.enable_x64(True):
    # Taken as one array the stack's largest axes would be that of the layers and one of the kernel's.
    layers = [drawn(5, kernel=(4, 4, 6), bias=(6,)) for _ in range(7)]
    # Not alike: layers that train at once but of different sizes.
    layers = [(jax.tree.map(lambda x, i=i: x * 2.0**i, p), jax.tree.map(lambda x, i=i: x * 3.0**i, g))
              for i, (p, g) in enumerate(layers)]
    alone = [trained(params, gradients, adafactor, **options)[-1] for params, gradients in layers]
    gradients = [stacked_as([g[step] for _, g in layers]) for step in range(5)]
    together = trained(stacked_as([p for p, _ in layers]), gradients, adafactor, **options)[-1]
  for i, tree in enumerate(alone):
    for name, expected in tree.items():
      np.testing.assert_allclose(together["encoder"]["layers"][name][i], expected, rtol=1e-12)
  np.testing.assert_allclose(together["head"]["kernel"], alone[0]["kernel"], rtol=1e-12)


def test_layer_by_layer_keeps_stacks_of_different_depths_apart():
  stacks = {name: {"layers": {"x": jnp.ones((layers, 3))}} for name, layers in (("encoder", 2), ("decoder", 4))}
  params = {**stacks, "y": jnp.ones(5)}
  # An update by the largest entry: of a layer, not of the stack.
  largest = optax.stateless(lambda updates, _: jax.tree.map(lambda x: x / jnp.max(x), updates))
  rule = layer_by_layer(largest)
  gradients = jax.tree.map(lambda x: jnp.arange(1.0, x.size + 1).reshape(x.shape), params)
  updates, _ = rule.update(gradients, rule.init(params), params)
  assert jax.tree.structure(updates) == jax.tree.structure(params)
  np.testing.assert_allclose(updates["encoder"]["layers"]["x"][:, -1], 1)
  np.testing.assert_allclose(updates["decoder"]["layers"]["x"][:, -1], 1)
  np.testing.assert_allclose(updates["y"], np.arange(1, 6) / 5)


def test_adafactor_keeps_almost_nothing_of_a_real_model():
  model = models.build("bert", models.sized("bert", "erlangshen_roberta_110m"), "masked_lm")
  params = nn.meta.unbox(models.abstract_params(model))

  def size(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  states = {
    make.__name__: size(jax.eval_shape(make(learning_rate=1e-3).init, params)) for make in (adamw, lion, adafactor)
  }
  assert states["adamw"] == pytest.approx(2 * size(params), rel=1e-3)
  assert states["lion"] == pytest.approx(size(params), rel=1e-3)
  assert states["adafactor"] < 0.02 * size(params)


def test_lion_is_its_paper():
  """Algorithm 2 of Chen et al. 2023."""
  options = dict(learning_rate=0.01, beta1=0.8, beta2=0.9, weight_decay=0.3)
  with jax.enable_x64(True):
    start, gradients = drawn(6, kernel=(4, 3), bias=(4,))
    ours = trained(start, gradients, lion, **options)
  for name, decay in (("kernel", 0.3), ("bias", 0.0)):
    x, mean = np.asarray(start[name]), 0.0
    for gradient, mine in zip(gradients, ours, strict=True):
      g = np.asarray(gradient[name])
      x = x - 0.01 * (np.sign(0.8 * mean + 0.2 * g) + decay * x)
      mean = 0.9 * mean + 0.1 * g
      np.testing.assert_allclose(mine[name], x, rtol=1e-12)


@pytest.mark.parametrize("make,rate", [(adamw, 0.05), (lion, 0.03), (adafactor, 0.1)])
def test_optimizers_find_a_minimum_by_their_schedule(make, rate):
  target = np.random.default_rng(3).normal(size=(40, 36)) + 0.5

  def loss(params):
    return jnp.mean((params["kernel"] - target) ** 2)

  optimizer = make(learning_rate=schedule(learning_rate=rate, train_steps=300), weight_decay=0.0)
  params = {"kernel": jnp.full(target.shape, 0.1)}
  state, first = optimizer.init(params), float(loss(params))

  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for number in range(300):
    after, state = step(params, state)
    if number == 0:
      # The warm-up starts from a rate of 0.
      np.testing.assert_array_equal(after["kernel"], params["kernel"])
    params = after
  assert loss(params) < 0.01 * first


@pytest.mark.parametrize("make", [adamw, lion, adafactor])
def test_clipping_comes_first_and_decay_is_by_the_mask_and_the_rate(make):
  with jax.enable_x64(True):
    start, drawn_gradients = drawn(2, kernel=(4, 3), bias=(4,))
    long, short, small = (
      optax.tree.scale(norm / optax.tree.norm(tree), tree)
      for tree, norm in zip([*drawn_gradients[:1] * 2, drawn_gradients[1]], (40.0, 0.5, 0.3), strict=True)
    )
    options = dict(learning_rate=0.01, weight_decay=0.0)
    clipped = trained(start, [long, small], make, **options, max_gradient_norm=0.5)[-1]
    by_hand = trained(start, [short, small], make, **options)[-1]
    free = trained(start, [long, small], make, **options)[-1]
    decayed = trained(start, [small], make, **{**options, "weight_decay": 0.5})[0]
    plain = trained(start, [small], make, **options)[0]
  start, clipped, by_hand, free, decayed, plain = jax.device_get((start, clipped, by_hand, free, decayed, plain))
  np.testing.assert_allclose(clipped["kernel"], by_hand["kernel"], rtol=1e-12)
  assert np.abs(clipped["kernel"] - free["kernel"]).max() > 1e-6
  np.testing.assert_allclose(plain["kernel"] - decayed["kernel"], 0.01 * 0.5 * start["kernel"], rtol=1e-9)
  np.testing.assert_array_equal(plain["bias"], decayed["bias"])


@pytest.mark.parametrize(
  "make,options,message",
  [
    (adamw, {"learning_rate": 0}, "LEARNING_RATE must be a number above 0, not 0"),
    (adamw, {"weight_decay": -0.1}, "WEIGHT_DECAY must be a number at least 0, not -0.1"),
    (adamw, {"max_gradient_norm": 0.0}, "MAX_GRADIENT_NORM must be a number None, or above 0, not 0.0"),
    (adamw, {"beta1": 1.0}, "beta1 must be a number at least 0 and below 1, not 1.0"),
    (adamw, {"beta2": -0.1}, "beta2 must be a number at least 0 and below 1"),
    (adamw, {"epsilon": 0.0}, "epsilon must be a number above 0"),
    (lion, {"beta1": 2}, "beta1 must be a number at least 0 and below 1, not 2"),
    (lion, {"beta2": None}, "beta2 must be a number at least 0 and below 1, not None"),
    (lion, {"weight_decay": "1"}, "WEIGHT_DECAY must be a number at least 0, not '1'"),
    (adafactor, {"decay_exponent": 0.0}, "decay_exponent must be a number above 0 and at most 1, not 0.0"),
    (adafactor, {"epsilon": -1e-30}, "epsilon must be a number above 0"),
    (adafactor, {"clipping_threshold": 0.0}, "clipping_threshold must be a number above 0, not 0.0"),
    (adafactor, {"smallest_factored": 0}, "smallest_factored must be a number of at least 1, not 0"),
    (adafactor, {"max_gradient_norm": -1.0}, "MAX_GRADIENT_NORM must be a number None, or above 0, not -1.0"),
  ],
)
def test_impossible_optimizers_are_one_sentence(make, options, message):
  with pytest.raises(UserError, match=message):
    make(**{"learning_rate": 1e-3, **options})


@pytest.mark.parametrize("norm,expected", [(10.0, 1.0), (5.0, 1.0), (1.0, 0.2), (None, 1.0)])
def test_clipping_is_by_the_norm_of_all_gradients(norm, expected):
  # Adam forgets the scale of gradients but not beside an epsilon: with a large one an update is proportional to them.
  params = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
  gradients = {"kernel": jnp.array([3.0]), "bias": jnp.array([-4.0])}
  optimizer = adamw(learning_rate=1.0, weight_decay=0.0, epsilon=1e8, max_gradient_norm=norm)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"] * -1e8, [3.0 * expected], rtol=1e-5)
  np.testing.assert_allclose(updates["bias"] * -1e8, [-4.0 * expected], rtol=1e-5)


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=pytest.mark.slow if place % 3 else []) for place, name in enumerate(LM)]
)
@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_decay_takes_kernels_and_embeddings_of_real_models(family, scan):
  size = next(iter(models.family(family).sizes))
  model = models.build(family, models.sized(family, size, scan_layers=scan), LM[family])
  boxed = models.abstract_params(model)
  flags = models.flatten(decay_mask(nn.meta.unbox(models.abstract_params(model))))
  # Boxed parameters, as the partitioner sees them, are told apart the same way.
  assert jax.tree.leaves(decay_mask(boxed)) == [flags[path] for path in sorted(flags)]
  kept = {path for path, decays in flags.items() if not decays}
  # LLaMA and T5 have no biases.
  unbiased = family in ("fengshen_llama", "llama", "mt5", "t5")
  assert {re.split("[/_]", path)[-1] for path in kept} == ({"scale"} if unbiased else {"bias", "scale"})
  assert {re.split("[/_]", path)[-1] for path in set(flags) - kept} <= {"kernel", "embedding", "embed"}


@needs_figures
def test_what_decays_in_bert_is_what_decayed_in_the_original():
  groups = json.loads(FIGURES.read_text())["param_groups"]["bert"]
  model = models.build("bert", models.sized("bert", "tiny", scan_layers=False), "masked_lm")
  flags = models.flatten(decay_mask(nn.meta.unbox(models.abstract_params(model))))
  ours = {row.theirs.replace("{i}", "0"): flags.get(row.ours.replace("{i}", "0")) for row in table("bert").rows}
  assert {name: ours[name] for name in groups["decay"]} == dict.fromkeys(groups["decay"], True)
  assert {name: ours[name] for name in groups["no_decay"]} == dict.fromkeys(groups["no_decay"], False)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_are_those_of_transformers_today(kind):
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
  theirs = transformers.get_scheduler(kind, optimizer, num_warmup_steps=3, num_training_steps=17)
  expected = []
  for _ in range(18):
    expected.append(theirs.get_last_lr()[0])
    optimizer.step()
    theirs.step()
  np.testing.assert_allclose(
    values(18, kind=kind, learning_rate=3e-4, train_steps=17, warmup_steps=3), expected, rtol=1e-9, atol=1e-18
  )


def test_decay_leaves_the_class_token_and_the_scale_of_clip_alone():
  model = models.build("clip", models.sized("clip", "tiny"), "clip")
  flags = models.flatten(decay_mask(nn.meta.unbox(models.abstract_params(model))))
  kept = {path for path, decays in flags.items() if not decays}
  assert {path.split("/")[-1] for path in kept} == {"bias", "scale", "class_token", "logit_scale"}
  assert flags["vision/patch_embed/kernel"] and flags["text_projection/kernel"] and flags["text/token_embed/embedding"]
