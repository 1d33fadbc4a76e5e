"""ZEN: an encoder of n-grams beside the encoder of characters, and attention to fixed codes of offsets.

Sources: Diao et al. 2019, https://arxiv.org/abs/1911.00720, section 2; Song et al. 2021,
https://arxiv.org/abs/2105.01279; of the attention Yan et al. 2019, https://arxiv.org/abs/1911.04474.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fsb_jax.errors import UserError
from fsb_jax.models.attention import Attention, by_offset
from fsb_jax.models.encoder import EncoderModel
from fsb_jax.models.heads import Head, fold_choices, with_head
from fsb_jax.models.positions import Positions, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramSpec:
  """The encoder of n-grams.

  Attributes:
    vocab_size: n-grams it knows; id 0 is padding.
    num_layers: its layers, at most as many as the characters' encoder has.
    positions: a position object; n-grams have no order but where a scheme makes them one.
    mask_as_token_types: heads under which `attention_mask` masks nothing, and stands for `ngram_token_type_ids`;
      without n-grams it masks.
  """

  vocab_size: int
  num_layers: int
  positions: Positions = Positions()
  mask_as_token_types: tuple[type[Head], ...] = ()

  def config(self, config) -> Any:
    """The n-gram encoder's `TransformerConfig`, beside a characters' `config`."""
    return dataclasses.replace(
      config,
      vocab_size=self.vocab_size,
      num_layers=self.num_layers,
      positions=self.positions,
      ngrams=None,
      base_pooler=False,
    )


@struct.dataclass
class Covering:
  """What joins every layer's output: the states of the n-grams that cover a token.

  Attributes:
    matrix: `[batch, length, ngrams]`, how much of each.
  """

  matrix: jax.Array

  def join(self, hidden: jax.Array, states: jax.Array) -> jax.Array:
    """Adds the layer's n-gram states `[batch, ngrams, embed]` to `hidden` `[batch, length, embed]`."""
    return hidden + jnp.einsum("bqn,bne->bqe", self.matrix.astype(hidden.dtype), states)


class NgramModel(EncoderModel):
  """An encoder of characters, each of whose layers takes in what the same layer of an n-gram encoder made.

  Layers beyond the n-gram encoder's last take in its result. Without n-grams it is an `EncoderModel`.
  """

  @nn.compact
  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    input_ngram_ids: jax.Array | None = None,
    ngram_position_matrix: jax.Array | None = None,
    ngram_token_type_ids: jax.Array | None = None,
    ngram_attention_mask: jax.Array | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Encodes a batch.

    Args:
      input_ids: as the next three and the last four, see `EncoderModel`.
      attention_mask: see there, and `NgramSpec.mask_as_token_types`.
      token_type_ids: see there.
      position_ids: see there.
      input_ngram_ids: int `[batch, ngrams]`, None for no n-grams.
      ngram_position_matrix: `[batch, length, ngrams]`, how much of an n-gram each token takes in, 0 where it is not
        covered.
      ngram_token_type_ids: int `[batch, ngrams]`, zeros if not given; not read under `mask_as_token_types`.
      ngram_attention_mask: `[batch, ngrams]`, 1 for real n-grams.
      deterministic: see there.
      output_hidden_states: see there; the characters' states.
      output_attentions: see there; the characters' probabilities.
      **head_inputs: see there.

    Returns:
      The head's struct, or `BaseOutput`.

    Raises:
      UserError: `ngram_position_matrix` does not go with `input_ngram_ids`, or `attention_mask` must stand for the
        n-grams' token types and has another shape.
    """
    choices, arrays = fold_choices(
      self.head, input_ids, attention_mask, token_type_ids, position_ids,
      input_ngram_ids, ngram_position_matrix, ngram_token_type_ids, ngram_attention_mask,
    )  # fmt: skip
    (input_ids, attention_mask, token_type_ids, position_ids), (ngrams, matrix, ngram_types, ngram_mask) = (
      arrays[:4], arrays[4:]
    )  # fmt: skip
    if ngrams is None and matrix is None and self.is_initializing():
      # The n-gram encoder has its parameters whether or not n-grams are given.
      ngrams = jnp.zeros((input_ids.shape[0], 1), jnp.int32)
      matrix = jnp.zeros((*input_ids.shape, 1))
    _require_fitting(input_ids, ngrams, matrix)
    beside = {}
    if ngrams is not None:
      if type(self.head) in self.config.ngrams.mask_as_token_types and attention_mask is not None:
        attention_mask, ngram_types = None, _as_token_types(attention_mask, ngrams)
      states = self._ngram_states(ngrams, ngram_types, ngram_mask, deterministic)
      matrix = nn.with_logical_constraint(matrix, ("activation_batch", "activation_length", None))
      beside = {"joined": Covering(matrix), "per_layer": states}
    encoded, attend = self.encode(
      input_ids, attention_mask, token_type_ids, position_ids,
      deterministic=deterministic, output_hidden_states=output_hidden_states, output_attentions=output_attentions,
      **beside,
    )  # fmt: skip
    return with_head(self.head, encoded, attend, deterministic, choices, head_inputs)

  def _ngram_states(self, ids, token_type_ids, attention_mask, deterministic) -> jax.Array:
    """What each of the characters' layers takes in, `[layers, batch, ngrams, embed]`."""
    config, spec = self.config, self.config.ngrams
    encoder = EncoderModel(spec.config(config), table_axis="table_ngrams", name="ngrams")
    encoded = encoder(ids, attention_mask, token_type_ids, deterministic=deterministic, output_hidden_states=True)
    return jnp.stack([encoded.hidden_states[min(i + 1, spec.num_layers)] for i in range(config.num_layers)])


