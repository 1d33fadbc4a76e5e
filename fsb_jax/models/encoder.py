"""A text encoder: embeddings, stack, pooler, and at most one head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.errors import UserError
from fsb_jax.models.heads import Attend, Head, fold_choices, with_head
from fsb_jax.models.layers import activation, dense, embed
from fsb_jax.models.masks import Mask, mask_from_attention_mask, prefix_mask
from fsb_jax.models.outputs import BaseOutput
from fsb_jax.models.sliding_window import without_overfull
from fsb_jax.models.transformer import HIDDEN_AXES, Context, Stack


class EncoderModel(nn.Module):
  """An encoder with its head.

  Attributes:
    config: a `TransformerConfig`.
    head: an unbound head module, or None for the bare encoder (with its pooler).
    table_axis: logical name of the token table's rows.
  """

  config: Any
  head: Head | None = None
  table_axis: str = "table_vocab"

  @nn.compact
  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    global_attention_mask: jax.Array | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Encodes a batch.

    Args:
      input_ids: int `[batch, length]`; `[batch, choices, length]` for multiple choice (and so for all arguments).
      attention_mask: `[batch, length]`, 1 for real tokens, or `[batch, query, key]`, 1 where a query sees a key.
      token_type_ids: int `[batch, length]`, zeros if not given.
      position_ids: int `[batch, length]`, counted by the config's position scheme if not given.
      global_attention_mask: `[batch, length]`, 1 for tokens that see and are seen from beyond the config's window;
        those of the head's choice if not given.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state.
      output_attentions: also return every layer's probabilities, before dropout.
      **head_inputs: what the head takes, by its parameters' names.

    Returns:
      The head's struct, or `BaseOutput`.
    """
    choices, (*arrays, global_attention_mask) = fold_choices(
      self.head, input_ids, attention_mask, token_type_ids, position_ids, global_attention_mask
    )
    encoded, attend = self.encode(
      *arrays,
      global_attention_mask=global_attention_mask,
      deterministic=deterministic,
      output_hidden_states=output_hidden_states,
      output_attentions=output_attentions,
    )
    return with_head(self.head, encoded, attend, deterministic, choices, head_inputs)

  def encode(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    token_type_ids: jax.Array | None,
    position_ids: jax.Array | None,
    global_attention_mask: jax.Array | None = None,
    per_layer: Any = None,
    **context: Any,
  ) -> tuple[BaseOutput, Attend]:
    """What the head reads, and scores of the vocabulary by the token embeddings.

    Args:
      input_ids: as the other arrays, see `__call__`.
      attention_mask: see `__call__`.
      token_type_ids: see `__call__`.
      position_ids: see `__call__`.
      global_attention_mask: see `__call__`.
      per_layer: see `Stack`.
      **context: what else the layers read, see `Context`.
    """
    config = self.config
    token_embed = embed(
      config,
      config.vocab_rows,
      self.table_axis,
      "token_embed",
      used_row_axis="vocab",
      padding_row=config.padding_row,
    )
    if token_type_ids is None:
      token_type_ids = jnp.zeros_like(input_ids)
    mask = self._mask(input_ids, attention_mask, token_type_ids, global_attention_mask)
    context = Context(mask=mask, **context)
    hidden = self._embed(token_embed, input_ids, token_type_ids, position_ids, mask, context.deterministic)
    if config.token_dim is not None:
      hidden = dense(config, (config.embed_dim,), ("table_embed", "embed"), "embed_project")(hidden)
    hidden, beside = Stack(config, name="encoder")(hidden, context, per_layer)
    pooled = None
    if self.head.uses_pooler if self.head else config.base_pooler:
      pooled = dense(config, (config.embed_dim,), ("embed", "mlp"), "pooler")(hidden[:, 0])
      pooled = activation(config.pooler_activation)(pooled)
    encoded = BaseOutput(
      last_hidden_state=hidden, pooler_output=pooled, hidden_states=beside.hidden_states, attentions=beside.attentions
    )
    return encoded, token_embed.attend

  def _mask(self, input_ids, attention_mask, token_type_ids, global_attention_mask) -> Mask:
    config = self.config
    if config.mask_kind == "prefix":
      return prefix_mask(attention_mask, token_type_ids, config.mask_fill)
    mask = mask_from_attention_mask(attention_mask, config.mask_fill)
    if config.window is None:
      if global_attention_mask is not None:
        raise UserError("the model has no window, so that every token is global; leave out global_attention_mask")
      return mask
    if mask.dense is not None:
      raise UserError("a model with a window takes an attention_mask [batch, length]")
    rule = "none" if self.head is None else self.head.global_tokens
    everywhere = config.window.global_tokens(global_attention_mask, rule, input_ids, mask.keys)
    return mask.replace(window=max(config.window.reach), everywhere=everywhere)

  def _embed(self, token_embed, input_ids, token_type_ids, position_ids, mask, deterministic) -> jax.Array:
    config = self.config
    if position_ids is None:
      position_ids = config.positions.ids(input_ids)
    hidden = token_embed(input_ids) + config.positions.embed(config, position_ids)
    if config.token_types:
      hidden = hidden + embed(config, config.token_types, "token_type", "token_type_embed")(token_type_ids)
    if config.embedding_norm:
      hidden = config.norm("embedding_norm", config.run)(hidden)
    real = mask.real()
    if config.mask_embeddings and real is not None:
      hidden = hidden * real[..., None].astype(hidden.dtype)
    hidden = nn.with_logical_constraint(without_overfull(hidden, mask.everywhere), HIDDEN_AXES)
    return embedding_dropout(config, deterministic)(hidden)


def embedding_dropout(config, deterministic: bool) -> nn.Dropout:
  """The dropout after the embeddings."""
  rates = config.dropout
  return nn.Dropout(rates.hidden if rates.embedding is None else rates.embedding, deterministic=deterministic)
