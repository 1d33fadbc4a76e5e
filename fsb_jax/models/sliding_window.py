"""Attention within a window, with a few tokens that see and are seen by all; memory grows linearly with the length.

Source: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1.
"""

import contextlib
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from fsb_jax.errors import UserError
from fsb_jax.models.attention import Attention, attend, attention_probabilities, dropped
from fsb_jax.models.layers import at_least_float32, softmax
from fsb_jax.models.masks import Mask

GlobalTokens = Literal["none", "first", "question", "answer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """How far tokens see.

  Attributes:
    reach: tokens that a token sees on either side, layer by layer.
    global_limit: how many tokens of a row a caller may make global; rows with more come out as NaN.
    global_projections: global tokens see through projections of their own.
    separator: the token id that ends a question, which heads that answer one make global.
  """

  reach: tuple[int, ...]
  global_limit: int = 128
  global_projections: bool = True
  separator: int = 2

  @property
  def reach_by_layer(self) -> jax.Array | None:
    """`reach` as an array, where layers differ in it."""
    return jnp.array(self.reach) if len({*self.reach}) > 1 else None

  def global_tokens(
    self,
    global_attention_mask: jax.Array | None,
    rule: GlobalTokens,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
  ) -> jax.Array | None:
    """Positions of the global tokens, of which padding is none.

    Args:
      global_attention_mask: `[batch, length]`, 1 for the global ones, or None for those of `rule`.
      rule: the first token; the "question", which is what stands before the first separator; or the "answer" after it
        and its neighbour.
      input_ids: int `[batch, length]`.
      attention_mask: `[batch, length]`, 1 for real tokens; None where all are.

    Returns:
      int `[batch, count]`, ascending; a position beyond the row is none, and -1 says that a row has more than
      `global_limit`. None where there are none. `count` is the next power of two of what the fullest row has; where the
      arguments are those of a compiled function, which does not see them, it is what the rule can choose, or
      `global_limit`.

    Raises:
      UserError: more of them than `global_limit`, where the arguments are seen.
    """
    given = global_attention_mask, input_ids, attention_mask
    visible = not any(isinstance(x, jax.core.Tracer) for x in given)
    # What is closed over is known while a function is compiled, but what is made of it there is not.
    with jax.ensure_compile_time_eval() if visible else contextlib.nullcontext():
      chosen, limit = self._chosen(global_attention_mask, rule, input_ids)
      if chosen is None:
        return None
      if attention_mask is not None:
        chosen &= jnp.asarray(attention_mask) > 0
      length, counts, slots = input_ids.shape[1], chosen.sum(axis=1), limit
      if visible:
        most = int(counts.max())
        if most > limit:
          raise UserError(
            f"a row has more than {limit} global tokens; ask for fewer, or raise global_attention_limit in config.json"
          )
        if most == 0:
          return None
        slots = min(1 << (most - 1).bit_length(), limit)
      positions = jnp.sort(jnp.where(chosen, jnp.arange(length), length), axis=1)[:, :slots]
      return jnp.where((counts > limit)[:, None], -1, positions)

  def _chosen(self, global_attention_mask, rule, input_ids) -> tuple[jax.Array | None, int]:
    """Which tokens are global, bool `[batch, length]`, and how many of a row may be."""
    length = input_ids.shape[1]
    limit, index = min(self.global_limit, length), jnp.arange(length)
    if global_attention_mask is not None:
      return jnp.asarray(global_attention_mask) > 0, limit
    if rule == "none":
      return None, 0
    if rule == "first":
      return jnp.broadcast_to(index == 0, input_ids.shape), 1
    separators = jnp.asarray(input_ids) == self.separator
    # Without one nothing is a question, and nothing an answer.
    end = jnp.where(separators.any(axis=1), jnp.argmax(separators, axis=1), -length)[:, None]
    return (index < end, limit) if rule == "question" else ((index > end + 1) & (end >= 0), length)


def without_overfull(hidden: jax.Array, everywhere: jax.Array | None) -> jax.Array:
  """NaN for the rows with more global tokens than `Window.global_limit`, so that nobody takes what follows for right.

  Args:
    hidden: `[batch, length, embed]`, what the first layer reads.
    everywhere: from `Window.global_tokens`.
  """
  if everywhere is None:
    return hidden
  return jnp.where((everywhere < 0).any(axis=1)[:, None, None], jnp.nan, hidden)


def block_mask(mask: Mask, length: int) -> jax.Array:
  """What a block's queries see of its neighbourhood and of the global tokens; all layers with one window share it.

  Args:
    mask: with `window`; of the rest `keys` and `everywhere` are read.
    length: of the rows.

  Returns:
    Boolean `[batch or 1, blocks, size, 3 * size + slots]`.
  """
  size = _block_size(mask)
  near = jnp.ones((1, length), bool) if mask.keys is None else mask.keys.astype(bool)
  if mask.everywhere is not None:
    near = near & ~mask.is_everywhere(length)
  allowed = _neighbourhoods(_blocks(near, size))[:, :, None] & (_distances(size) <= mask.window)
  if mask.everywhere is None:
    return allowed
  # A position beyond the row has no token.
  usable = (mask.everywhere < length)[:, None, None]
  return jnp.concatenate([allowed, jnp.broadcast_to(usable, (*allowed.shape[:3], usable.shape[-1]))], axis=-1)


def attend_in_window(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: Mask,
  allowed: jax.Array,
  *,
  scale: float,
  dropout_rate: float = 0.0,
  dropout_rng: jax.Array | None = None,
) -> jax.Array:
  """`attention.attend` of what `mask.window` lets through, block by block.

  Queries are cut into blocks as long as the window reaches: each sees its own block of keys, its two neighbours and the
  global tokens. Padding gets an output of zero. Global queries see no more than others here.

  Args:
    query: `[batch, length, heads, head_dim]`.
    key: `[batch, length, heads, head_dim]`.
    value: `[batch, length, heads, head_dim]`.
    mask: with `window`; of the rest `keys`, `reach` and `everywhere` are read.
    allowed: its `block_mask`.
    scale: multiplies the scores.
    dropout_rate: on the probabilities, where `dropout_rng` is given.
    dropout_rng: key of that dropout, None for none.

  Returns:
    `[batch, length, heads, head_dim]`.
  """
  length, size = query.shape[1], _block_size(mask)
  global_key, global_value = (None if mask.everywhere is None else at(mask.everywhere, x) for x in (key, value))
  scores = _scores(_blocks(query, size), _blocks(key, size), global_key) * scale
  scores = scores.astype(at_least_float32(scores.dtype))
  if mask.reach is not None:
    slots = ((0, 0), (0, allowed.shape[-1] - 3 * size))
    allowed = allowed & jnp.pad(_distances(size) <= mask.reach, slots, constant_values=True)
  # Added: for scores that it replaces, the backward pass would keep the mask once for every head.
  bias = jnp.where(allowed, 0, jnp.finfo(scores.dtype).min).astype(scores.dtype)
  probabilities = softmax(scores + bias[:, :, None])
  probabilities = dropped(probabilities, dropout_rate, dropout_rng).astype(value.dtype)
  result = _mixed(probabilities, _blocks(value, size), global_value)
  result = result.reshape(len(result), -1, *result.shape[3:])[:, :length]
  return result if mask.keys is None else jnp.where(mask.keys.astype(bool)[:, :, None, None], result, 0.0)


def _block_size(mask: Mask) -> int:
  return max(mask.window, 1)


def _blocks(x: jax.Array, size: int) -> jax.Array:
  """`[batch, length, ...]` to `[batch, blocks, size, ...]`, the last block filled with zeros."""
  padding = ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2))
  return jnp.pad(x, padding).reshape(len(x), -1, size, *x.shape[2:])


def _distances(size: int) -> jax.Array:
  """Of a block's queries to the keys of its neighbourhood, `[size, 3 * size]`."""
  return jnp.abs(jnp.arange(3 * size)[None] - size - jnp.arange(size)[:, None])


def _neighbourhoods(x: jax.Array, everywhere: jax.Array | None = None) -> jax.Array:
  """Every block with its two neighbours and what is seen everywhere.

  Args:
    x: `[batch, blocks, size, ...]`.
    everywhere: `[batch, slots, ...]`.

  Returns:
    `[batch, blocks, 3 * size + slots, ...]`.
  """
  padded = jnp.pad(x, ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 2)))
  parts = [padded[:, :-2], x, padded[:, 2:]]
  if everywhere is not None:
    shape = (*x.shape[:2], *everywhere.shape[1:])
    parts.append(jnp.broadcast_to(everywhere[:, None], shape))
  return jnp.concatenate(parts, axis=2)


