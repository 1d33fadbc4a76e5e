"""XLNet: attention relative to a memory, and a second stream that predicts tokens without having seen them.

Source: Yang et al. 2019, https://arxiv.org/abs/1906.08237, sections 2.3 to 2.5.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fsb_jax.models import outputs
from fsb_jax.models.attention import attend, attention_probabilities, by_offset
from fsb_jax.models.heads import Head, fold_choices, with_head
from fsb_jax.models.layers import Mlp, dense, embed
from fsb_jax.models.masks import Mask
from fsb_jax.models.positions import Positions
from fsb_jax.models.transformer import HIDDEN_AXES, Context, LayerOutput, Stack

_HEADS = ("activation_batch", "activation_length", "activation_heads", "activation_kv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidDistances(Positions):
  """Fixed codes of distances, which every layer projects; sequences may have any length.

  Attributes:
    clamp: distances beyond it are taken for it; None for no such limit.
    memory: how many hidden states of a layer are kept for the next segment; None keeps all.
    reuse: how many of a segment's may be kept, from its start; None for all.
  """

  clamp: int | None = None
  memory: int | None = None
  reuse: int | None = None

  def codes(self, queries: int, keys: int, width: int) -> np.ndarray:
    """Codes of the distances from `keys - 1` down to `1 - queries`, float32 `[queries + keys - 1, width]`."""
    distances = np.arange(keys - 1, -queries, -1)
    if self.clamp is not None:
      distances = np.clip(distances, -self.clamp, self.clamp)
    angles = distances[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)

  def kept(self, memory: jax.Array | None, hidden: jax.Array) -> jax.Array:
    """A layer's memory `[batch, kept, embed]` after a segment; no gradient flows through it."""
    hidden = hidden[:, : self.reuse]
    whole = hidden if memory is None else jnp.concatenate([memory, hidden], axis=1)
    return jax.lax.stop_gradient(whole if self.memory is None else whole[:, -self.memory :])


@struct.dataclass
class TwoStreamContext(Context):
  """What every layer reads; of the content stream, `mask` says who sees whom, and a token always sees itself.

  Attributes:
    query_mask: of the stream that must not see its own token.
    codes: of distances, `[queries + keys - 1, embed]`.
    other_segment: `[batch, query, key]`, whether the two are of different segments; None where there are none.
    targets: `[batch, asked, length]`, one at the token that is asked for; None without a query stream.
  """

  query_mask: Mask | None = None
  codes: jax.Array | None = None
  other_segment: jax.Array | None = None
  targets: jax.Array | None = None


class RelativeAttention(nn.Module):
  """Attention whose scores have terms of content, distance and segment; both streams share the weights."""

  config: Any

  @nn.compact
  def __call__(self, content: jax.Array, query: jax.Array | None, memory: jax.Array | None, context: TwoStreamContext):
    """Maps the streams `[batch, length, embed]` and `[batch, asked, embed]` to what they attended to.

    Returns:
      Each stream's result and its probabilities; None for those that are not asked for.
    """
    config, run = self.config, self.config.run
    heads = (config.num_heads, config.head_dim)

    def projection(name):
      return dense(config, heads, ("embed", "heads", "kv"), name, bias=False)

    def parameter(name, *before):
      initializer = nn.initializers.normal(config.initializer_range)
      names = (*(None for _ in before), "heads", "kv")
      value = self.param(name, nn.with_logical_partitioning(initializer, names), (*before, *heads), run.param_dtype)
      return value.astype(run.dtype)

    to_query, out = projection("query"), dense(config, (config.embed_dim,), ("heads", "kv", "embed"), "out", 2, False)
    seen = content if memory is None else jnp.concatenate([memory, content], axis=1)
    key, value = (nn.with_logical_constraint(projection(name)(seen), _HEADS) for name in ("key", "value"))
    distance = projection("distance")(context.codes)
    content_bias, distance_bias = parameter("content_bias"), parameter("distance_bias")
    segment_bias, segment = parameter("segment_bias"), parameter("segment_embed", 2)
    scale = 1.0 / math.sqrt(config.head_dim)
    dropping = not context.deterministic and config.dropout.attention > 0

    def attended(query, mask):
      bias = by_offset(jnp.einsum("bqhd,rhd->bhqr", query + distance_bias, distance))
      if context.other_segment is not None:
        same, other = jnp.einsum("bqhd,shd->sbhq", query + segment_bias, segment)[..., None]
        bias += jnp.where(context.other_segment[:, None], other, same)
      query, bias = query + content_bias, bias * scale
      probabilities = None
      if context.output_attentions:
        probabilities = attention_probabilities(query, key, mask, scale=scale, bias=bias)
      result = attend(
        query, key, value, mask,
        scale=scale, bias=bias, implementation=run.attention,
        dropout_rate=config.dropout.attention, dropout_rng=self.make_rng("dropout") if dropping else None,
      )  # fmt: skip
      return result, probabilities

    result, probabilities = attended(nn.with_logical_constraint(to_query(content), _HEADS), context.mask)
    content_result = out(result), probabilities
    if query is None:
      return content_result, (None, None)
    placed = jnp.einsum("bphd,bpl->blhd", to_query(query), context.targets)
    result, probabilities = attended(placed, context.query_mask)
    return content_result, (out(jnp.einsum("blhd,bpl->bphd", result, context.targets)), probabilities)


