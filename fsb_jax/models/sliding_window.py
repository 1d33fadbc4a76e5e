"""Attention within a window, with a few tokens that see and are seen by all; memory grows linearly with the length.

Source: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1.
"""

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

  def global_tokens(
    self, global_attention_mask: jax.Array | None, rule: GlobalTokens, input_ids: jax.Array
  ) -> jax.Array | None:
    """Positions of the global tokens.

    Args:
      global_attention_mask: `[batch, length]`, 1 for the global ones, or None for those of `rule`.
      rule: the first token; the "question", which is what stands before the first separator; or the "answer" after it
        and its neighbour.
      input_ids: int `[batch, length]`.

    Returns:
      int `[batch, count]`, ascending; a position beyond the row is none, and -1 says that a row has more than
      `global_limit`. None where there are none.

    Raises:
      UserError: more of them than `global_limit`, outside of a compiled function.
    """
    batch, length = input_ids.shape
    limit = min(self.global_limit, length)
    if global_attention_mask is not None:
      chosen = global_attention_mask > 0
    elif rule == "none":
      return None
    elif rule == "first":
      return jnp.zeros((batch, 1), jnp.int32)
    else:
      separators = input_ids == self.separator
      # Without one nothing is a question, and nothing an answer.
      end = jnp.where(separators.any(axis=1), jnp.argmax(separators, axis=1), -length)[:, None]
      index = jnp.arange(length)
      chosen = index < end if rule == "question" else (index > end + 1) & (end >= 0)
      limit = limit if rule == "question" else length
    too_many = chosen.sum(axis=1) > limit
    if not isinstance(too_many, jax.core.Tracer) and too_many.any():
      raise UserError(
        f"a row has more than {limit} global tokens; ask for fewer, or raise global_attention_limit in config.json"
      )
    positions = jnp.sort(jnp.where(chosen, jnp.arange(length), length), axis=1)[:, :limit]
    return jnp.where(too_many[:, None], -1, positions)


def attend_in_window(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: Mask,
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
    scale: multiplies the scores.
    dropout_rate: on the probabilities, where `dropout_rng` is given.
    dropout_rng: key of that dropout, None for none.

  Returns:
    `[batch, length, heads, head_dim]`.
  """
  batch, length = query.shape[:2]
  size = max(mask.window, 1)
  count = -(-length // size)

  def blocks(x):
    padding = ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2))
    return jnp.pad(x, padding).reshape(batch, count, size, *x.shape[2:])

  real = jnp.ones((batch, length), bool) if mask.keys is None else mask.keys.astype(bool)
  near = real if mask.everywhere is None else real & ~mask.is_everywhere(length)
  distance = jnp.arange(3 * size)[None] - size - jnp.arange(size)[:, None]
  within = jnp.abs(distance) <= (mask.window if mask.reach is None else mask.reach)
  allowed = _neighbourhoods(blocks(near))[:, :, None] & within
  query = blocks(query)
  scores = _near_scores(query, blocks(key))
  if mask.everywhere is not None:
    global_key, global_value, usable = (at(mask.everywhere, x) for x in (key, value, real.astype(key.dtype)))
    scores = jnp.concatenate([scores, jnp.einsum("bnqhd,bghd->bnhqg", query, global_key)], axis=-1)
    # A position beyond the row has no token, and padding is not seen.
    usable = jnp.broadcast_to((usable > 0)[:, None, None], (*allowed.shape[:3], usable.shape[-1]))
    allowed = jnp.concatenate([allowed, usable], axis=-1)
  scores = (scores * scale).astype(at_least_float32(scores.dtype))
  probabilities = softmax(jnp.where(allowed[:, :, None], scores, jnp.finfo(scores.dtype).min))
  probabilities = jnp.where(blocks(real)[:, :, None, :, None], probabilities, 0.0)
  probabilities = dropped(probabilities, dropout_rate, dropout_rng).astype(value.dtype)
  result = _near_values(probabilities[..., : 3 * size], blocks(value))
  if mask.everywhere is not None:
    result += jnp.einsum("bnhqg,bghd->bnqhd", probabilities[..., 3 * size :], global_value)
  return result.reshape(batch, -1, *result.shape[3:])[:, :length]


def _neighbourhoods(x: jax.Array) -> jax.Array:
  """Every block with its two neighbours, `[batch, blocks, size, ...]` to `[batch, blocks, 3 * size, ...]`."""
  x = jnp.pad(x, ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 2)))
  return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)


# In the backward pass neighbourhoods are laid together again: kept, they would be three times keys and values.
_near_scores = jax.checkpoint(
  lambda query, key: jnp.einsum("bnqhd,bnkhd->bnhqk", query, _neighbourhoods(key)), prevent_cse=False
)
_near_values = jax.checkpoint(
  lambda probabilities, value: jnp.einsum("bnhqk,bnkhd->bnqhd", probabilities, _neighbourhoods(value)),
  prevent_cse=False,
)


def at(positions: jax.Array, x: jax.Array) -> jax.Array:
  """`x[b, positions[b, g]]` of `x` `[batch, length, ...]`, zero beyond the row: a product, which any mesh can split."""
  return jnp.einsum("bgl,bl...->bg...", jax.nn.one_hot(positions, x.shape[1], dtype=x.dtype), x)


class SlidingWindowAttention(Attention):
  """Self-attention within `config.window`."""

  def attend(self, hidden, query, key, value, context, *, scale, bias, **dropout) -> tuple[jax.Array, jax.Array | None]:
    """See the base class."""
    mask, length = context.mask, query.shape[1]
    # Of a row that is not much longer than what a block sees, blocks would be no less work.
    short = length <= 3 * mask.window or context.output_attentions
    local, probabilities = (
      super().attend(hidden, query, key, value, context, scale=scale, bias=bias, **dropout)
      if short
      else (attend_in_window(query, key, value, mask, scale=scale, **dropout), None)
    )
    if self.config.window.global_projections:
      if mask.everywhere is None and not self.is_initializing():
        return local, probabilities
      query, key, value = (self.projection(f"global_{name}")(hidden) for name in ("query", "key", "value"))
    if mask.everywhere is None:
      return local, probabilities
    # Global tokens see all that is real.
    queries, seen = at(mask.everywhere, query), Mask(keys=mask.keys)
    rows = attend(queries, key, value, seen, scale=scale, **dropout)
    chosen = mask.is_everywhere(length)
    if mask.keys is not None:
      chosen &= mask.keys.astype(bool)
    placed = jax.nn.one_hot(mask.everywhere, length, dtype=rows.dtype)

    def with_rows(of_all, of_globals, place):
      whole = jnp.where(place, jnp.einsum(of_globals[0], placed, of_globals[1]), of_all)
      return jnp.where((mask.everywhere < 0).any(axis=1)[:, None, None, None], jnp.nan, whole)

    local = with_rows(local, ("bgl,bghd->blhd", rows), chosen[:, :, None, None])
    if probabilities is not None:
      of_globals = attention_probabilities(queries, key, seen, scale=scale)
      probabilities = with_rows(probabilities, ("bgl,bhgk->bhlk", of_globals), chosen[:, None, :, None])
    return local, probabilities
