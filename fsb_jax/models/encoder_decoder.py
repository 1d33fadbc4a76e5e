"""A model that reads one text and writes another: an encoder and a decoder with one table of tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.errors import UserError
from fsb_jax.models.cache import Cache, new_cache
from fsb_jax.models.decoder import EmbeddedStack, token_table
from fsb_jax.models.heads import Head, with_head
from fsb_jax.models.masks import mask_from_attention_mask
from fsb_jax.models.outputs import BaseOutput


class EncoderDecoderModel(nn.Module):
  """An encoder and a decoder with their head.

  Attributes:
    config: a `TransformerConfig` with a `decoder`.
    head: an unbound head module on the decoder, or on the encoder (`of_encoder`), or None.
  """

  config: Any
  head: Head | None = None

  def setup(self):
    """Declares the parts that `encode` and `__call__` share."""
    self.token_embed = token_table(self.config)
    shared = self.config.decoder.positions is None
    self.position_embed = self.config.positions.table(self.config) if shared else None
    self.encoder = EmbeddedStack(self.config)
    self.decoder = EmbeddedStack(self.config.decoder_config)

  def new_cache(self, batch: int, length: int, dtype: str | None = None) -> Cache:
    """An empty cache of the decoder, see `cache.new_cache`."""
    return new_cache(self.config.decoder_config, batch, length, dtype)

  def encode(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
  ) -> BaseOutput:
    """Reads a batch; the arguments are those of `__call__`."""
    hidden, beside = self.encoder(
      self.token_embed(input_ids), attention_mask, position_table=self.position_embed,
      deterministic=deterministic, output_hidden_states=output_hidden_states, output_attentions=output_attentions,
    )  # fmt: skip
    return BaseOutput(last_hidden_state=hidden, hidden_states=beside.hidden_states, attentions=beside.attentions)

  def __call__(
    self,
    input_ids: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    decoder_input_ids: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
    encoder_outputs: BaseOutput | None = None,
    cache: Cache | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Reads a batch of texts and scores what is written.

    Args:
      input_ids: int `[batch, length]`; not read where `encoder_outputs` are given.
      attention_mask: `[batch, length]` of real tokens that are read.
      decoder_input_ids: int `[batch, written]`, the written text, one token late; with a cache the next tokens alone.
        A head that reads the end of the text writes `input_ids` once more if they are not given.
      decoder_attention_mask: `[batch, written]` of real tokens that are written.
      encoder_outputs: what `encode` made. With a cache, the decoder's rows may be several for each of these: beams.
      cache: of the tokens before; the output then has the cache for the next call. Its first call reads the encoder's
        result, later ones have what they need of it in the cache.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state.
      output_attentions: also return every layer's probabilities, before dropout.
      **head_inputs: what the head takes, by its parameters' names.

    Returns:
      The head's struct, or `BaseOutput` of the decoder.
    """
    asked = dict(
      deterministic=deterministic, output_hidden_states=output_hidden_states, output_attentions=output_attentions
    )
    if encoder_outputs is None:
      encoder_outputs = self.encode(input_ids, attention_mask, **asked)
    if self.head is not None and self.head.of_encoder:
      return with_head(self.head, encoder_outputs, self.token_embed.attend, deterministic, None, head_inputs)
    pools = self.head is not None and self.head.uses_pooler
    if decoder_input_ids is None and (pools or self.is_initializing()):
      decoder_input_ids = jnp.roll(input_ids, 1, axis=1).at[:, 0].set(self.config.decoder.start_token_id)
    if decoder_input_ids is None:
      raise UserError(
        "the model wants decoder_input_ids, the text it is to write shifted by one (fsb_jax.encodings.shift_right)"
      )
    hidden, beside = self.decoder(
      self.token_embed(decoder_input_ids), decoder_attention_mask, None, cache,
      encoded=encoder_outputs.last_hidden_state, position_table=self.position_embed,
      encoded_mask=mask_from_attention_mask(attention_mask, self.config.mask_fill), **asked,
    )  # fmt: skip
    pooled = hidden[jnp.arange(len(hidden)), self._ends(input_ids)] if pools else None
    decoded = BaseOutput(
      last_hidden_state=hidden, pooler_output=pooled,
      encoder_last_hidden_state=encoder_outputs.last_hidden_state
    )
    result = with_head(self.head, decoded, self.token_embed.attend, deterministic, None, head_inputs)
    return result.replace(
      hidden_states=None, attentions=None,
      encoder_last_hidden_state=encoder_outputs.last_hidden_state,
      encoder_hidden_states=encoder_outputs.hidden_states, encoder_attentions=encoder_outputs.attentions,
      decoder_hidden_states=beside.hidden_states, decoder_attentions=beside.attentions,
      cross_attentions=beside.cross_attentions, cache=beside.cache,
    )  # fmt: skip

  def _ends(self, input_ids: jax.Array) -> jax.Array:
    """Index of every row's last end token, `[batch]`; 0 in a row without one."""
    end = self.config.decoder.end_token_id
    if end is None:
      raise UserError("config.json names no single eos_token_id, at which this head reads")
    return jnp.max(jnp.where(input_ids == end, jnp.arange(input_ids.shape[1]), 0), axis=1)
