"""Learning rate schedules and optimizers, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsb_jax.errors import UserError

SCHEDULES = ("linear", "cosine", "inverse_sqrt", "constant")


def schedule(
  *,
  kind: str = "linear",
  learning_rate: float = 2e-5,
  train_steps: int,
  warmup_steps: int | None = None,
  warmup_ratio: float = 0.1,
  final_learning_rate: float = 0.0,
) -> optax.Schedule:
  """A learning rate that rises linearly from 0 and then falls.

  Args:
    kind: "linear" or "cosine" falls to `final_learning_rate` at `train_steps`; "inverse_sqrt" falls as
      sqrt(warmup_steps / step); "constant" stays.
    learning_rate: the highest, reached after the warm-up.
    train_steps: length of the run.
    warmup_steps: steps of the warm-up; `warmup_ratio` of the run if not given.
    warmup_ratio: see `warmup_steps`.
    final_learning_rate: at the end of "linear" and "cosine".

  Returns:
    A function of the number of updates done so far.
  """
  if not isinstance(train_steps, int) or train_steps < 1:
    raise UserError(f"TRAIN_STEPS must be a whole number above 0, not {train_steps!r}")
  if kind not in SCHEDULES:
    raise UserError(f"unknown learning rate schedule {kind!r}; known: {', '.join(SCHEDULES)}")
  warmup = int(train_steps * warmup_ratio) if warmup_steps is None else warmup_steps
  if learning_rate <= 0:
    raise UserError(f"LEARNING_RATE must be above 0, not {learning_rate}")
  if not 0 <= warmup <= train_steps:
    raise UserError(f"warm-up of {warmup} steps does not fit into a run of {train_steps}")
  decay_steps = max(train_steps - warmup, 1)
  if kind == "linear":
    after = optax.linear_schedule(learning_rate, final_learning_rate, decay_steps)
  elif kind == "cosine":
    after = optax.cosine_decay_schedule(learning_rate, decay_steps, final_learning_rate / learning_rate)
  elif kind == "inverse_sqrt":
    start = max(warmup, 1)
    after = lambda step: learning_rate * (start / (step + start)) ** 0.5  # noqa: E731 - optax's own form
  else:
    after = optax.constant_schedule(learning_rate)
  if warmup:
    after = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])
  # As a float of the widest kind in use: the quotient of 32-bit integers has 32 bits even where 64 are switched on.
  return lambda step: after(jnp.asarray(step, float))


def decay_mask(params: Any) -> Any:
  """True for what weight decay touches: kernels and embedding tables, not biases and norm scales."""

  def decayed(path, _):
    # The last name, past the attribute that boxed parameters add.
    return [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1] in ("kernel", "embedding")

  return jax.tree_util.tree_map_with_path(decayed, params)


def adamw(
  *,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float = 0.01,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  max_gradient_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101) after clipping by the global norm.

  Args:
    learning_rate: a number or a schedule.
    weight_decay: for what `decay_mask` selects, multiplied by the learning rate.
    beta1: decay of the mean of gradients.
    beta2: decay of the mean of squared gradients.
    epsilon: added to the root of the latter.
    max_gradient_norm: gradients of a larger global norm are scaled down to it; None does not clip.
  """
  optimizer = optax.adamw(
    learning_rate, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay, mask=decay_mask
  )
  if max_gradient_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)


