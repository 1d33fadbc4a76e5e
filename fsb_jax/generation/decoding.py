"""One token after the other: a state on the device, the function that moves it on, and the loop on the host."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.generation.processors import Numbers, Rules, ends, guided, process, warp


@struct.dataclass
class State:
  """Texts as they grow; donated to every step.

  Attributes:
    texts: int `[rows, length]`, prompts at the left, room for what is written at the right.
    index: int scalar, up to where they are filled.
    real: bool `[rows, length]`, which tokens are no padding.
    positions: int `[rows]`, position id of the last token; with guidance of twice the rows, as the cache is.
    cache: the model's, of all tokens but the last.
    finished: bool `[rows]`.
    logprobs: float32 `[rows, length]`, of the tokens written.
    key: of the random numbers.
  """

  texts: jax.Array
  index: jax.Array
  real: jax.Array
  positions: jax.Array
  cache: Any
  finished: jax.Array
  logprobs: jax.Array
  key: jax.Array


def run_model(
  model: nn.Module,
  params: Any,
  tokens: jax.Array,
  mask: jax.Array | None,
  positions: jax.Array,
  cache: Any,
  encoded: Any,
  score: int = 1,
) -> tuple[jax.Array, Any]:
  """Reads tokens and scores what follows the last ones.

  Args:
    model: a decoder or an encoder-decoder.
    params: its parameters.
    tokens: int `[rows, new]`.
    mask: bool `[rows, new]`, None for all real.
    positions: int `[rows, new]`, position ids, which encoder-decoders count themselves.
    cache: of the tokens before.
    encoded: (encoder's output, its mask) of an encoder-decoder, else None.
    score: how many of the last tokens to score after.

  Returns:
    Scores `[rows, score, vocab]` in at least float32, and the cache.
  """
  rows, new = tokens.shape
  asked = None
  if score < new:
    asked = jnp.broadcast_to(jnp.arange(new - score, new), (rows, score))
  if encoded is None:
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
  else:
    outputs, encoder_mask = encoded
    inputs = {
      "encoder_outputs": outputs, "attention_mask": encoder_mask,
      "decoder_input_ids": tokens, "decoder_attention_mask": mask,
    }  # fmt: skip
  outputs = model.apply({"params": params}, **inputs, cache=cache, lm_positions=asked)
  logits = outputs.logits
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), outputs.cache


def position_ids(real: jax.Array) -> jax.Array:
  """Position ids of tokens `[rows, length]`, of which padding takes none."""
  return jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)


def choose(rules: Rules, numbers: Numbers, logits: jax.Array, state: State) -> State:
  """Writes the token that `logits` `[rows, vocab]` (with guidance twice the rows) ask for."""
  raw = logits
  if "guidance_scale" in rules.active:
    raw, unconditional = jnp.split(logits, 2)
    logits = guided(numbers, raw, unconditional)
  scores = process(rules, numbers, logits, state.texts, state.real, state.index)
  key = state.key
  if rules.sample:
    key, use = jax.random.split(key)
    tokens = draw(use, warp(rules, numbers, scores))
  else:
    tokens = jnp.argmax(scores, axis=-1)
  tokens = jnp.where(state.finished, rules.padding, tokens).astype(jnp.int32)
  logprobs = state.logprobs
  if rules.logprobs:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(raw), tokens[:, None], axis=-1)
    chosen = jnp.where(state.finished[:, None], 0.0, chosen).astype(logprobs.dtype)
    logprobs = jax.lax.dynamic_update_slice_in_dim(logprobs, chosen, state.index, axis=1)
  return state.replace(
    texts=jax.lax.dynamic_update_slice_in_dim(state.texts, tokens[:, None], state.index, axis=1),
    real=jax.lax.dynamic_update_slice_in_dim(state.real, ~state.finished[:, None], state.index, axis=1),
    index=state.index + 1,
    finished=state.finished | ends(rules, tokens),
    logprobs=logprobs,
    key=key,
  )


def row_keys(key: jax.Array, rows: int) -> jax.Array:
  """A key for every row, whatever others there are: a mesh may ask for more of them."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def draw(key: jax.Array, scores: jax.Array) -> jax.Array:
  """A token of every row by its scores, `[rows, ..., vocab]` to `[rows, ...]`."""
  return jax.vmap(jax.random.categorical)(row_keys(key, len(scores)), scores)


class Programs:
  """The compiled functions of greedy search and sampling, of a model under some rules.

  Args:
    model: a decoder or an encoder-decoder, its layers not scanned.
    rules: in force.
    jit: what compiles, `jax.jit` or that of a partitioner.
  """

  def __init__(self, model: nn.Module, rules: Rules, jit: Callable):
    self.model, self.rules = model, rules
    self.read = jit(self._read, donate_argnums=1)
    self.begin = jit(self._begin, donate_argnums=1)
    # The cache of more rows than were read is another one.
    self.begin_with_copies = jit(self._begin)
    self.go_on = jit(self._go_on, donate_argnums=1, static_argnums=4)

  def _read(self, params, cache, tokens, mask, positions, encoded):
    """Reads a part of the prompts, which another follows."""
    return run_model(self.model, params, tokens, mask, positions, cache, encoded)[1]

  def _begin(self, params, state: State, numbers, encoded, tokens, mask, positions, repeats) -> State:
    """Reads the prompts' last part and writes a token, each row going on in the rows where `repeats` names it."""
    logits, cache = run_model(self.model, params, tokens, mask, positions, state.cache, encoded)
    logits = logits[:, -1]
    if repeats is not None:
      logits, cache = logits[repeats], cache.taken(repeats)
    return choose(self.rules, numbers, logits, state.replace(cache=cache, positions=state.positions + 1))

  def _go_on(self, params, state: State, numbers, encoded, count: int) -> State:
    """Writes up to `count` tokens; fewer where all texts are finished."""

    def step(state: State) -> State:
      last = jax.lax.dynamic_slice_in_dim(state.texts, state.index - 1, 1, axis=1)
      last = jnp.tile(last, (len(state.positions) // len(last), 1))
      logits, cache = run_model(self.model, params, last, None, state.positions[:, None], state.cache, encoded)
      return choose(self.rules, numbers, logits[:, -1], state.replace(cache=cache, positions=state.positions + 1))

    if count == 1:
      return step(state)

    def unfinished(carry):
      made, state = carry
      return (made < count) & ~state.finished.all() & (state.index < numbers.longest)

    return jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, step(carry[1])), (0, state))[1]
