"""Learning rate schedules and optimizers, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training.levers import require_number, stack_of

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
  require_number("LEARNING_RATE", learning_rate, "above 0", lambda x: x > 0)
  require_number("WARMUP_RATIO", warmup_ratio, "from 0 to 1", lambda x: 0 <= x <= 1)
  require_number("final_learning_rate", final_learning_rate, "at least 0", lambda x: x >= 0)
  warmup = int(train_steps * warmup_ratio) if warmup_steps is None else warmup_steps
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
    name = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
    return name in ("kernel", "embedding") or name.endswith("_embed")

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
  require_number("beta1", beta1, "at least 0 and below 1", _is_decay)
  require_number("beta2", beta2, "at least 0 and below 1", _is_decay)
  require_number("epsilon", epsilon, "above 0", lambda x: x > 0)
  return _clipped_and_decayed(
    optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon), learning_rate, weight_decay, max_gradient_norm
  )


def lion(
  *,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float = 0.1,
  beta1: float = 0.9,
  beta2: float = 0.99,
  max_gradient_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675): the sign of a mean of gradients, half of AdamW's memory.

  Every update is as long as the learning rate allows, so that it wants one 3 to 10 times smaller than AdamW and a
  weight decay larger by as much.

  Args:
    learning_rate: a number or a schedule.
    weight_decay: for what `decay_mask` selects, multiplied by the learning rate.
    beta1: weight of the mean, beside the gradient's, in what gives the sign.
    beta2: decay of the mean of gradients.
    max_gradient_norm: gradients of a larger global norm are scaled down to it; None does not clip.
  """
  require_number("beta1", beta1, "at least 0 and below 1", _is_decay)
  require_number("beta2", beta2, "at least 0 and below 1", _is_decay)
  return _clipped_and_decayed(
    optax.scale_by_lion(b1=beta1, b2=beta2), learning_rate, weight_decay, max_gradient_norm
  )


def adafactor(
  *,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float = 0.0,
  decay_exponent: float = 0.8,
  epsilon: float = 1e-30,
  clipping_threshold: float = 1.0,
  scale_by_parameter: bool = True,
  smallest_factored: int = 32,
  max_gradient_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235) without momentum: almost no memory.

  It keeps the squares of gradients as means over the rows and over the columns of the two largest axes of a layer's
  kernel. Other axes, such as attention heads, have means of their own.

  Args:
    learning_rate: a number or a schedule; relative to the root mean square of each parameter, where 1e-3 to 1e-2 is
      usual, unless `scale_by_parameter` is False.
    weight_decay: for what `decay_mask` selects, multiplied by the learning rate.
    decay_exponent: after t updates the squares decay by 1 - t ** -decay_exponent.
    epsilon: added to the squares.
    clipping_threshold: the update of a parameter (of a layer, where layers are stacked) of a larger root mean square,
      before the learning rate, is scaled down to it.
    scale_by_parameter: multiply updates by the root mean square of the parameter, at least 1e-3.
    smallest_factored: a kernel that has no two axes of at least this size keeps all its squares.
    max_gradient_norm: gradients of a larger global norm are scaled down to it; None does not clip.
  """
  require_number("decay_exponent", decay_exponent, "above 0 and at most 1", lambda x: 0 < x <= 1)
  require_number("epsilon", epsilon, "above 0", lambda x: x > 0)
  require_number("clipping_threshold", clipping_threshold, "above 0", lambda x: x > 0)
  require_number("smallest_factored", smallest_factored, "of at least 1", lambda x: x >= 1)
  rule = [
    optax.scale_by_factored_rms(
      decay_rate=decay_exponent, epsilon=epsilon, min_dim_size_to_factor=smallest_factored
    ),
    optax.clip_by_block_rms(clipping_threshold),
  ]
  if scale_by_parameter:
    rule.append(optax.scale_by_param_block_rms())
  return _clipped_and_decayed(layer_by_layer(optax.chain(*rule)), learning_rate, weight_decay, max_gradient_norm)


def layer_by_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """`rule` for every layer of a stacked parameter by itself, so that scanned and unrolled models train alike.

  Needed where a rule takes means over a parameter; its state is a tuple, of what is not stacked and of each stack.
  """

  def groups(tree):
    """Stack -> the parameters in it; "" -> those in none."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in models.flatten(tree).items():
      found.setdefault(stack_of(path) or "", {})[path] = leaf
    return dict(sorted((stack, models.unflatten(group)) for stack, group in found.items()))

  def over_layers(stack, function):
    return jax.vmap(function) if stack else function

  def init(params):
    return tuple(over_layers(stack, rule.init)(group) for stack, group in groups(params).items())

  def update(updates, state, params):
    done = [
      over_layers(stack, rule.update)(group, part, of_group)
      for (stack, group), part, of_group in zip(groups(updates).items(), state, groups(params).values(), strict=True)
    ]
    flat = {path: leaf for group, _ in done for path, leaf in models.flatten(group).items()}
    return models.unflatten(flat), tuple(part for _, part in done)

  return optax.GradientTransformation(init, update)


def _is_decay(value: float) -> bool:
  return 0 <= value < 1


def _clipped_and_decayed(
  rule: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float,
  max_gradient_norm: float | None,
) -> optax.GradientTransformation:
  """`rule` after clipping and before weight decay, both times the learning rate."""
  if not callable(learning_rate):
    require_number("LEARNING_RATE", learning_rate, "above 0", lambda x: x > 0)
  require_number("WEIGHT_DECAY", weight_decay, "at least 0", lambda x: x >= 0)
  parts = [rule, optax.add_decayed_weights(weight_decay, mask=decay_mask), optax.scale_by_learning_rate(learning_rate)]
  if max_gradient_norm is None:
    return optax.chain(*parts)
  require_number("MAX_GRADIENT_NORM", max_gradient_norm, "None, or above 0", lambda x: x > 0)
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), optax.chain(*parts))
