"""Noise schedules of diffusion models, and the samplers that lead from noise to a sample.

A forward process mixes a clean sample with noise, `signal * clean + noise_level * noise`, where signal^2 is the
cumulative product of 1 - beta over the training steps (Ho et al. 2020, https://arxiv.org/abs/2006.11239).

Every sampler here computes its next sample linearly from what it has seen: the sample, what it kept of earlier steps,
the clean sample that the model's output implies (clipped, where the schedule says so), the output itself, and fresh
noise. So a sampler is a table of numbers made once on the host in float64, a `Plan`, and one function, `step`, runs
them all; it is pure and takes the step's number as an array, so it works in `lax.scan` as in a loop on the host.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.models.diffusion.samplers import SAMPLERS

# What files say of the noise, whichever sampler goes back along it.
_SHARED = (
  "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing",
  "steps_offset",
)  # fmt: skip
# Options that have one value here.
_ONLY = {
  "trained_betas": None, "thresholding": False, "interpolation_type": "linear", "timestep_type": "discrete",
  "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False, "use_flow_sigmas": False,
  "sigma_min": None, "sigma_max": None, "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
  "lambda_min_clipped": -np.inf, "use_dynamic_shifting": False,
}  # fmt: skip
# Options that count only beside a value that is refused above.
_UNREAD = ("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type")
# What the options that are words may be.
_CHOICES = {
  "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
  "prediction_type": ("epsilon", "v_prediction", "sample"),
  "timestep_spacing": ("leading", "trailing", "linspace"),
  "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
  "final_sigmas_type": ("zero", "sigma_min"),
}


@flax.struct.dataclass
class Plan:
  """A sampler's numbers for all its steps, see `step`.

  Attributes:
    timesteps: float `[steps]`, what the model is told.
    input_scale: `[steps]`, what the sample is multiplied with before the model reads it.
    clean: `[steps, 2]`, the weights of sample and output in the clean sample.
    update: `[steps, slots, slots + 3]`, the weights of (slots, clean sample, output, noise) in the next slots.
    levels: `[steps, 2]`, the weights of clean sample and noise in a sample that the step goes on from.
    initial_scale: the standard deviation of the noise that the first step goes on from.
    clip: the largest magnitude of the clean sample, None where it is left as it is.
    draws: whether `step` wants fresh noise.
  """

  timesteps: jax.Array
  input_scale: jax.Array
  clean: jax.Array
  update: jax.Array
  levels: jax.Array
  initial_scale: jax.Array
  clip: float | None = flax.struct.field(pytree_node=False)
  draws: bool = flax.struct.field(pytree_node=False)

  @property
  def steps(self) -> int:
    """How often the model is called."""
    return self.timesteps.shape[0]

  def at(self, index: int) -> "Plan":
    """The plan of step `index` alone: one compiled step serves them all, and any number of them."""
    arrays = ("timesteps", "input_scale", "clean", "update", "levels")
    return self.replace(**{name: getattr(self, name)[index : index + 1] for name in arrays})

  def start(self, sample: jax.Array) -> jax.Array:
    """The slots `[slots, ...]` of a sampler that goes on from `sample`; the first slot is always its sample."""
    return jnp.zeros((self.update.shape[-2], *sample.shape), sample.dtype).at[0].set(sample)

  def init(self, noise: jax.Array) -> jax.Array:
    """The slots of a sampler that goes on from standard normal noise alone."""
    return self.start(noise * self.initial_scale.astype(noise.dtype))

  def add_noise(self, clean: jax.Array, noise: jax.Array, index: Any = 0) -> jax.Array:
    """A clean sample with as much noise as the sampler expects before step `index`."""
    level = self.levels[index].astype(clean.dtype)
    return level[0] * clean + level[1] * noise


def scale_model_input(plan: Plan, slots: jax.Array, index: Any) -> jax.Array:
  """The sample as the model is to read it in step `index`."""
  return slots[0] * plan.input_scale[index].astype(slots.dtype)


def step(plan: Plan, slots: jax.Array, index: Any, output: jax.Array, noise: jax.Array | None = None) -> jax.Array:
  """One step of a sampler.

  Args:
    plan: its numbers.
    slots: `[slots, ...]`, the sample and what is kept of earlier steps.
    index: which step, from 0; an int or an int array.
    output: `[...]`, what the model said of `scale_model_input(plan, slots, index)` at `plan.timesteps[index]`.
    noise: `[...]`, standard normal, fresh in each step; needed where `plan.draws`.

  Returns:
    The next slots.
  """
  dtype = slots.dtype
  output = output.astype(dtype)
  weights = plan.clean[index].astype(dtype)
  clean = weights[0] * slots[0] + weights[1] * output
  if plan.clip is not None:
    clean = jnp.clip(clean, -plan.clip, plan.clip)
  noise = jnp.zeros_like(output) if noise is None else noise.astype(dtype)
  sources = jnp.concatenate([slots, jnp.stack([clean, output, noise])])
  # Products of a few numbers with images: accelerators would round them to their fast formats.
  return jnp.tensordot(plan.update[index].astype(dtype), sources, axes=1, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """A noise schedule and the sampler to go back along it; names and meaning of the options are those of `diffusers`.

  Attributes:
    sampler: one of `SAMPLERS`.
    num_train_timesteps: steps of the forward process.
    beta_start: share of noise that its first step adds.
    beta_end: and its last one.
    beta_schedule: how betas go from one to the other: linear, scaled_linear (their roots do), squaredcos_cap_v2.
    prediction_type: what the model's output is: epsilon (the noise), v_prediction (signal * noise - noise_level *
      clean; Salimans and Ho 2022, https://arxiv.org/abs/2202.00512), sample (the clean sample).
    timestep_spacing: which steps are taken of a few: leading, trailing, linspace.
    steps_offset: added to leading ones.
    rescale_betas_zero_snr: the last step of the forward process leaves no signal (Lin et al. 2023,
      https://arxiv.org/abs/2305.08891).
    clip_sample: clip the clean sample (ddpm, ddim).
    clip_sample_range: to this magnitude.
    set_alpha_to_one: the last step goes to the clean sample, not to the forward process's first (ddim, pndm).
    skip_prk_steps: begin with linear multistep instead of Runge-Kutta (pndm).
    variance_type: of the noise that is added (ddpm).
    eta: share of ddpm's noise that ddim adds; not an option of files.
    use_karras_sigmas: space steps as Karras et al. 2022, https://arxiv.org/abs/2206.00364 (euler, dpm++).
    final_sigmas_type: noise after the last step: zero, or sigma_min, the forward process's first (euler, dpm++).
    lower_order_final: the last two of fewer than 15 steps are of lower order (dpm++).
    euler_at_final: the last step is of first order (dpm++).
  """

  sampler: str
  num_train_timesteps: int = 1000
  beta_start: float = 0.0001
  beta_end: float = 0.02
  beta_schedule: str = "linear"
  prediction_type: str = "epsilon"
  timestep_spacing: str = "leading"
  steps_offset: int = 0
  rescale_betas_zero_snr: bool = False
  clip_sample: bool = True
  clip_sample_range: float = 1.0
  set_alpha_to_one: bool = True
  skip_prk_steps: bool = False
  variance_type: str = "fixed_small"
  eta: float = 0.0
  use_karras_sigmas: bool = False
  final_sigmas_type: str = "zero"
  lower_order_final: bool = True
  euler_at_final: bool = False

  def __post_init__(self):
    if self.sampler not in SAMPLERS:
      raise UserError(f"unknown scheduler {self.sampler!r}; there are {', '.join(SAMPLERS)}")
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise UserError(f"scheduler: {name} {getattr(self, name)!r} is not supported; known: {', '.join(choices)}")
    if self.prediction_type not in SAMPLERS[self.sampler].predictions:
      raise UserError(f"scheduler: {self.sampler} cannot use prediction_type {self.prediction_type!r}; choose another")

  @property
  def betas(self) -> np.ndarray:
    """float64 `[num_train_timesteps]`, the share of noise that each step of the forward process adds."""
    count = self.num_train_timesteps
    if self.beta_schedule == "squaredcos_cap_v2":
      # Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 17.
      cosine = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
      betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    elif self.beta_schedule == "scaled_linear":
      betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
    else:
      betas = np.linspace(self.beta_start, self.beta_end, count)
    if not self.rescale_betas_zero_snr:
      return betas
    signal = np.sqrt(np.cumprod(1 - betas))
    kept = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    return 1 - np.concatenate([kept[:1], kept[1:] / kept[:-1]])

  @property
  def alphas_cumprod(self) -> np.ndarray:
    """float64 `[num_train_timesteps]`, the share of the clean sample's variance that is left after each step."""
    return np.cumprod(1 - self.betas)

  def of_latents(self) -> "Schedule":
    """As `diffusers` draws with Stable Diffusion 1 and 2, whatever the file says.

    Latents have no range to be clipped to, and the first step of training adds next to nothing.
    """
    return dataclasses.replace(self, clip_sample=False, steps_offset=1)

  def plan(self, num_steps: int, *, first: int = 0, dtype: Any = np.float32) -> Plan:
    """The sampler's numbers.

    Args:
      num_steps: how many steps lead from noise to a clean sample (pndm calls the model a few times more).
      first: how many of them to leave out at the beginning, where a sample is there to go on from.
      dtype: of the numbers, which are computed in float64.

    Raises:
      UserError: more steps than the forward process has, or none.
    """
    if not 1 <= num_steps <= self.num_train_timesteps:
      raise UserError(f"steps={num_steps} is not between 1 and the model's {self.num_train_timesteps} of training")
    if not 0 <= first < num_steps:
      raise UserError(f"all {num_steps} steps would be left out; give a larger strength or more steps")
    with np.errstate(divide="ignore"):
      table = SAMPLERS[self.sampler].table(self, num_steps, first)
    if not np.isfinite(table.clean).all():
      raise UserError(
        "scheduler: rescale_betas_zero_snr leaves no signal at the first step, of which prediction_type 'epsilon' says "
        "nothing; models for it have 'v_prediction'"
      )
    scale = np.ones(len(table.timesteps)) if table.input_scale is None else table.input_scale
    arrays = (table.timesteps, scale, table.clean, table.update, table.levels, table.initial_scale)
    return Plan(
      *(np.asarray(array, dtype) for array in arrays), clip=table.clip, draws=bool(np.any(table.update[..., -1])),
    )  # fmt: skip

  def add_noise(self, clean: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """The forward process: clean samples `[batch, ...]` after `timesteps`, int `[batch]`, steps."""
    signal, level = self._levels_at(timesteps, clean)
    return signal * clean + level * noise

  def velocity(self, clean: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What a model of prediction_type v_prediction should say of `add_noise(clean, noise, timesteps)`."""
    signal, level = self._levels_at(timesteps, clean)
    return signal * noise - level * clean

  def _levels_at(self, timesteps: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    kept = self.alphas_cumprod
    shape = (-1, *(1,) * (like.ndim - 1))
    return tuple(jnp.asarray(x, like.dtype)[timesteps].reshape(shape) for x in (np.sqrt(kept), np.sqrt(1 - kept)))


def schedule_from_config(config: Mapping[str, Any], sampler: str | None = None) -> Schedule:
  """The schedule of a `scheduler_config.json`.

  Args:
    config: the file's content.
    sampler: one of `SAMPLERS`, to go back with another than the file's `_class_name` says. What the file says of the
      noise stays, what it says of its own sampler is left out.

  Raises:
    UserError: a scheduler or an option that we do not have.
  """
  own = {entry.class_name: name for name, entry in SAMPLERS.items()}.get(config.get("_class_name"))
  if sampler is None and own is None:
    raise UserError(
      f"scheduler_config.json: unknown scheduler {config.get('_class_name')!r}; ask for one of {', '.join(SAMPLERS)}"
    )
  sampler = sampler or own
  if sampler not in SAMPLERS:
    raise UserError(f"unknown scheduler {sampler!r}; there are {', '.join(SAMPLERS)}")
  options = SAMPLERS[sampler].options
  known = {*_ONLY, *_SHARED, *(option for entry in SAMPLERS.values() for option in entry.options)}
  chosen = dict(options)
  for name, value in config.items():
    if name.startswith("_") or name in _UNREAD:
      continue
    if name not in known:
      raise UserError(f"scheduler_config.json: option {name!r} is unknown; remove it if it changes nothing")
    # Files also carry options of samplers they were made from, which their own never reads.
    if name in _ONLY and value != _ONLY[name] and (sampler == own or name == "trained_betas"):
      raise UserError(f"scheduler_config.json: {name} {value!r} is not supported, only {_ONLY[name]!r}")
    if (name in options or name in _SHARED) and value is not None:
      chosen[name] = value
  return Schedule(sampler=sampler, **chosen)
