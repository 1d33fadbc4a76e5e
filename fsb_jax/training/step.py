"""Train and eval steps: pure functions of a state and a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from fsb_jax.training.losses import Objective

# What of a batch a model takes; the rest is for the loss and for people.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@struct.dataclass
class TrainState:
  """What a run carries from step to step.

  Attributes:
    step: updates done, int32 scalar.
    params: unboxed parameters.
    optimizer: the optimizer's state.
  """

  step: jax.Array
  params: Any
  optimizer: Any


def new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, optimizer=optimizer.init(params))


def train_step(
  model: nn.Module,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  seed: int = 0,
  microbatches: int = 1,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
  """Makes the function of one update.

  Dropout keys are fold_in(fold_in(seed, step), microbatch): the same whatever the mesh, and after a resume.

  Args:
    model: the module.
    objective: the loss of its head.
    optimizer: the update rule.
    seed: of dropout.
    microbatches: parts a batch is cut into, gradients added up; the update equals that of the whole batch.

  Returns:
    (state, batch) -> (state, metrics): `loss`, `gradient_norm`, `examples`, `tokens`.
  """

  def gradients(params, batch, weights, key):
    def loss_of(params):
      inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
      outputs = model.apply({"params": params}, **inputs, deterministic=False, rngs={"dropout": key})
      return objective(outputs, batch, weights)

    return jax.value_and_grad(loss_of)(params)

  def step(state: TrainState, batch: Mapping[str, jax.Array]):
    weights = objective.weights(batch)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if microbatches == 1:
      loss, grads = gradients(state.params, batch, weights, jax.random.fold_in(key, 0))
    else:
      # Interleaved, so that every device keeps its part of every microbatch.
      parts = {name: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}

      def add(carry, part_and_index):
        part, index = part_and_index
        part = {name: nn.with_logical_constraint(x, ("activation_batch",)) for name, x in part.items()}
        one = gradients(state.params, part, weights, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, one), None

      loss_dtype = jax.eval_shape(gradients, state.params, jax.tree.map(lambda x: x[0], parts), weights, key)[0].dtype
      zero = (jnp.zeros((), loss_dtype), jax.tree.map(jnp.zeros_like, state.params))
      (loss, grads), _ = jax.lax.scan(add, zero, (parts, jnp.arange(microbatches)))
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
    metrics = {
      "loss": loss,
      "gradient_norm": optax.tree.norm(grads),
      "examples": jnp.sum(batch["weights"]),
      "tokens": _real_tokens(batch),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(step=state.step + 1, params=params, optimizer=optimizer_state), metrics

  return step


def _real_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
  """How many tokens the real rows hold; under a dense mask, those that some query sees."""
  mask = batch["attention_mask"]
  if mask.ndim > batch["input_ids"].ndim:
    mask = mask.max(axis=-2)
  return jnp.sum(mask * batch["weights"].astype(jnp.int32).reshape(-1, *(1,) * (mask.ndim - 1)))


def eval_step(model: nn.Module, objective: Objective) -> Callable[[Any, Mapping[str, jax.Array]], dict[str, jax.Array]]:
  """Makes the function that scores a batch.

  Returns:
    (params, batch) -> `logits`, the loss's `sums` and `weights` by term, and the batch's own `labels`, `weights` and
    `example_ids`, so that every host sees all rows.
  """

  def step(params, batch):
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    outputs = model.apply({"params": params}, **inputs)
    return {
      "logits": outputs.logits,
      "sums": objective.sums(outputs, batch),
      "term_weights": objective.weights(batch),
      **{name: batch[name] for name in ("labels", "weights", "example_ids")},
    }

  return step
