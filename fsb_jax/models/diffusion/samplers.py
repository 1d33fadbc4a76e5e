"""The tables of `schedulers.Plan`, one function a sampler.

A formula is written with the unit vectors of what a step reads, so `a * sample + b * output` is the row that computes
it. Notation: signal and level are the weights of clean sample and noise in a sample of unit variance; sigma = level /
signal is the noise of one that is not scaled down, as Euler's methods keep it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from fsb_jax.errors import UserError


class Forward(Protocol):
  """What a table is made from: the options of `schedulers.Schedule`, and its noise."""

  alphas_cumprod: np.ndarray
  num_train_timesteps: int
  prediction_type: str

  def __getattr__(self, name: str) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A sampler's numbers in float64; the fields are those of `schedulers.Plan`."""

  timesteps: np.ndarray
  clean: np.ndarray
  update: np.ndarray
  levels: np.ndarray
  input_scale: np.ndarray | None = None
  initial_scale: float = 1.0
  clip: float | None = None


def _vectors(slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Unit vectors of (slots, clean sample, output, noise)."""
  unit = np.eye(slots + 3)
  return unit[:slots], unit[slots], unit[slots + 1], unit[slots + 2]


def _clean(prediction: str, signal: float, level: float) -> tuple[float, float]:
  """The weights of sample and output in the clean sample that the output implies."""
  if prediction == "epsilon":
    return 1 / signal, -level / signal
  return (signal, -level) if prediction == "v_prediction" else (0.0, 1.0)


def _noise(prediction: str, signal: float, level: float) -> tuple[float, float]:
  """The weights of sample and output in the noise that the output implies."""
  if prediction == "epsilon":
    return 0.0, 1.0
  return (level, signal) if prediction == "v_prediction" else (1 / level, -signal / level)


def _spaced(schedule: Forward, steps: int, whole: bool = True) -> np.ndarray:
  """Which steps of the forward process to go back along, latest first (Lin et al. 2023, table 2)."""
  count = schedule.num_train_timesteps
  if schedule.timestep_spacing == "linspace":
    times = np.linspace(0, count - 1, steps)[::-1]
    return times.round() if whole else times
  if schedule.timestep_spacing == "leading":
    return (np.arange(steps) * (count // steps))[::-1] + float(schedule.steps_offset)
  return np.arange(count, 0, -count / steps)[:steps].round() - 1


def _levels(kept: np.ndarray, times: np.ndarray) -> np.ndarray:
  at = kept[times.astype(int)]
  return np.stack([np.sqrt(at), np.sqrt(1 - at)], axis=1)


def _ddpm(schedule: Forward, steps: int, first: int) -> Table:
  """Ho et al. 2020, https://arxiv.org/abs/2006.11239, equations 6 and 7."""
  (sample,), clean, _, noise = _vectors(1)
  kept, times = schedule.alphas_cumprod, _spaced(schedule, steps)[first:]
  rows = []
  for i, time in enumerate(times.astype(int)):
    now, then = kept[time], kept[int(times[i + 1])] if i + 1 < len(times) else 1.0
    beta = 1 - now / then
    variance = beta if schedule.variance_type == "fixed_large" else max(beta * (1 - then) / (1 - now), 1e-20)
    mean = (np.sqrt(then) * beta * clean + np.sqrt(now / then) * (1 - then) * sample) / (1 - now)
    rows.append([mean + (np.sqrt(variance) * noise if time > 0 else 0)])
  levels = _levels(kept, times)
  return Table(
    timesteps=times, clean=np.array([_clean(schedule.prediction_type, *pair) for pair in levels]),
    update=np.array(rows), levels=levels, clip=schedule.clip_sample_range if schedule.clip_sample else None,
  )  # fmt: skip


def _ddim(schedule: Forward, steps: int, first: int) -> Table:
  """Song et al. 2020, https://arxiv.org/abs/2010.02502, equations 12 and 16; the noise is not clipped."""
  (sample,), clean, output, noise = _vectors(1)
  kept, times = schedule.alphas_cumprod, _spaced(schedule, steps)[first:]
  final = 1.0 if schedule.set_alpha_to_one else kept[0]
  levels, rows = _levels(kept, times), []
  for time, pair in zip(times.astype(int), levels):
    before = time - schedule.num_train_timesteps // steps
    now, then = kept[time], kept[before] if before >= 0 else final
    deviation = schedule.eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
    weights = _noise(schedule.prediction_type, *pair)
    predicted = weights[0] * sample + weights[1] * output
    direction = np.sqrt(1 - then - deviation**2) * predicted
    rows.append([np.sqrt(then) * clean + direction + deviation * noise])
  return Table(
    timesteps=times, clean=np.array([_clean(schedule.prediction_type, *pair) for pair in levels]),
    update=np.array(rows), levels=levels, clip=schedule.clip_sample_range if schedule.clip_sample else None,
  )  # fmt: skip


_MULTISTEP = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def _pndm(schedule: Forward, steps: int, first: int) -> Table:
  """Liu et al. 2022, https://arxiv.org/abs/2202.09778: equation 9 for a step, 12 and 13 for what it goes along.

  Slots: the sample, the one a Runge-Kutta step began with, what that step has summed, and three earlier outputs.
  Without Runge-Kutta the second step is taken twice, the first time to correct the first one.
  """
  (sample, base, running, *earlier), _, output, _ = _vectors(6)
  kept, times = schedule.alphas_cumprod, _spaced(schedule, steps)
  final = 1.0 if schedule.set_alpha_to_one else kept[0]
  gap = schedule.num_train_timesteps // steps
  if schedule.skip_prk_steps:
    runge_kutta = np.zeros(0)
    times = np.concatenate([times[:2], times[1:]])
  elif steps < 4 or first:
    raise UserError(
      f"pndm without skip_prk_steps begins with 4 steps of Runge-Kutta, which steps={steps} and a strength below 1 do "
      "not leave room for; choose another scheduler"
    )
  else:
    runge_kutta = np.stack([times[:4], times[:4] + gap // 2], axis=1)[:, ::-1].reshape(-1)[1:].repeat(2)[1:-1]
    times = np.concatenate([runge_kutta, times[3:]])
  times = times[first:].astype(int)

  def moved(start: np.ndarray, at: int, to: int, along: np.ndarray) -> np.ndarray:
    now, then = kept[at], kept[to] if to >= 0 else final
    weights = _noise(schedule.prediction_type, np.sqrt(now), np.sqrt(1 - now))
    along = weights[0] * start + weights[1] * along
    scale = now * np.sqrt(1 - then) + np.sqrt(now * (1 - now) * then)
    return np.sqrt(then / now) * start - (then - now) / scale * along

  rows, seen = [], 0
  for i, time in enumerate(times):
    if i < len(runge_kutta):
      phase, at = i % 4, int(runge_kutta[i // 4 * 4])
      start = sample if phase == 0 else base
      total = (0 if phase == 0 else running) + output / (6 if phase in (0, 3) else 3)
      row = moved(start, at, time - (0 if phase % 2 else gap // 2), total if phase == 3 else output)
      kept_outputs, seen = ([output, *earlier[:2]], seen + 1) if phase == 0 else (earlier, seen)
      rows.append([row, start, total, *kept_outputs])
    elif schedule.skip_prk_steps and i == 1:
      rows.append([moved(base, time + gap, time, (output + earlier[0]) / 2), base, running, *earlier])
    else:
      seen = min(seen + 1, 4)
      along = sum(weight * each for weight, each in zip(_MULTISTEP[seen], [output, *earlier]))
      rows.append([moved(sample, time, time - gap, along), sample, running, output, *earlier[:2]])
  return Table(
    timesteps=times, clean=np.zeros((len(times), 2)), update=np.array(rows), levels=_levels(kept, times),
  )  # fmt: skip


def _sigmas(kept: np.ndarray) -> np.ndarray:
  return np.sqrt((1 - kept) / kept)


def _without_infinity(schedule: Forward) -> np.ndarray:
  """alphas_cumprod; where nothing is left of the signal 2^-24 is, or sigma would be infinite."""
  kept = schedule.alphas_cumprod.copy()
  if schedule.rescale_betas_zero_snr:
    kept[-1] = 2.0**-24
  return kept


def _karras(largest: float, smallest: float, steps: int) -> np.ndarray:
  """Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 5."""
  ramp, power = np.linspace(0, 1, steps), 7.0
  return (largest ** (1 / power) + ramp * (smallest ** (1 / power) - largest ** (1 / power))) ** power


def _last_sigma(schedule: Forward, every: np.ndarray) -> float:
  return every[0] if schedule.final_sigmas_type == "sigma_min" else 0.0


def _euler_table(schedule: Forward, steps: int, first: int, ancestral: bool) -> Table:
  (sample,), clean, _, noise = _vectors(1)
  every = _sigmas(_without_infinity(schedule))
  times = _spaced(schedule, steps, whole=False)
  sigmas = np.interp(times, np.arange(len(every)), every)
  if schedule.use_karras_sigmas and not ancestral:
    sigmas = _karras(sigmas[0], sigmas[-1], steps)
    times = np.interp(np.log(sigmas), np.log(every), np.arange(len(every)))
  largest = sigmas.max()
  sigmas = np.append(sigmas, 0.0 if ancestral else _last_sigma(schedule, every))
  rows = []
  for now, then in zip(sigmas[first:-1], sigmas[first + 1 :]):
    up = np.sqrt(then**2 * (now**2 - then**2)) / now if ancestral else 0.0
    down = np.sqrt(then**2 - up**2)
    rows.append([sample + (sample - clean) * (down - now) / now + up * noise])
  now = sigmas[first:-1]
  signal = 1 / np.sqrt(now**2 + 1)
  weights = [_clean(schedule.prediction_type, s, s * sigma) for s, sigma in zip(signal, now)]
  return Table(
    timesteps=times[first:], input_scale=signal, update=np.array(rows),
    clean=np.array([(of_sample * s, of_output) for (of_sample, of_output), s in zip(weights, signal)]),
    levels=np.stack([np.ones_like(now), now], axis=1),
    initial_scale=np.sqrt(largest**2 + 1) if schedule.timestep_spacing == "leading" else largest,
  )  # fmt: skip


def _euler(schedule: Forward, steps: int, first: int) -> Table:
  """Karras et al. 2022, algorithm 2 without its second order and its noise."""
  return _euler_table(schedule, steps, first, ancestral=False)


def _euler_ancestral(schedule: Forward, steps: int, first: int) -> Table:
  """Euler's steps to less noise than is wanted, and fresh noise up to it."""
  return _euler_table(schedule, steps, first, ancestral=True)


def _dpm(schedule: Forward, steps: int, first: int) -> Table:
  """DPM-Solver++ of second order: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2, the midpoint form."""
  (sample, last), clean, _, _ = _vectors(2)
  every, count = _sigmas(_without_infinity(schedule)), schedule.num_train_timesteps
  if schedule.timestep_spacing == "linspace":
    times = np.linspace(0, count - 1, steps + 1).round()[:0:-1]
  elif schedule.timestep_spacing == "leading":
    times = (np.arange(steps + 1) * (count // (steps + 1)))[:0:-1] + schedule.steps_offset
  else:
    times = _spaced(schedule, steps)
  sigmas = every[times.astype(int)]
  if schedule.use_karras_sigmas:
    sigmas = _karras(every[-1], every[0], steps)
    times = np.interp(np.log(sigmas), np.log(every), np.arange(count))
    times = np.trunc(times if schedule.beta_schedule == "squaredcos_cap_v2" else times.round())
  sigmas = np.append(sigmas, _last_sigma(schedule, every))
  signal = 1 / np.sqrt(sigmas**2 + 1)
  level = sigmas * signal
  half_log_snr = -np.log(sigmas)
  few, rows = schedule.lower_order_final and steps < 15, []
  for i in range(first, steps):
    step = half_log_snr[i + 1] - half_log_snr[i]
    low = i == first
    if i == steps - 1:
      low = low or few or schedule.euler_at_final or schedule.final_sigmas_type == "zero"
    slope = 0 if low else (clean - last) * step / (half_log_snr[i] - half_log_snr[i - 1])
    row = level[i + 1] / level[i] * sample - signal[i + 1] * np.expm1(-step) * (clean + slope / 2)
    rows.append([row, clean])
  levels = np.stack([signal, level], axis=1)[first:steps]
  return Table(
    timesteps=times[first:], levels=levels, update=np.array(rows),
    clean=np.array([_clean(schedule.prediction_type, *pair) for pair in levels]),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """A sampler as files know it.

  Attributes:
    class_name: its name in `scheduler_config.json`.
    table: its numbers for (schedule, steps, steps to leave out).
    options: those only some samplers have, with their defaults.
    predictions: what its model may predict.
  """

  class_name: str
  table: Callable[[Any, int, int], Table]
  options: Mapping[str, Any]
  predictions: tuple[str, ...] = ("epsilon", "v_prediction", "sample")


_CLIP = {"clip_sample": True, "clip_sample_range": 1.0, "rescale_betas_zero_snr": False}
_SIGMAS = {
  "timestep_spacing": "linspace", "rescale_betas_zero_snr": False, "use_karras_sigmas": False,
  "final_sigmas_type": "zero",
}  # fmt: skip

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({
  "ddpm": Sampler(class_name="DDPMScheduler", table=_ddpm, options={**_CLIP, "variance_type": "fixed_small"}),
  "ddim": Sampler(class_name="DDIMScheduler", table=_ddim, options={**_CLIP, "set_alpha_to_one": True}),
  "pndm": Sampler(
    class_name="PNDMScheduler", table=_pndm, options={"skip_prk_steps": False, "set_alpha_to_one": False},
    predictions=("epsilon", "v_prediction"),
  ),
  "euler": Sampler(class_name="EulerDiscreteScheduler", table=_euler, options=_SIGMAS),
  "euler_ancestral": Sampler(
    class_name="EulerAncestralDiscreteScheduler", table=_euler_ancestral,
    options={"timestep_spacing": "linspace", "rescale_betas_zero_snr": False}, predictions=("epsilon", "v_prediction"),
  ),
  "dpm++": Sampler(
    class_name="DPMSolverMultistepScheduler", table=_dpm,
    options={**_SIGMAS, "lower_order_final": True, "euler_at_final": False},
  ),
})  # fmt: skip