def _require_fitting(input_ids, ngrams, matrix) -> None:
  """UserError unless the matrix has a row for every token and a column for every n-gram."""
  if (ngrams is None) != (matrix is None):
    raise UserError("give input_ngram_ids and ngram_position_matrix together, or neither")
  if ngrams is not None and matrix.shape != (*input_ids.shape, ngrams.shape[-1]):
    raise UserError(
      f"ngram_position_matrix has shape {matrix.shape}; for input_ids {input_ids.shape} and input_ngram_ids "
      f"{ngrams.shape} it must be {(*input_ids.shape, ngrams.shape[-1])}: [batch, length, ngrams]"
    )


def _as_token_types(attention_mask, ngrams) -> jax.Array:
  if attention_mask.shape != ngrams.shape:
    raise UserError(
      f"this head takes attention_mask {attention_mask.shape} for the token types of input_ngram_ids {ngrams.shape}: "
      "fill both up to the same length, or set mask_as_ngram_token_types to false in config.json to have it mask"
    )
  return attention_mask.astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidOffsets(Positions):
  """Fixed codes of offsets of keys from queries, of the width of a head; sequences may have any length."""

  def codes(self, first: int, last: int, width: int) -> np.ndarray:
    """Codes of the offsets from `first` to `last`, float32 `[last - first + 1, width]`: sines, then cosines."""
    # Rounded to float32 step by step, as the original's table is; the far offsets feel it.
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000) / (half - 1))
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = np.arange(first, last + 1, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)

  def shared(self, config, span: Span) -> jax.Array:
    """The codes from `1 - length` to `length - 1`, `[2 * length - 1, head_dim]`."""
    length = span.queries
    return jnp.asarray(self.codes(1 - length, length - 1, config.head_dim), config.run.dtype)


class SinusoidOffsetAttention(Attention):
  """Attention whose scores have terms of content and offset, each with a bias of the query."""

  def scores(self, query, key, projections, context) -> tuple[float, jax.Array | None]:
    """See the base class."""
    config, run = self.config, self.config.run

    def parameter(name):
      initializer = nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), ("heads", "kv"))
      return self.param(name, initializer, (config.num_heads, config.head_dim), run.param_dtype).astype(run.dtype)

    scale = 1.0 / math.sqrt(config.head_dim)
    bias = by_offset(jnp.einsum("bqhd,rd->bhqr", query + parameter("offset_bias"), context.shared))
    # The rest of (query + content_bias) · key.
    bias += jnp.einsum("hd,bkhd->bhk", parameter("content_bias"), key)[:, :, None]
    return scale, bias * scale
