"""Beam search, as transformers' `generate` does it.

Of every prompt `beams` texts run. A step looks at the best continuations of all of them together, twice as many as
there are beams (more where several tokens end a text), so that enough go on where some end; ended ones are kept by
their log-probability over length ** length_penalty. Source: https://github.com/huggingface/transformers,
generation/utils.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.generation.decoding import Programs, run_model
from fsb_jax.generation.processors import Rules, ends, process

# The score of what is no candidate; finite, as in transformers, so that it can be added to.
_NONE = -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamRules:
  """How beams are kept; see `GenerationOptions`."""

  beams: int
  early_stopping: bool | Literal["never"]


@struct.dataclass
class BeamState:
  """Texts as they grow; donated to every step.

  Attributes:
    texts: int `[batch, beams, length]`, the running ones, prompts at the left.
    real: bool `[batch * beams, length]`, which tokens are no padding.
    scores: `[batch, beams]`, their log-probabilities, best first.
    index: int scalar, up to where they are filled.
    positions: int `[batch * beams]`, position id of the last token.
    cache: the model's, of all tokens but the last.
    ended: int `[batch, beams, length]`, the best of those that have ended.
    ended_scores: `[batch, beams]`, what they are ranked by.
    is_ended: bool `[batch, beams]`, whether there is one.
    improvable: bool `[batch]`, whether running texts may yet be better than ended ones.
    going: bool scalar, whether the search goes on.
  """

  texts: jax.Array
  real: jax.Array
  scores: jax.Array
  index: jax.Array
  positions: jax.Array
  cache: Any
  ended: jax.Array
  ended_scores: jax.Array
  is_ended: jax.Array
  improvable: jax.Array
  going: jax.Array


class BeamPrograms(Programs):
  """The compiled functions of beam search, of a model under some rules; the arguments are those of `Programs`."""

  def __init__(self, model: nn.Module, rules: Rules, beam_rules: BeamRules, jit: Callable):
    self.beam_rules = beam_rules
    super().__init__(model, rules, jit)

  def _begin(self, params, state: BeamState, numbers, encoded, tokens, mask, positions, repeats) -> BeamState:
    """Reads the prompts' last part, makes beams of the rows, and takes a step."""
    logits, cache = run_model(self.model, params, tokens, mask, positions, state.cache, encoded)
    state = state.replace(cache=cache.taken(repeats), positions=state.positions + 1)
    return self._step(state, numbers, logits[:, -1][repeats])

  def _go_on(self, params, state: BeamState, numbers, encoded, count: int) -> BeamState:
    """Takes up to `count` steps; fewer where the search ends."""

    def step(state: BeamState) -> BeamState:
      batch, beams, length = state.texts.shape
      last = jax.lax.dynamic_slice_in_dim(state.texts.reshape(-1, length), state.index - 1, 1, axis=1)
      logits, cache = run_model(self.model, params, last, None, state.positions[:, None], state.cache, encoded)
      return self._step(state.replace(cache=cache, positions=state.positions + 1), numbers, logits[:, -1])

    if count == 1:
      return step(state)
    start = jnp.int32(0), state
    return jax.lax.while_loop(
      lambda carry: (carry[0] < count) & carry[1].going, lambda carry: (carry[0] + 1, step(carry[1])), start
    )[1]

  def _step(self, state: BeamState, numbers, logits: jax.Array) -> BeamState:
    beams, rules = self.beam_rules.beams, self.rules
    batch, _, length = state.texts.shape
    flat = state.texts.reshape(-1, length)
    scores = process(rules, numbers, jax.nn.log_softmax(logits), flat, state.real, state.index)
    vocab = scores.shape[-1]
    candidates = (scores.reshape(batch, beams, vocab) + state.scores[..., None]).reshape(batch, -1)
    kept = max(2, 1 + len(rules.eos_token_id)) * beams
    candidate_scores, chosen = jax.lax.top_k(candidates, kept)
    parents, tokens = chosen // vocab, (chosen % vocab).astype(jnp.int32)
    texts = _rows(state.texts, parents)
    texts = jax.lax.dynamic_update_slice_in_dim(texts, tokens[..., None], state.index, axis=2)
    full = state.index + 1 >= numbers.longest
    stops = ends(rules, tokens) | full

    # Those that go on.
    running_scores, order = jax.lax.top_k(candidate_scores + stops * _NONE, beams)
    parent = jnp.take_along_axis(parents, order, axis=1)
    rows = (parent + jnp.arange(batch)[:, None] * beams).reshape(-1)

    # Those that end among the best.
    written = (state.index + 1 - numbers.prompt_end).astype(candidate_scores.dtype)
    ended_now = stops & (jnp.arange(kept) < beams)
    closed = jnp.all(state.is_ended, axis=1) & (self.beam_rules.early_stopping is True)
    final = candidate_scores / written**numbers.length_penalty
    final += (closed | ~state.improvable)[:, None] * _NONE + ~ended_now * _NONE
    ended_scores, best = jax.lax.top_k(jnp.concatenate([state.ended_scores, final], axis=1), beams)
    is_ended = jnp.take_along_axis(jnp.concatenate([state.is_ended, ended_now], axis=1), best, axis=1)
    ended = _rows(jnp.concatenate([state.ended, texts], axis=1), best)

    improvable = state.improvable & self._improvable(numbers, running_scores, ended_scores, is_ended, written)
    going = improvable.any() & ~stops.all()
    if self.beam_rules.early_stopping is True:
      going &= ~is_ended.all()
    return state.replace(
      texts=_rows(texts, order),
      real=jax.lax.dynamic_update_slice_in_dim(
        state.real[rows], jnp.ones((batch * beams, 1), bool), state.index, axis=1
      ),
      scores=running_scores,
      index=state.index + 1,
      cache=state.cache.taken(rows),
      ended=ended,
      ended_scores=ended_scores,
      is_ended=is_ended,
      improvable=improvable,
      going=going,
    )

  def _improvable(self, numbers, running_scores, ended_scores, is_ended, written) -> jax.Array:
    """Whether the best running text could rank above the worst ended one, `[batch]`."""
    length = written
    if self.beam_rules.early_stopping == "never":
      longest = (numbers.longest - numbers.prompt_end).astype(written.dtype)
      length = jnp.where(numbers.length_penalty > 0, longest, written)
    possible = running_scores[:, 0] / length**numbers.length_penalty
    worst = jnp.where(is_ended, jnp.min(ended_scores, axis=1, keepdims=True), _NONE)
    return jnp.any(possible[:, None] > worst, axis=1)


def _rows(x: jax.Array, which: jax.Array) -> jax.Array:
  """`[batch, beams, ...]` by `[batch, chosen]`."""
  return jax.vmap(lambda rows, chosen: rows[chosen])(x, which)
