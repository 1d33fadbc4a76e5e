"""TCBert: classes of a text beside a masked language model that is asked for their names.

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/tcbert.
"""

import flax.linen as nn
import jax

from fsb_jax.models import outputs
from fsb_jax.models.heads import Attend, Head, Vocabulary


class TCBert(Head):
  """One of `num_labels` classes from a text's first token, and scores of the vocabulary."""

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    masked_lm_positions: jax.Array | None = None,
  ) -> outputs.TCBertOutput:
    """See the module's docstring; `masked_lm_positions` as in `MaskedLM`."""
    vocabulary = Vocabulary(self.config, name="masked_lm")
    return outputs.TCBertOutput(
      logits=self.classify(encoded.last_hidden_state[:, 0], deterministic, "linear_classifier"),
      prediction_logits=vocabulary(encoded.last_hidden_state, attend, masked_lm_positions),
    )
