"""A text's blanks filled: what is to be done at every token that is read, beside the text that is written.

Source: He 2021, https://arxiv.org/abs/2109.12487, section 3; https://github.com/IDEA-CCNL/Fengshenbang-LM,
fengshen/models/bart.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.heads import Attend
from fsb_jax.models.layers import dense
from fsb_jax.models.writing_heads import LanguageModel


class TextInfill(LanguageModel):
  """`LanguageModel` of an encoder-decoder, and labels of the tokens that its encoder reads: keep, replace, insert.

  `config.head_sizes.encoder_loss_type` says whether these are classes (0) or a number to be rounded (1).
  """

  sizes = ("encoder_loss_type", "loss_weight")

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.TextInfillOutput:
    """See the module's docstring."""
    config = self.config
    logits = self.score(encoded.last_hidden_state, attend)
    x = self.drop(encoded.encoder_last_hidden_state, deterministic)
    x = jnp.tanh(dense(config, (config.embed_dim,), ("embed", "mlp"), "classifier_dense")(x))
    x = self.drop(x, deterministic)
    regresses = config.head_sizes.encoder_loss_type == 1
    x = dense(config, (1 if regresses else self.num_labels,), ("embed", "labels"), "classifier_out")(x)
    # Of the classes in the loss; not read here, for the weights of a batch come from the batch alone.
    self.param(
      "label_weights",
      nn.with_logical_partitioning(nn.initializers.ones_init(), ("labels",)),
      (self.num_labels,),
      config.run.param_dtype,
    )
    return outputs.TextInfillOutput(
      logits=logits,
      encoder_logits=jax.nn.sigmoid(x[..., 0]) * self.num_labels - 0.5 if regresses else x,
      encoder_loss_weight=config.head_sizes.loss_weight,
    )
