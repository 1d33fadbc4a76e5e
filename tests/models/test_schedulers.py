"""Samplers against those of diffusers, made to compute in float64: whole trajectories of a fixed fake model."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import (
  scheduling_ddim,
  scheduling_ddpm,
  scheduling_dpmsolver_multistep,
  scheduling_euler_ancestral_discrete,
  scheduling_euler_discrete,
  scheduling_pndm,
)

from fsb_jax.errors import UserError
from fsb_jax.models.diffusion.samplers import SAMPLERS
from fsb_jax.models.diffusion.schedulers import Schedule, scale_model_input, schedule_from_config, step

MODULES = {
  "ddpm": scheduling_ddpm, "ddim": scheduling_ddim, "pndm": scheduling_pndm, "euler": scheduling_euler_discrete,
  "euler_ancestral": scheduling_euler_ancestral_discrete, "dpm++": scheduling_dpmsolver_multistep,
}  # fmt: skip
SHAPE = (2, 3, 2, 4)
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ("leading", "trailing", "linspace")


class Wide:
  """A module whose float32 is float64."""

  def __init__(self, module, float64):
    self._module, self.float32 = module, float64

  def __getattr__(self, name):
    return getattr(self._module, name)


# The library's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def float64(monkeypatch):
  for module in MODULES.values():
    monkeypatch.setattr(module, "torch", Wide(torch, torch.float64))
    monkeypatch.setattr(module, "np", Wide(np, np.float64))
  with jax.enable_x64(True):
    yield


def noises(count):
  return np.random.default_rng(0).normal(size=(count, *SHAPE))


def fake(xp, sample, timestep):
  """A bounded model that is not linear in anything."""
  place = np.linspace(-1, 1, int(np.prod(SHAPE))).reshape(SHAPE)
  place = torch.from_numpy(place) if xp is torch else place
  return 0.8 * xp.tanh(0.7 * sample + timestep / 500 - 1 + place) + 0.3 * xp.cos(3 * sample)


def theirs(sampler, config, steps, noise, first=0, clean=None, eta=None):
  """Every sample of a trajectory by diffusers."""
  module = MODULES[sampler]
  scheduler = getattr(module, SAMPLERS[sampler].class_name).from_config(dict(config))
  scheduler.set_timesteps(steps)
  drawn = iter(torch.from_numpy(noise[1:]))
  module.randn_tensor = lambda *_, **__: next(drawn)
  if first and hasattr(scheduler, "set_begin_index"):
    scheduler.set_begin_index(first)
  times = scheduler.timesteps[first:]
  sample = torch.from_numpy(noise[0])
  if clean is None:
    sample = sample * scheduler.init_noise_sigma
  else:
    sample = scheduler.add_noise(torch.from_numpy(clean), sample, times[:1])
  samples = [sample.numpy()]
  for time in times:
    output = fake(torch, scheduler.scale_model_input(sample, time), time.double())
    sample = scheduler.step(output, time, sample, **({} if eta is None else {"eta": eta})).prev_sample
    samples.append(sample.numpy())
  return np.stack(samples)


def ours(schedule, steps, noise, first=0, clean=None):
  plan = schedule.plan(steps, first=first, dtype=np.float64)
  fresh = jnp.asarray(noise[1 : plan.steps + 1])

  def body(slots, i):
    output = fake(jnp, scale_model_input(plan, slots, i), plan.timesteps[i])
    slots = step(plan, slots, i, output, fresh[i])
    return slots, slots[0]

  plan = jax.tree.map(jnp.asarray, plan)
  slots = plan.init(noise[0]) if clean is None else plan.start(plan.add_noise(clean, noise[0]))
  _, samples = jax.lax.scan(body, slots, jnp.arange(plan.steps))
  return np.concatenate([slots[:1], samples])


def compare(sampler, steps, tolerance=1e-9, first=0, clean=None, eta=None, **options):
  config = {**STABLE_DIFFUSION, **options}
  noise = noises(80)
  schedule = schedule_from_config({"_class_name": SAMPLERS[sampler].class_name, **config})
  if eta is not None:
    schedule = Schedule(**{**schedule.__dict__, "eta": eta})
  expected = theirs(sampler, config, steps, noise, first, clean, eta)
  got = ours(schedule, steps, noise, first, clean)
  assert np.isfinite(expected).all() and got.shape == expected.shape
  assert np.abs(expected[-1] - expected[0]).max() > 1e-2
  scale = np.maximum(1, abs(expected))
  np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=tolerance)


CASES = [
  (sampler, prediction, spacing)
  for sampler, entry in SAMPLERS.items() for prediction in entry.predictions for spacing in SPACINGS
]  # fmt: skip


@pytest.mark.parametrize(
  "sampler, prediction, spacing", [case for case in CASES if case[1] == "epsilon" or case[2] == "trailing"]
)
def test_trajectories(sampler, prediction, spacing):
  compare(sampler, 7, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [7, 20, 50])
@pytest.mark.parametrize("sampler, prediction, spacing", CASES)
def test_long_trajectories(sampler, prediction, spacing, steps):
  compare(sampler, steps, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)


# What samplers have beside those three, each where it changes something.
OPTIONS = [
  ("ddpm", 9, {"clip_sample": False}),
  ("ddpm", 9, {"variance_type": "fixed_large"}),
  ("ddpm", 9, {"variance_type": "fixed_small_log", "beta_schedule": "linear"}),
  ("ddim", 9, {"clip_sample": False, "set_alpha_to_one": False}),
  ("ddim", 9, {"clip_sample_range": 0.5, "beta_schedule": "squaredcos_cap_v2"}),
  ("ddim", 50, {"clip_sample": False, "beta_schedule": "linear", "steps_offset": 1}),
  ("ddim", 9, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
  ("pndm", 50, {"skip_prk_steps": True, "steps_offset": 1}),
  ("pndm", 9, {"skip_prk_steps": True, "set_alpha_to_one": True, "prediction_type": "v_prediction"}),
  ("pndm", 1, {"skip_prk_steps": True, "timestep_spacing": "trailing"}),
  ("pndm", 3, {"skip_prk_steps": True, "timestep_spacing": "linspace"}),
  ("euler", 9, {"use_karras_sigmas": True}),
  ("euler", 9, {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading", "steps_offset": 1}),
  ("euler", 9, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
  ("euler_ancestral", 50, {"timestep_spacing": "leading"}),
  ("dpm++", 20, {"use_karras_sigmas": True}),
  ("dpm++", 9, {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
  ("dpm++", 20, {"final_sigmas_type": "sigma_min"}),
  ("dpm++", 20, {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
  ("dpm++", 9, {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
  ("dpm++", 9, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize("sampler, steps, options", OPTIONS, ids=str)
def test_options(sampler, steps, options):
  compare(sampler, steps, **options)


def test_ddim_with_noise():
  compare("ddim", 9, eta=0.7, clip_sample=False)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("first", [1, 5])
def test_beginning_in_the_middle(sampler, first):
  options = {"skip_prk_steps": True} if sampler == "pndm" else {}
  compare(sampler, 8, first=first, clean=noises(90)[-1], **options)


def test_fewer_digits():
  """As models run: float32 numbers, one step after the other on the host."""
  noise = noises(30)
  schedule = schedule_from_config({"_class_name": "DPMSolverMultistepScheduler", **STABLE_DIFFUSION})
  plan = schedule.plan(20)
  with jax.enable_x64(False):
    slots = plan.init(jnp.asarray(noise[0], jnp.float32))
    for i in range(plan.steps):
      one = plan.at(i)
      output = fake(jnp, scale_model_input(one, slots, 0), one.timesteps[0])
      slots = step(one, slots, 0, output)
  assert slots.dtype == jnp.float32
  np.testing.assert_allclose(slots[0], theirs("dpm++", STABLE_DIFFUSION, 20, noise)[-1], atol=1e-4)


def test_which_samplers_draw():
  draws = {name for name in SAMPLERS if schedule_from_config({"_class_name": SAMPLERS[name].class_name}).plan(5).draws}
  assert draws == {"ddpm", "euler_ancestral"}


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_forward_process(beta_schedule):
  config = {**STABLE_DIFFUSION, "beta_schedule": beta_schedule}
  scheduler = scheduling_ddpm.DDPMScheduler.from_config(config)
  schedule = schedule_from_config({"_class_name": "DDPMScheduler", **config})
  clean, noise = noises(2)
  times = np.array([3, 998])
  arguments = torch.from_numpy(clean), torch.from_numpy(noise), torch.from_numpy(times)
  np.testing.assert_allclose(schedule.add_noise(clean, noise, times), scheduler.add_noise(*arguments), atol=1e-9)
  np.testing.assert_allclose(schedule.velocity(clean, noise, times), scheduler.get_velocity(*arguments), atol=1e-9)


PUBLISHED = {
  "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
  "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000,
  "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip


def test_another_sampler_for_a_file():
  """As diffusers' from_config: what the file says stays, where the other sampler has it."""
  for name, module in MODULES.items():
    scheduler = getattr(module, SAMPLERS[name].class_name).from_config(PUBLISHED)
    expected = types.SimpleNamespace(**scheduler.config)
    schedule = schedule_from_config(PUBLISHED, name)
    assert schedule.sampler == name
    for option in ("beta_start", "steps_offset", "timestep_spacing", *SAMPLERS[name].options):
      assert getattr(schedule, option) == getattr(expected, option), (name, option)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"_class_name": "LCMScheduler"}, "unknown scheduler 'LCMScheduler'"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not supported"),
    ({"trained_betas": [0.1]}, "trained_betas"),
    ({"prediction_type": "sample"}, "pndm cannot use prediction_type 'sample'"),
    ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding True is not supported, only False"),
    ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type 'learned_range'"),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order 3"),
    ({"shine": 3}, "option 'shine' is unknown"),
  ],
)
def test_what_is_refused(changes, words):
  with pytest.raises(UserError, match=words.replace("[", r"\[")):
    schedule_from_config({**PUBLISHED, **changes})


@pytest.mark.parametrize(
  "changes, arguments, words",
  [
    ({}, dict(num_steps=0), "steps=0 is not between 1 and the model.s 1000"),
    ({}, dict(num_steps=1001), "steps=1001"),
    ({}, dict(num_steps=4, first=4), "all 4 steps would be left out"),
    ({"skip_prk_steps": False}, dict(num_steps=3), "Runge-Kutta"),
    ({"skip_prk_steps": False}, dict(num_steps=9, first=2), "Runge-Kutta"),
    (
      {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
      dict(num_steps=5), "leaves no signal",
    ),
  ],
)  # fmt: skip
def test_plans_that_cannot_be(changes, arguments, words):
  with pytest.raises(UserError, match=words):
    schedule_from_config({**PUBLISHED, **changes}).plan(**arguments)


def test_unknown_sampler():
  with pytest.raises(UserError, match="unknown scheduler 'plms'; there are ddpm"):
    schedule_from_config(PUBLISHED, "plms")
