"""Attention over long rows in blocks, so that no array of all scores is made: neither forward nor backward."""

import functools

import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32

# From so many scores of a head on rows are long: 512 tokens that see each other, 4,096 pixels that see a prompt.
LONG = 2**18


def attend_in_blocks(query: jax.Array, key: jax.Array, value: jax.Array, *, scale: float) -> jax.Array:
  """Softmax attention of every query to every key.

  Memory is linear in the lengths (Rabe and Staats 2021, https://arxiv.org/abs/2112.05682), but a block still sees a
  whole row of scores; the backward pass makes them again.

  Args:
    query: `[batch, query, heads, head_dim]`.
    key: `[batch, key, kv_heads, head_dim]`; each of its heads serves a group of the queries'.
    value: `[batch, key, kv_heads, head_dim]`.
    scale: multiplies the scores.

  Returns:
    `[batch, query, heads, head_dim]`.
  """
  batch, keys, kv_heads, _ = key.shape
  # As many scores as a core's cache holds, or enough to keep an accelerator at work.
  scores = 2**19 if jax.default_backend() == "cpu" else 2**24
  # A group's queries see the same keys, so they are rows like any other: [batch, kv_heads, rows, head_dim].
  rows = query.reshape(batch, query.shape[1], kv_heads, -1, query.shape[-1]).transpose(0, 2, 1, 3, 4)
  rows = rows.reshape(batch, kv_heads, -1, query.shape[-1])
  # Turned once, and not in every block.
  key, value, count = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), rows.shape[2]
  devices = max(1, jax.sharding.get_abstract_mesh().size)  # 0 without a mesh
  # What a mesh splits stays as it is: there a block has queries of all heads.
  together = 1 if devices == 1 else batch * kv_heads
  block = min(max(1, scores * devices // (together * keys)), count)

  def attended(head):
    return _attend_rows(*head, scale, block)

  heads = rows, key, value
  if devices > 1:
    result = jax.vmap(jax.vmap(attended))(heads)
  else:
    heads = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), heads)
    result = jax.lax.map(attended, heads, batch_size=max(1, scores // (count * keys)))
  result = result.reshape(batch, kv_heads, query.shape[1], -1, value.shape[-1])
  return result.transpose(0, 2, 1, 3, 4).reshape(*query.shape[:-1], value.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend_rows(query: jax.Array, key: jax.Array, value: jax.Array, scale: float, block: int) -> jax.Array:
  """One head's `[query, head_dim]` to keys `[head_dim, key]` of values `[key, head_dim]`, `block` queries at a time."""
  return _attend_forward(query, key, value, scale, block)[0]


def _attend_forward(query, key, value, scale, block):
  wide = at_least_float32(query.dtype)
  columns = _full_columns(value)

  def attended(rows):
    scores = jnp.matmul(rows, key, preferred_element_type=wide) * scale
    largest = jnp.max(scores, axis=-1, keepdims=True)
    unnormalised = jnp.exp(scores - largest)
    sums = jnp.sum(unnormalised, axis=-1, keepdims=True)
    # Divided after the product, which has fewer columns; sums of many values need the wide type.
    total = jnp.matmul(unnormalised.astype(value.dtype), columns, preferred_element_type=wide)
    return (total / sums).astype(value.dtype), (largest + jnp.log(sums))[:, 0]

  made = jax.lax.map(attended, _in_blocks(query, block))
  result, log_sums = (_whole(x, len(query)) for x in made)
  result = result[:, : value.shape[1]]
  return result, (query, key, value, result, log_sums)


def _attend_backward(scale, block, kept, gradient):
  # Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B.2: what softmax takes away from a row of gradients is
  # one number, which the result tells.
  query, key, value, result, log_sums = kept
  wide = log_sums.dtype
  product = functools.partial(jnp.matmul, preferred_element_type=wide)
  means = jnp.sum(result.astype(wide) * gradient.astype(wide), axis=-1)
  keys_first, values_last = _full_columns(key.T), value.T

  def attended(sums, rows):
    query, gradient, log_sums, means = rows
    probabilities = jnp.exp(product(query, key) * scale - log_sums[:, None])
    of_scores = probabilities * (product(gradient, values_last) - means[:, None]) * scale
    of_scores, probabilities = of_scores.astype(query.dtype), probabilities.astype(value.dtype)
    sums = sums[0] + product(query.T, of_scores), sums[1] + product(gradient.T, probabilities)
    return sums, product(of_scores, keys_first)

  rows = [_in_blocks(x, block) for x in (query, gradient, log_sums, means)]
  zeros = jnp.zeros(key.shape, wide), jnp.zeros(values_last.shape, wide)
  (of_key, of_value), of_query = jax.lax.scan(attended, zeros, rows)
  of_query = _whole(of_query, len(query))[:, : query.shape[1]]
  return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.T.astype(value.dtype)


_attend_rows.defvjp(_attend_forward, _attend_backward)


def _full_columns(x: jax.Array) -> jax.Array:
  """With columns of zeros up to a multiple of 16: on the CPU a product with 12 takes more than twice as long."""
  columns = -x.shape[1] % 16 if jax.default_backend() == "cpu" else 0
  return jnp.pad(x, [(0, 0), (0, columns)])


def _in_blocks(rows: jax.Array, block: int) -> jax.Array:
  """`[blocks, about block, ...]`; zeros fill up the last ones.

  A block takes rows from everywhere: where a mesh splits them, all devices have a part of each.
  """
  blocks = -(-len(rows) // block)
  padding = -len(rows) % blocks
  return jnp.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1)).reshape(-1, blocks, *rows.shape[1:]).swapaxes(0, 1)


def _whole(blocks: jax.Array, count: int) -> jax.Array:
  """The first `count` rows that `_in_blocks` made blocks of."""
  return blocks.swapaxes(0, 1).reshape(-1, *blocks.shape[2:])[:count]
