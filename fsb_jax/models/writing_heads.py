"""Heads of models that write: scores of the next token, and classes of a text from where it ends; see `heads.py`."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.heads import Attend, Decoder, FirstTokenClassification, Head
from fsb_jax.models.layers import dense


class LanguageModel(Head):
  """Scores of the vocabulary at every position, straight from the last hidden state.

  Attributes:
    bias: see `Decoder`.
  """

  bias: Literal["trained", "fixed", "none"] = "trained"

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    lm_positions: jax.Array | None = None,
  ) -> outputs.MaskedLMOutput:
    """Scores the vocabulary.

    Args:
      encoded: see the module's docstring.
      attend: of the token embeddings.
      deterministic: no dropout.
      lm_positions: int `[batch, asked]`, where to score it; everywhere if not given.
    """
    return outputs.MaskedLMOutput(logits=self.score(encoded.last_hidden_state, attend, lm_positions))

  def score(self, hidden: jax.Array, attend: Attend, positions: jax.Array | None = None) -> jax.Array:
    """Of hidden states `[batch, length, embed]`, `[batch, length or asked, vocab]`."""
    config, length = self.config, "activation_length"
    if positions is not None:
      hidden, length = jnp.take_along_axis(hidden, positions[..., None], axis=1), None
    if config.scale_logits:
      hidden = hidden * config.embed_dim**-0.5
    return Decoder(config, self.bias, name="lm")(hidden, attend, length)


class EncoderAlone(Head):
  """What an encoder-decoder's encoder made, as it is."""

  of_encoder = True

  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.BaseOutput:
    """See the module's docstring."""
    return encoded


class LastTokenClassification(Head):
  """Classes of a text from its last token, which a decoder pools."""

  uses_pooler = True

  @nn.compact
  def __call__(
    self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool
  ) -> outputs.SequenceClassificationOutput:
    """See the module's docstring."""
    logits = dense(self.config, (self.num_labels,), ("embed", "labels"), "score", bias=False)(encoded.pooler_output)
    return outputs.SequenceClassificationOutput(logits=logits)


class EndTokenClassification(FirstTokenClassification):
  """The same from a text's last token, the end token, which an encoder-decoder pools (BART)."""

  uses_pooler = True

  def pooled(self, encoded: outputs.BaseOutput) -> jax.Array:
    """See the base class."""
    return encoded.pooler_output