class TwoStreamBlock(nn.Module):
  """Relative attention and feed-forward, each followed by residual and norm, over one stream or both."""

  config: Any

  @nn.compact
  def __call__(self, streams: tuple[jax.Array, jax.Array | None], memory: jax.Array | None, context: TwoStreamContext):
    """One layer; see `transformer.Block`."""
    config = self.config
    drop = nn.Dropout(config.dropout.hidden, deterministic=context.deterministic)
    attention_norm, mlp_norm = (config.norm(name, config.run) for name in ("attention_norm", "mlp_norm"))
    mlp = Mlp(config, name="mlp")

    def finish(stream, attended):
      if stream is None:
        return None
      stream = attention_norm(stream + drop(attended))
      return nn.with_logical_constraint(mlp_norm(stream + drop(mlp(stream, context.deterministic))), HIDDEN_AXES)

    attended, probabilities = zip(*RelativeAttention(config, name="attention")(*streams, memory, context))
    streams = tuple(map(finish, streams, attended))
    return streams, LayerOutput(streams if context.output_hidden_states else None, probabilities)


class TwoStreamModel(nn.Module):
  """XLNet with its head.

  Attributes:
    config: a `TransformerConfig` whose positions are `SinusoidDistances`.
    head: an unbound head module, or None.
  """

  config: Any
  head: Head | None = None

  @nn.compact
  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    perm_mask: jax.Array | None = None,
    target_mapping: jax.Array | None = None,
    mems: jax.Array | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    output_mems: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Encodes a batch.

    Args:
      input_ids: int `[batch, length]`; `[batch, choices, length]` for multiple choice (and so for the next four).
      attention_mask: `[batch, length]`, 1 for real tokens.
      token_type_ids: int `[batch, length]`, segments; None for one segment.
      perm_mask: `[batch, query, key]`, 1 where a query must not see a key.
      target_mapping: `[batch, asked, length]`, 1 at the token that is asked for; the result is then the query stream's,
        of length `asked`.
      mems: `[layers, batch, kept, embed]` of the segment before, see `output_mems`.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state; with a query stream, content and query by turns.
      output_attentions: also return every layer's probabilities, before dropout; by turns as the hidden states.
      output_mems: also return what the next segment's `mems` are.
      **head_inputs: what the head takes, by its parameters' names.

    Returns:
      The head's struct, or `BaseOutput`; with `output_mems` a pair of it and the memory.
    """
    choices, (input_ids, attention_mask, token_type_ids, perm_mask, target_mapping) = fold_choices(
      self.head, input_ids, attention_mask, token_type_ids, perm_mask, target_mapping
    )
    config = self.config
    batch, length = input_ids.shape
    remembered = 0 if mems is None else mems.shape[2]
    token_embed = embed(config, config.vocab_rows, "table_vocab", "token_embed", used_row_axis="vocab")
    drop = nn.Dropout(config.dropout.hidden, deterministic=deterministic)
    mask_embed = self.param(
      "mask_embed",
      nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), ("table_embed",)),
      (config.embed_dim,),
      config.run.param_dtype,
    )
    content = drop(nn.with_logical_constraint(token_embed(input_ids), HIDDEN_AXES))
    query = None
    if target_mapping is not None:
      target_mapping = target_mapping.astype(content.dtype)
      asked = target_mapping.shape[1]
      query = drop(jnp.broadcast_to(mask_embed.astype(content.dtype), (batch, asked, config.embed_dim)))
    codes = jnp.asarray(config.positions.codes(length, remembered + length, config.embed_dim), content.dtype)
    content_mask, query_mask = _masks(attention_mask, perm_mask, batch, length, remembered)
    context = TwoStreamContext(
      mask=content_mask, query_mask=query_mask, codes=drop(codes),
      other_segment=_other_segment(token_type_ids, remembered), targets=target_mapping,
      deterministic=deterministic, output_hidden_states=output_hidden_states or output_mems,
      output_attentions=output_attentions,
    )  # fmt: skip
    stack = Stack(config, TwoStreamBlock, name="encoder")
    (content, query), beside = stack((content, query), context, mems)

    def by_turns(pairs):
      return tuple(x for pair in pairs for x in pair if x is not None)

    encoded = outputs.BaseOutput(
      last_hidden_state=drop(content if query is None else query),
      hidden_states=by_turns(beside.hidden_states) if output_hidden_states else None,
      attentions=by_turns(beside.attentions) if output_attentions else None,
    )
    result = with_head(self.head, encoded, token_embed.attend, deterministic, choices, head_inputs)
    if not output_mems:
      return result
    before = [None] * config.num_layers if mems is None else mems
    return result, jnp.stack(
      [config.positions.kept(memory, states[0]) for memory, states in zip(before, beside.hidden_states)]
    )


def _masks(attention_mask, perm_mask, batch, length, remembered) -> tuple[Mask, Mask]:
  """The content stream's mask and the query stream's; all of the memory is seen."""
  if attention_mask is None and perm_mask is None:
    return Mask(), Mask()
  allowed = jnp.ones((batch, length, length), bool)
  if attention_mask is not None:
    allowed &= attention_mask[:, None, :] > 0
  if perm_mask is not None:
    allowed &= perm_mask <= 0
  before = jnp.ones((batch, length, remembered), bool)
  itself = jnp.eye(length, dtype=bool)
  return tuple(Mask(dense=jnp.concatenate([before, each], axis=-1)) for each in (allowed | itself, allowed))


def _other_segment(token_type_ids, remembered) -> jax.Array | None:
  if token_type_ids is None:
    return None
  keys = jnp.pad(token_type_ids, ((0, 0), (remembered, 0)))
  return token_type_ids[:, :, None] != keys[:, None, :]