# In the backward pass neighbourhoods are laid together again: kept, they would be three times keys and values.
_scores = jax.checkpoint(
  lambda query, *keys: jnp.einsum("bnqhd,bnkhd->bnhqk", query, _neighbourhoods(*keys)), prevent_cse=False
)
_mixed = jax.checkpoint(
  lambda probabilities, *values: jnp.einsum("bnhqk,bnkhd->bnqhd", probabilities, _neighbourhoods(*values)),
  prevent_cse=False,
)


def at(positions: jax.Array, x: jax.Array) -> jax.Array:
  """`x[b, positions[b, g]]` of `x` `[batch, length, ...]`, zero beyond the row."""
  index = positions.reshape(*positions.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


def put(x: jax.Array, positions: jax.Array, rows: jax.Array) -> jax.Array:
  """`x` `[batch, length, ...]` with `rows` `[batch, count, ...]` at `positions`, those beyond the row left out."""
  return jax.vmap(lambda x, positions, rows: x.at[positions].set(rows, mode="drop"))(x, positions, rows)


def reads_unprojected(slots: int, config) -> bool:
  """So few global tokens take less from all hidden states as they are than it takes to project those."""
  return slots * config.num_heads < config.embed_dim


class SlidingWindowAttention(Attention):
  """Self-attention within `config.window`."""

  def attend(self, hidden, query, key, value, context, *, scale, bias, **dropout) -> tuple[jax.Array, jax.Array | None]:
    """See the base class."""
    mask, projected = context.mask, self.config.window.global_projections
    if context.block_mask is None:
      local, probabilities = super().attend(hidden, query, key, value, context, scale=scale, bias=bias, **dropout)
    else:
      local = attend_in_window(query, key, value, mask, context.block_mask, scale=scale, **dropout)
      probabilities = None
    everywhere = mask.everywhere
    if everywhere is None and projected and self.is_initializing():
      everywhere = jnp.zeros((len(hidden), 1), jnp.int32)
    # Without projections of their own, the dense path has shown global tokens all that is real.
    if everywhere is None or (context.block_mask is None and not projected):
      return local, probabilities
    seen = Mask(keys=mask.keys)
    if projected:
      rows, of_globals = self._projected_rows(hidden, everywhere, seen, scale=scale, **dropout)
    else:
      rows, of_globals = attend(at(everywhere, query), key, value, seen, scale=scale, **dropout), None
    if probabilities is not None:
      probabilities = put(probabilities.swapaxes(1, 2), everywhere, of_globals.swapaxes(1, 2)).swapaxes(1, 2)
    return put(local, everywhere, rows), probabilities

  def _projected_rows(
    self, hidden, everywhere, seen, *, scale, dropout_rate, dropout_rng
  ) -> tuple[jax.Array, jax.Array]:
    """What global tokens take of all that is real, `[batch, slots, heads, head_dim]`, and their probabilities."""
    query, key, value = (self.projection(f"global_{name}") for name in ("query", "key", "value"))
    queries = query(at(everywhere, hidden))
    if not reads_unprojected(queries.shape[1], self.config):
      keys, dropout = key(hidden), {"dropout_rate": dropout_rate, "dropout_rng": dropout_rng}
      rows = attend(queries, keys, value(hidden), seen, scale=scale, **dropout)
      return rows, attention_probabilities(queries, keys, seen, scale=scale)
    # (K h) q = h (K' q), and a mean of V h is V of the mean. The key's bias adds the same to all scores of a query.
    kernel, _ = key.weights(hidden.shape[-1:])
    queries = jnp.einsum("bghd,ehd->bghe", queries, kernel)
    probabilities = attention_probabilities(queries, hidden[:, :, None], seen, scale=scale)
    taken = dropped(probabilities, dropout_rate, dropout_rng).astype(hidden.dtype)
    kernel, bias = value.weights(hidden.shape[-1:])
    rows = jnp.einsum("bghe,ehd->bghd", jnp.einsum("bhgl,ble->bghe", taken, hidden), kernel)
    if bias is not None:
      rows += bias * taken.sum(-1).swapaxes(1, 2)[..., None]
    return rows, probabilities
