"""Levers: what a run may change about an update; all are off unless asked for."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax import models
from fsb_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levers:
  r"""What `Update` does beyond a plain step.

  Attributes:
    label_smoothing: share of every label's probability that is spread over all classes; see `losses.cross_entropy`.
      Scoring never smooths.
    r_drop: R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448): two passes over the batch whose dropout
      differs; the loss is the mean of theirs plus this times (KL(p‖q) + KL(q‖p)) / 2 of their predictions p and q.
      Without dropout it only costs time.
    fgm: Fast Gradient Method (Miyato et al. 2016, https://arxiv.org/abs/1605.07725, as Chinese leaderboards use it):
      to the gradient is added the one at the parameters whose embedding table is moved by this times g / ‖g‖, where g
      is the table's own gradient. With microbatches each has its g and its move, so that their number matters.
    fgm_parameters: regular expression for the paths of the tables that `fgm` moves, each by its own gradient.
    ema_decay: keep a moving average of the parameters, for scoring and export: after t updates
      average = d average + (1 - d) parameters with d = min(ema_decay, (1 + t) / (10 + t)); None keeps none.
    parameter_rates: regular expression -> what the learning rate (and with it weight decay) of the parameters that it
      finds is multiplied by, at 0 frozen. The first that matches counts, parameters without one have 1. They are
      searched for in paths such as `encoder/layers_3/attention/query/kernel`, whether layers are stacked or not.
      Falling by half every four layers, and without training of the embeddings:
      `{r"layers_(8|9|10|11)/": 1.0, r"layers_[4-7]/": 0.5, r"layers_[0-3]/": 0.25, r"embed": 0.0}`.
      What is frozen has no gradient and no optimizer state; where only some layers of a stacked parameter are, their
      gradients are set to zero before norms are taken.
    skip_bad_batches: go on after a bad batch, which then changes no parameter, instead of stopping.
    explosion_factor: a loss of more than this times the recent mean makes a batch bad; None looks only at whether loss
      and gradients are finite.
  """

  label_smoothing: float = 0.0
  r_drop: float = 0.0
  fgm: float = 0.0
  fgm_parameters: str = r"token_embed/"
  ema_decay: float | None = None
  parameter_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  skip_bad_batches: bool = False
  explosion_factor: float | None = None

  def __post_init__(self):
    require_number("LABEL_SMOOTHING", self.label_smoothing, "at least 0 and below 1", lambda x: 0 <= x < 1)
    require_number("R_DROP", self.r_drop, "at least 0", lambda x: x >= 0)
    require_number("FGM", self.fgm, "at least 0", lambda x: x >= 0)
    _require_pattern("FGM_PARAMETERS", self.fgm_parameters)
    if self.ema_decay is not None:
      require_number("EMA_DECAY", self.ema_decay, "None, or at least 0 and below 1", lambda x: 0 <= x < 1)
    if not isinstance(self.parameter_rates, Mapping):
      raise UserError(f"PARAMETER_RATES must be {{regular expression: factor}}, not {self.parameter_rates!r}")
    for pattern, rate in self.parameter_rates.items():
      _require_pattern("PARAMETER_RATES", pattern)
      require_number(f"PARAMETER_RATES of {pattern!r}", rate, "at least 0", lambda x: x >= 0)
    if not isinstance(self.skip_bad_batches, bool):
      raise UserError(f"SKIP_BAD_BATCHES must be True or False, not {self.skip_bad_batches!r}")
    if self.explosion_factor is not None:
      require_number("EXPLOSION_FACTOR", self.explosion_factor, "None, or above 1", lambda x: x > 1)


def require_number(name: str, value: Any, condition: str, holds: Callable[[float], bool]) -> None:
  """UserError, `name` must be a number `condition`, unless `value` is a finite number for which that `holds`."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not holds(value):
    raise UserError(f"{name} must be a number {condition}, not {value!r}")


def _require_pattern(name: str, pattern: Any) -> None:
  try:
    re.compile(pattern)
  except (TypeError, re.error) as error:
    raise UserError(f"{name}: {pattern!r} is no regular expression: {error}") from None


def rate_factors(params: Any, rates: Mapping[str, float]) -> dict[str, np.ndarray]:
  """What the learning rate of every parameter is multiplied by.

  Args:
    params: the tree of parameters, arrays or shapes, boxed or not.
    rates: see `Levers.parameter_rates`.

  Returns:
    path -> a scalar, or `[layers]` where the layers of a stacked parameter have different ones.

  Raises:
    UserError: a pattern matches nothing, or nothing that an earlier one has not; or nothing is left to train.
  """
  flat = models.flatten(params)
  names = {path: _unrolled(path, leaf) for path, leaf in flat.items()}
  factors, first = {}, set()
  for path in flat:
    matched = [next((pattern for pattern in rates if re.search(pattern, name)), None) for name in names[path]]
    first.update(matched)
    each = [1.0 if pattern is None else float(rates[pattern]) for pattern in matched]
    factors[path] = np.array(each if len(set(each)) > 1 else each[0])
  for pattern in rates:
    if pattern not in first:
      every = [name for path in flat for name in names[path]]
      if any(re.search(pattern, name) for name in every):
        raise UserError(f"PARAMETER_RATES: earlier patterns take all that {pattern!r} matches; move it up")
      some = ", ".join(every[:: max(1, len(every) // 5)])
      raise UserError(f"PARAMETER_RATES: no parameter matches {pattern!r}; there are {some} and others")
  if not any(factor.any() for factor in factors.values()):
    raise UserError("PARAMETER_RATES freezes every parameter; leave some above 0")
  return factors


def stack_of(path: str) -> str | None:
  """`a/b` for a parameter `a/b/layers/...`, which has a leading axis of layers; None for any other."""
  before, found, _ = path.partition("/layers/")
  return before if found else None


def _unrolled(path: str, leaf: Any) -> list[str]:
  """The paths that a parameter has where layers are not stacked, one per layer of a stacked one."""
  if stack_of(path) is None:
    return [path]
  # Through the box, where there is one.
  (value,) = jax.tree.leaves(leaf)
  return [path.replace("/layers/", f"/layers_{i}/", 1) for i in range(value.shape[0])]


def split(params: Any, factors: Mapping[str, np.ndarray]) -> tuple[dict, dict[str, Any]]:
  """The tree of parameters that are trained, and path -> parameter of those that are frozen whole."""
  flat = models.flatten(params)
  trained = {path: x for path, x in flat.items() if factors[path].any()}
  return models.unflatten(trained), {path: x for path, x in flat.items() if path not in trained}


def joined(trained: Any, frozen: Mapping[str, Any]) -> dict:
  """Undoes `split`."""
  return models.unflatten({**models.flatten(trained), **frozen})


def scaled(tree: Any, factors: Mapping[str, np.ndarray]) -> dict:
  """Every leaf, or every layer of a stacked one, times its factor; nothing times 0 is 0, be it infinite."""

  def one(path, x):
    factor = factors[path]
    if (factor == 1).all():
      return x
    factor = jnp.asarray(factor, x.dtype).reshape(factor.shape + (1,) * (x.ndim - factor.ndim))
    return jnp.where(factor == 0, 0, x * factor)

  return models.unflatten({path: one(path, x) for path, x in models.flatten(tree).items()})
