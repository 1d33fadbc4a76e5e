"""A linear-chain conditional random field over tags (Lafferty et al. 2001): likelihood and the best sequences.

Everything is computed in at least float32. Masks are `[batch, length]` with the real tokens first; a row's first token
always counts, real or not.
"""

import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32


def crf_log_likelihood(
  emissions: jax.Array, tags: jax.Array, mask: jax.Array, transitions: jax.Array, start: jax.Array, end: jax.Array
) -> jax.Array:
  """How likely the tags are, log p(tags | emissions), of every row.

  Args:
    emissions: `[batch, length, labels]`, the score of each tag at each token.
    tags: int `[batch, length]`; what they are at padding does not matter; a negative one counts as 0.
    mask: see the module's docstring.
    transitions: `[labels, labels]`, the score of the second tag after the first.
    start: `[labels]`, the score of a tag as the first.
    end: `[labels]`, the score of a tag as the last.

  Returns:
    `[batch]`.
  """
  emissions, transitions, start, end = _wide(emissions, transitions, start, end)
  counts = _counting(mask)
  tags = jnp.where(counts, jnp.maximum(tags, 0), 0)
  chosen = jnp.take_along_axis(emissions, tags[..., None], axis=-1)[..., 0]
  steps = transitions[tags[:, :-1], tags[:, 1:]]
  last = jnp.take_along_axis(tags, jnp.sum(counts, axis=1, keepdims=True) - 1, axis=1)[:, 0]
  score = start[tags[:, 0]] + jnp.sum(jnp.where(counts, chosen, 0), 1) + end[last]
  score += jnp.sum(jnp.where(counts[:, 1:], steps, 0), 1)

  def step(sums, token):
    emission, real = token
    longer = jax.nn.logsumexp(sums[:, :, None] + transitions, axis=1) + emission
    return jnp.where(real[:, None], longer, sums), None

  sums, _ = jax.lax.scan(step, start + emissions[:, 0], _after_the_first(emissions, counts))
  return score - jax.nn.logsumexp(sums + end, axis=-1)


def crf_decode(
  emissions: jax.Array, mask: jax.Array, transitions: jax.Array, start: jax.Array, end: jax.Array
) -> jax.Array:
  """The likeliest tags of every row, int `[batch, length]`, 0 at padding; arguments as in `crf_log_likelihood`."""
  return crf_decode_n_best(emissions, mask, transitions, start, end, 1)[0][:, 0]


def crf_decode_n_best(
  emissions: jax.Array, mask: jax.Array, transitions: jax.Array, start: jax.Array, end: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
  """The `count` likeliest sequences of tags of every row, the best first (Viterbi 1967, with a list of paths).

  Args:
    emissions: as in `crf_log_likelihood`, and so the next four.
    mask: see the module's docstring.
    transitions: `[labels, labels]`.
    start: `[labels]`.
    end: `[labels]`.
    count: how many sequences.

  Returns:
    Tags, int `[batch, count, length]`, 0 at padding; and their scores `[batch, count]`, not normalised. Where a row has
    fewer sequences than `count`, the others score -inf and their tags mean nothing.
  """
  emissions, transitions, start, end = _wide(emissions, transitions, start, end)
  counts = _counting(mask)
  batch, _, labels = emissions.shape
  # The best paths to every tag, `[batch, labels, count]`. A path's number is its tag times `count` plus its rank.
  first = jnp.full((batch, labels, count), -jnp.inf, emissions.dtype).at[..., 0].set(start + emissions[:, 0])
  same = jnp.broadcast_to(jnp.arange(labels * count, dtype=jnp.int32).reshape(labels, count), first.shape)

  def step(scores, token):
    emission, real = token
    # [batch, next tag, paths so far]
    longer = scores.reshape(batch, 1, -1) + jnp.repeat(transitions.T, count, axis=1)
    best, came_from = jax.lax.top_k(longer, count)
    real = real[:, None, None]
    return jnp.where(real, best + emission[..., None], scores), jnp.where(real, came_from, same)

  scores, came_from = jax.lax.scan(step, first, _after_the_first(emissions, counts))
  best, path = jax.lax.top_k((scores + end[:, None]).reshape(batch, -1), count)

  def back(path, came_from):
    return jnp.take_along_axis(came_from.reshape(batch, -1), path, axis=1), path

  first_path, paths = jax.lax.scan(back, path, came_from, reverse=True)
  tags = jnp.concatenate([first_path[None], paths]).transpose(1, 2, 0) // count
  return jnp.where(counts[:, None], tags, 0), best


def _wide(*arrays: jax.Array) -> list[jax.Array]:
  dtype = at_least_float32(jnp.result_type(*arrays))
  return [x.astype(dtype) for x in arrays]


def _counting(mask: jax.Array) -> jax.Array:
  return jnp.asarray(mask, bool).at[:, 0].set(True)


def _after_the_first(emissions: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What the tokens but the first bring, the length in front."""
  return emissions[:, 1:].swapaxes(0, 1), counts[:, 1:].swapaxes(0, 1)
