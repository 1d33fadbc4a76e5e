"""Speculative decoding: a small model proposes tokens, a large one reads them at once and keeps what it agrees to.

Greedy texts are the large model's own; drawn ones have its distribution (Leviathan et al. 2022, 2211.17192, theorem 1).
Rows of a batch go on together: each keeps as many tokens as the row that keeps the fewest, which its own chances do not
depend on.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.generation.decoding import State, draw, row_keys, run_model
from fsb_jax.generation.processors import Rules, ends, process, warp


@struct.dataclass
class SpeculativeState:
  """Texts as they grow; donated to every round.

  Attributes:
    target: the large model's; its `texts` are what is written.
    cache: the small model's, of all tokens but the last.
    proposed: int scalar, tokens proposed so far to unfinished texts.
    accepted: int scalar, how many of these the large model agreed to.
  """

  target: State
  cache: Any
  proposed: jax.Array
  accepted: jax.Array


class SpeculativePrograms:
  """The compiled functions of a large model and a small one, under some rules.

  Args:
    model: the large one, its layers not scanned.
    draft: the small one, likewise.
    rules: in force.
    count: tokens that are proposed at a time.
    jit: what compiles, `jax.jit` or that of a partitioner.
  """

  def __init__(self, model: nn.Module, draft: nn.Module, rules: Rules, count: int, jit: Callable):
    self.model, self.draft, self.rules, self.count = model, draft, rules, count
    self.round = jit(self._round, donate_argnums=1)

  def _round(self, params, state: SpeculativeState, numbers, encoded) -> SpeculativeState:
    """Writes from one to `count + 1` tokens; params and encoded are pairs of the large model's and the small one's."""
    rules, count, target = self.rules, self.count, state.target
    rows, index = jnp.arange(len(target.texts)), target.index
    key, draw_key, accept_key, last_key = jax.random.split(target.key, 4)

    def at(texts, place):
      return jax.lax.dynamic_slice_in_dim(texts, place, 1, axis=1)

    def written(texts, tokens, place):
      return jax.lax.dynamic_update_slice_in_dim(texts, tokens[:, None].astype(jnp.int32), place, axis=1)

    # Proposals; the last one is read, too, so that the small model's cache holds it.
    texts, cache, draft_scores = target.texts, state.cache, []
    real = jnp.where((jnp.arange(texts.shape[1]) >= index)[None], True, target.real)
    for i in range(count + 1):
      positions = (target.positions + i)[:, None]
      logits, cache = run_model(self.draft, params[1], at(texts, index - 1 + i), None, positions, cache, encoded[1])
      if i == count:
        break
      scores = process(rules, numbers, logits[:, -1], texts, real, index + i)
      if rules.sample:
        scores = warp(rules, numbers, scores)
        tokens = draw(jax.random.fold_in(draw_key, i), scores)
      else:
        tokens = jnp.argmax(scores, axis=-1)
      draft_scores.append(scores)
      texts = written(texts, tokens, index + i)
    proposals = jax.lax.dynamic_slice_in_dim(texts, index, count, axis=1)

    # What the large model makes of them.
    read = jax.lax.dynamic_slice_in_dim(texts, index - 1, count + 1, axis=1)
    positions = target.positions[:, None] + jnp.arange(count + 1)
    logits, target_cache = run_model(
      self.model, params[0], read, None, positions, target.cache, encoded[0], score=count + 1
    )
    scores = jnp.stack(
      [process(rules, numbers, logits[:, i], texts, real, index + i) for i in range(count + 1)], axis=1
    )
    if rules.sample:
      wanted = jax.nn.softmax(warp(rules, numbers, scores), axis=-1)
      offered = jax.nn.softmax(jnp.stack(draft_scores, axis=1), axis=-1)
      ratio = _of_tokens(wanted[:, :-1], proposals) / _of_tokens(offered, proposals)
      chances = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(row_keys(accept_key, len(ratio)))
      agreed = chances < ratio
      rest = jnp.concatenate([jnp.maximum(wanted[:, :-1] - offered, 0), wanted[:, -1:]], axis=1)
      own = draw(last_key, jnp.log(rest))
    else:
      own = jnp.argmax(scores, axis=-1)
      agreed = own[:, :-1] == proposals
    kept = jnp.cumprod(agreed, axis=1).sum(axis=1)
    unfinished = ~target.finished
    together = jnp.min(jnp.where(unfinished, kept, count))
    together = jnp.minimum(together, numbers.longest - index - 1)

    # Where a row agrees to more, its next token is the proposal; elsewhere the large model's own.
    padded = jnp.concatenate([proposals, own[:, -1:]], axis=1)
    next_token = jnp.where(kept > together, padded[rows, together], own[rows, together])
    places = jnp.arange(count + 1)
    new = jnp.where(places < together, padded, next_token[:, None]).astype(jnp.int32)
    stopping = ends(rules, new) & (places <= together)
    after = target.finished[:, None] | (jnp.cumsum(stopping, axis=1) - stopping > 0)
    new = jnp.where(after | (places > together), rules.padding, new)
    logprobs = target.logprobs
    if rules.logprobs:
      chosen = jnp.where(after, 0.0, _of_tokens(jax.nn.log_softmax(logits), new)).astype(logprobs.dtype)
      logprobs = jax.lax.dynamic_update_slice_in_dim(logprobs, chosen, index, axis=1)
    new_index = index + together + 1
    return SpeculativeState(
      target=target.replace(
        texts=jax.lax.dynamic_update_slice_in_dim(target.texts, new, index, axis=1),
        real=jax.lax.dynamic_update_slice_in_dim(target.real, ~after, index, axis=1),
        index=new_index,
        positions=target.positions + together + 1,
        cache=target_cache.replace(index=new_index - 1),
        finished=target.finished | stopping.any(axis=1),
        logprobs=logprobs,
        key=key,
      ),
      cache=cache.replace(index=new_index - 1),
      proposed=state.proposed + count * unfinished.sum(),
      accepted=state.accepted + jnp.where(unfinished, kept, 0).sum(),
    )


def _of_tokens(values: jax.Array, tokens: jax.Array) -> jax.Array:
  """`[rows, count, vocab]` at `[rows, count]`."""
  return jnp.take_along_axis(values, tokens[..., None], axis=-1)[..., 0]
