"""Train and eval steps: pure functions of a state and a batch."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.layers import at_least_float32
from fsb_jax.training.levers import Levers, joined, rate_factors, scaled, split
from fsb_jax.training.losses import Objective

Batch = Mapping[str, jax.Array]

# The typical loss is the mean of about so many good steps, and known after a few.
TYPICAL_STEPS, FEW_STEPS = 100, 20


@struct.dataclass
class TrainState:
  """What a run carries from step to step.

  Attributes:
    step: updates done, bad batches included, int32 scalar.
    seed: of dropout, uint32 scalar.
    params: unboxed parameters.
    optimizer: the optimizer's state, of the parameters that are not frozen.
    average: moving average of the parameters in at least float32, or None.
    typical_loss: running mean of the losses of good batches, float32 scalar.
    good_steps: how many there were, int32 scalar.
  """

  step: jax.Array
  seed: jax.Array
  params: Any
  optimizer: Any
  average: Any
  typical_loss: jax.Array
  good_steps: jax.Array

  @property
  def model_params(self) -> Any:
    """The parameters to score and export: the average where there is one."""
    return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """One update of a training run, as a function to jit.

  Dropout keys are fold_in(fold_in(seed, step), microbatch): the same whatever the mesh, and after a resume.

  Attributes:
    model: the module.
    objective: the loss of its head.
    optimizer: the update rule.
    microbatches: parts a batch is cut into, gradients added up; without `levers.fgm` the update equals that of the
      whole batch.
    levers: what differs from a plain step.
  """

  model: nn.Module
  objective: Objective
  optimizer: optax.GradientTransformation
  _: dataclasses.KW_ONLY
  microbatches: int = 1
  levers: Levers = Levers()

  # What profiles and compilation logs call the compiled function.
  __name__ = "update"

  def first_state(self, params: Any, seed: int | jax.Array = 0) -> TrainState:
    """The state before the first step.

    Args:
      params: parameters of the model, boxed ones under `jax.eval_shape`.
      seed: of dropout.

    Raises:
      UserError: `levers` name parameters that the model lacks, or ask for what the loss has not.
    """
    if (self.levers.r_drop or self.levers.label_smoothing) and not self.objective.classifies:
      raise UserError("R_DROP and LABEL_SMOOTHING are for losses of classes, which this head's is not; set both to 0")
    trained, _ = split(params, rate_factors(params, self.levers.parameter_rates))
    if self.levers.fgm:
      self._tables(trained)
    average = None
    if self.levers.ema_decay is not None:
      # Copies: parameters and average are donated to the first step.
      average = jax.tree.map(lambda x: jnp.array(x, at_least_float32(x.dtype)), params)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      seed=jnp.asarray(seed, jnp.uint32),
      params=params,
      optimizer=self.optimizer.init(trained),
      average=average,
      typical_loss=jnp.zeros((), jnp.float32),
      good_steps=jnp.zeros((), jnp.int32),
    )

  def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """Does one step.

    A batch is bad where its loss or gradient norm is not finite, or its loss is above `levers.explosion_factor` times
    the typical one of at least `FEW_STEPS` good batches. With `levers.skip_bad_batches` it changes nothing in the state
    but the count of steps; without, the state is not to be used any more.

    Args:
      state: from `first_state` or the last step.
      batch: what a loader yields.

    Returns:
      The next state, and the metrics `loss` (what is minimised: that of R-Drop has its divergence in it),
      `gradient_norm` (global, before clipping), `bad` (1 or 0), `examples` and `tokens`.
    """
    factors = rate_factors(state.params, self.levers.parameter_rates)
    trained, frozen = split(state.params, factors)
    loss, gradients = self._loss_and_gradients(trained, frozen, batch, state)
    # As if the frozen layers of a stack had none: norm and clipping see what is trained.
    gradients = scaled(gradients, {path: factor != 0 for path, factor in factors.items()})
    norm = global_norm(gradients)
    updates, optimizer = self.optimizer.update(gradients, state.optimizer, trained)
    params = joined(optax.apply_updates(trained, scaled(updates, factors)), frozen)
    good_steps = state.good_steps + 1
    good = TrainState(
      step=state.step,
      seed=state.seed,
      params=params,
      optimizer=optimizer,
      average=self._next_average(state, params),
      typical_loss=state.typical_loss
      + (loss.astype(jnp.float32) - state.typical_loss) / jnp.minimum(good_steps, TYPICAL_STEPS),
      good_steps=good_steps,
    )
    bad = self._is_bad(state, loss, norm)
    if self.levers.skip_bad_batches:
      # Only where the run goes on with it: on the CPU the choice copies the optimizer's moments.
      good = jax.tree.map(lambda old, new: jnp.where(bad, old, new), state, good)
    state = good.replace(step=state.step + 1)
    return state, {
      "loss": loss,
      "gradient_norm": norm,
      "bad": bad.astype(jnp.float32),
      "examples": jnp.sum(batch["weights"]),
      "tokens": _real_tokens(batch),
    }

  def _loss_and_gradients(self, trained, frozen, batch: Batch, state: TrainState):
    """Of the whole batch; `frozen` as in `levers.split`."""
    weights = self.objective.weights(batch)
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)

    def of_part(part, index):
      return self._of_microbatch(trained, frozen, part, weights, jax.random.fold_in(key, index))

    if self.microbatches == 1:
      return of_part(batch, 0)
    # Interleaved, so that every device keeps its part of every microbatch.
    parts = {name: x.reshape(-1, self.microbatches, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}

    def add(carry, part_and_index):
      part, index = part_and_index
      part = {name: nn.with_logical_constraint(x, ("activation_batch",)) for name, x in part.items()}
      return jax.tree.map(jnp.add, carry, of_part(part, index)), None

    loss_dtype = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts), 0)[0].dtype
    zero = (jnp.zeros((), loss_dtype), jax.tree.map(jnp.zeros_like, trained))
    return jax.lax.scan(add, zero, (parts, jnp.arange(self.microbatches)))[0]

  def _of_microbatch(self, trained, frozen, batch: Batch, weights, key: jax.Array):
    def loss_of(trained, key):
      return self._loss(joined(trained, frozen), batch, weights, key)

    loss, gradients = jax.value_and_grad(loss_of)(trained, key)
    if self.levers.fgm:
      moved = self._against_the_loss(trained, gradients)
      gradients = jax.tree.map(jnp.add, gradients, jax.grad(loss_of)(moved, jax.random.fold_in(key, 1)))
    return loss, gradients

  def _loss(self, params, batch: Batch, weights, key: jax.Array) -> jax.Array:
    inputs = {name: batch[name] for name in models.input_names(self.model) if name in batch}
    levers = self.levers
    passes = [
      self.model.apply({"params": params}, **inputs, deterministic=False, rngs={"dropout": key})
      for key in (jax.random.split(key) if levers.r_drop else [key])
    ]
    loss = sum(self.objective(outputs, batch, weights, levers.label_smoothing) for outputs in passes) / len(passes)
    if levers.r_drop:
      loss += levers.r_drop * self.objective.divergence(*passes, batch, weights)
    return loss

  def _tables(self, trained) -> list[str]:
    """Paths of the embedding tables that FGM moves."""
    tables = [path for path in models.flatten(trained) if path.endswith("/embedding")]
    found = [path for path in tables if re.search(self.levers.fgm_parameters, path)]
    if not found:
      raise UserError(
        f"FGM_PARAMETERS {self.levers.fgm_parameters!r} matches no embedding table that is trained; there are "
        f"{', '.join(tables) or 'none'}"
      )
    return found

  def _against_the_loss(self, trained, gradients):
    """The parameters with each table a step of length `levers.fgm` up its gradient; unmoved where there is none."""
    flat, slopes = models.flatten(trained), models.flatten(gradients)
    for path in self._tables(trained):
      norm = global_norm(slopes[path])
      usable = jnp.isfinite(norm) & (norm > 0)
      move = slopes[path] * (self.levers.fgm / jnp.where(usable, norm, 1))
      flat[path] += jnp.where(usable, move, 0).astype(flat[path].dtype)
    return models.unflatten(flat)

  def _next_average(self, state: TrainState, params):
    if state.average is None:
      return None
    # As a float of the widest kind in use: the quotient of 32-bit integers has 32 bits even where 64 are switched on.
    done = jnp.asarray(state.step, float)
    rest = 1 - jnp.minimum(self.levers.ema_decay, (1 + done) / (10 + done))
    # Of this form, what is frozen stays as it is to the last bit.
    return jax.tree.map(lambda mean, x: mean + rest.astype(mean.dtype) * (x - mean), state.average, params)

  def _is_bad(self, state: TrainState, loss: jax.Array, norm: jax.Array) -> jax.Array:
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
    if self.levers.explosion_factor is not None:
      exploded = loss > self.levers.explosion_factor * state.typical_loss
      bad |= exploded & (state.good_steps >= FEW_STEPS)
    return bad


def global_norm(tree) -> jax.Array:
  """Root of the sum of all squares of a tree, in at least float32."""
  leaves = (x.astype(at_least_float32(x.dtype)) for x in jax.tree.leaves(tree))
  return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in leaves))


def _real_tokens(batch: Batch) -> jax.Array:
  """How many tokens the real rows hold; under a dense mask, those that some query sees."""
  mask = batch["attention_mask"]
  if mask.ndim > batch["input_ids"].ndim:
    mask = mask.max(axis=-2)
  return jnp.sum(mask * batch["weights"].astype(jnp.int32).reshape(-1, *(1,) * (mask.ndim - 1)))


def abstract_state(update: Update) -> TrainState:
  """Shapes of the first state, with logical names on what has its parameter's shape; nothing is allocated.

  Other leaves (counters, the factored statistics of Adafactor) have none, so that every device holds them whole.
  """
  # Sizes travel with the names, for an optimizer makes leaves of other shapes in the parameters' boxes.
  params = models.abstract_params(update.model)
  sized = jax.tree.map(lambda box: box.replace(names=tuple(zip(box.names, box.value.shape))), params, is_leaf=_is_box)

  def with_names(leaf):
    if not _is_box(leaf):
      return leaf
    fits = leaf.value.shape == tuple(size for _, size in leaf.names)
    return leaf.replace(names=tuple(name for name, _ in leaf.names)) if fits else leaf.value

  return jax.tree.map(with_names, jax.eval_shape(update.first_state, sized), is_leaf=_is_box)


def _is_box(x: Any) -> bool:
  return isinstance(x, nn.LogicallyPartitioned)


def eval_step(model: nn.Module, objective: Objective) -> Callable[[Any, Batch], dict[str, jax.Array]]:
  """Makes the function that scores a batch.

  Returns:
    (params, batch) -> the objective's `answers`; the loss's `sums` and `term_weights` by term; and the batch's own
    `weights` and `example_ids`, so that every host sees all rows.
  """

  def step(params, batch):
    inputs = {name: batch[name] for name in models.input_names(model) if name in batch}
    outputs = model.apply({"params": params}, **inputs)
    return {
      **objective.answers(outputs, batch),
      "sums": objective.sums(outputs, batch),
      "term_weights": objective.weights(batch),
      **{name: batch[name] for name in ("weights", "example_ids")},
    }

  return step
