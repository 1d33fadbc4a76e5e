"""A model that writes: embeddings, a stack that sees the past alone, and at most one head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models.cache import Cache, new_cache
from fsb_jax.models.encoder import embedding_dropout
from fsb_jax.models.heads import Head, with_head
from fsb_jax.models.layers import Embed, embed
from fsb_jax.models.masks import Mask, mask_from_attention_mask
from fsb_jax.models.outputs import BaseOutput
from fsb_jax.models.positions import Span
from fsb_jax.models.transformer import HIDDEN_AXES, Context, LayerOutput, Stack


class EmbeddedStack(Stack):
  """A stack together with its positions and the norm of its embeddings."""

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    cache: Cache | None = None,
    encoded: jax.Array | None = None,
    encoded_mask: Mask | None = None,
    position_table: Embed | None = None,
    **context: Any,
  ) -> tuple[jax.Array, LayerOutput]:
    """Runs the stack.

    Args:
      tokens: their embeddings, `[batch, length, embed]`.
      attention_mask: of these tokens, `[batch, length]`; without a cache also `[batch, query, key]`.
      position_ids: int `[batch, length]`, counted from the start if not given.
      cache: of the tokens before.
      encoded: see `Context`.
      encoded_mask: see `Context`.
      position_table: see `LearnedPositions.embed`.
      **context: see `Context`.

    Returns:
      The result `[batch, length, embed]`, and what else the context asks for.
    """
    config, length = self.config, tokens.shape[1]
    causal = config.mask_kind == "causal"
    if cache is None:
      mask = mask_from_attention_mask(attention_mask, config.mask_fill).replace(causal=causal)
      span = Span(queries=length, keys=length)
    else:
      real = cache.reading(attention_mask, length)
      remembered = real
      if config.memory is not None:
        remembered &= jnp.arange(cache.length) >= cache.index - config.memory
      mask = Mask(keys=remembered, offset=cache.index, causal=causal, fill=config.mask_fill)
      span = Span(queries=length, keys=cache.length, offset=cache.index)
    if position_ids is None:
      position_ids = config.positions.ids(tokens[..., 0], span.offset)
    hidden = tokens * config.embed_dim**0.5 if config.scale_embeddings else tokens
    table = () if position_table is None else (position_table,)
    hidden = hidden + config.positions.embed(config, position_ids, *table)
    if config.embedding_norm:
      hidden = config.norm("embedding_norm", config.run)(hidden)
    hidden = nn.with_logical_constraint(hidden, HIDDEN_AXES)
    hidden = embedding_dropout(config, context["deterministic"])(hidden)
    context = Context(
      mask=mask, span=span.replace(position_ids=position_ids), encoded=encoded, encoded_mask=encoded_mask, **context
    )
    hidden, beside = super().__call__(hidden, context, None if cache is None else cache.layers)
    hidden = nn.Dropout(config.dropout.output, deterministic=context.deterministic)(hidden)
    if cache is not None:
      beside = beside.replace(cache=Cache(beside.cache, real, cache.index + length))
    return hidden, beside


def token_table(config, name: str | None = None) -> Embed:
  """The table of token embeddings, called `name`."""
  return embed(
    config, config.vocab_rows, "table_vocab", name, used_row_axis="vocab", padding_row=config.padding_row
  )


class DecoderModel(nn.Module):
  """A decoder with its head.

  Attributes:
    config: a `TransformerConfig`.
    head: an unbound head module, or None for the bare decoder.
  """

  config: Any
  head: Head | None = None

  def new_cache(self, batch: int, length: int, dtype: str | None = None) -> Cache:
    """An empty cache, see `cache.new_cache`."""
    return new_cache(self.config, batch, length, dtype)

  @nn.compact
  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    cache: Cache | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Reads a batch of texts, or goes on with them.

    Args:
      input_ids: int `[batch, length]`; with a cache the next tokens alone.
      attention_mask: `[batch, length]`, 1 for real tokens; without a cache also `[batch, query, key]`.
      position_ids: int `[batch, length]`, counted from the start if not given.
      cache: of the tokens before, see `cache.new_cache`; the output then has the cache for the next call.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state.
      output_attentions: also return every layer's probabilities, before dropout.
      **head_inputs: what the head takes, by its parameters' names.

    Returns:
      The head's struct, or `BaseOutput`.
    """
    config = self.config
    table = token_table(config, "token_embed")
    hidden, beside = EmbeddedStack(config, name="decoder")(
      table(input_ids), attention_mask, position_ids, cache,
      deterministic=deterministic, output_hidden_states=output_hidden_states, output_attentions=output_attentions,
    )  # fmt: skip
    pooled = None
    if self.head is not None and self.head.uses_pooler:
      pooled = hidden[jnp.arange(len(hidden)), last_tokens(input_ids, config.pad_token_id)]
    encoded = BaseOutput(
      last_hidden_state=hidden, pooler_output=pooled, hidden_states=beside.hidden_states, attentions=beside.attentions
    )
    result = with_head(self.head, encoded, table.attend, deterministic, None, head_inputs)
    return result.replace(cache=beside.cache)


def last_tokens(input_ids: jax.Array, pad_token_id: int | None) -> jax.Array:
  """Index of every row's last token that is no padding, `[batch]`; 0 in a row of nothing else."""
  if pad_token_id is None:
    return jnp.full(len(input_ids), input_ids.shape[1] - 1)
  return jnp.max(jnp.where(input_ids != pad_token_id, jnp.arange(input_ids.shape[1]), 0), axis=1)
