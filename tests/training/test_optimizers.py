"""Schedules and AdamW against PyTorch's figures and against formulas."""

import json
import math
import os
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

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training.optimizers import adamw, decay_mask, schedule

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


def trained(params, gradients, **options):
  """Parameters after every update."""
  optimizer = adamw(max_gradient_norm=None, **options)
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


@pytest.mark.parametrize("norm,expected", [(10.0, 1.0), (5.0, 1.0), (1.0, 0.2), (None, 1.0)])
def test_clipping_is_by_the_norm_of_all_gradients(norm, expected):
  # Adam forgets the scale of gradients but not beside an epsilon: with a large one an update is proportional to them.
  params = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
  gradients = {"kernel": jnp.array([3.0]), "bias": jnp.array([-4.0])}
  optimizer = adamw(learning_rate=1.0, weight_decay=0.0, epsilon=1e8, max_gradient_norm=norm)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"] * -1e8, [3.0 * expected], rtol=1e-5)
  np.testing.assert_allclose(updates["bias"] * -1e8, [-4.0 * expected], rtol=1e-5)


@pytest.mark.parametrize("family", models.all_families())
@pytest.mark.parametrize("scan", [True, False])
def test_decay_takes_kernels_and_embeddings_of_real_models(family, scan):
  size = next(iter(models.family(family).sizes))
  model = models.build(family, models.sized(family, size, scan_layers=scan), "masked_lm")
  boxed = models.abstract_params(model)
  flags = models.flatten(decay_mask(nn.meta.unbox(models.abstract_params(model))))
  # Boxed parameters, as the partitioner sees them, are told apart the same way.
  assert jax.tree.leaves(decay_mask(boxed)) == [flags[path] for path in sorted(flags)]
  kept = {path for path, decays in flags.items() if not decays}
  assert {path.rsplit("/", 1)[1] for path in kept} == {"bias", "scale"}
  assert {path.rsplit("/", 1)[1] for path in set(flags) - kept} == {"kernel", "embedding"}


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
