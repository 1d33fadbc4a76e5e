"""Heads that score spans of a text against descriptions in the same row: Ubert and UniEX.

A score of (row i, column j) is about a span from token i to token j, or about a pair of tokens.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsb_jax.models import outputs
from fsb_jax.models.heads import Attend, Head
from fsb_jax.models.layers import activation, dense


def _view(head: Head, hidden: jax.Array, size: int, name: str) -> jax.Array:
  """Tokens in one of their roles, `[..., embed] -> [..., size]`."""
  return activation("gelu")(dense(head.config, (size,), ("embed", "mlp"), name)(hidden))


class Ubert(Head):
  """A biaffine score of every span, once for each label (Dozat and Manning 2017, https://arxiv.org/abs/1611.01734).

  A row of the batch holds a label and the text: inputs are `[batch, labels, length]`, flattened by the model before the
  encoder. Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/ubert.
  """

  takes_choices = True
  sizes = ("biaffine_size",)

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.UbertOutput:
    """Returns logits `[batch * labels, length, length]`, which the model folds to `[batch, labels, length, length]`."""
    config = self.config
    size = config.head_sizes.biaffine_size

    def with_one(name):
      x = _view(self, encoded.last_hidden_state, size, name)
      return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    # One more than a power of two: no mesh would divide it.
    query = dense(config, (size + 1,), (None, None), "biaffine", bias=False)(with_one("query"))
    return outputs.UbertOutput(span_logits=jnp.einsum("bqe,bke->bqk", query, with_one("key")))


class Uniex(Head):
  """Triaffine scores of spans and types (Yang et al. 2023, UniEX, https://arxiv.org/abs/2305.10306).

  score(x, y, z) = Σ_ioj start[x, i] W[i, o, j] end[y, j] type[z, o]. Type 0 asks whether (x, y) is a span at all, the
  others what it is. Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/uniex.
  """

  sizes = ("triaffine_hidden_size",)

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    label_positions: jax.Array | None = None,
    text_positions: jax.Array | None = None,
    span_positions: jax.Array | None = None,
  ) -> outputs.UniexOutput:
    """Scores pairs of tokens.

    Args:
      encoded: the encoder's output.
      attend: not used.
      deterministic: not used; there is no dropout.
      label_positions: int `[batch, types]`, tokens that stand for the types, [CLS] for type 0 first; all if not given.
      text_positions: int `[batch, text]`, tokens that `index_logits` pairs; all if not given.
      span_positions: int `[batch, spans]`, tokens that `type_logits` pairs; `text_positions` if not given. Where they
        are the ends of a few spans, the types cost little.
    """
    config, hidden = self.config, encoded.last_hidden_state
    size = config.head_sizes.triaffine_hidden_size
    start, end = _view(self, hidden, size, "start"), _view(self, hidden, size, "end")
    types = _at(_view(self, hidden, size, "type"), label_positions)
    # [batch, types, i, j]: what a type makes of a start and an end.
    forms = dense(config, (size, size), (None, "mlp", None), "triaffine", bias=False)(types)

    def pairs(forms, positions):
      return jnp.einsum("bxi,bzij,byj->bxyz", _at(start, positions), forms, _at(end, positions))

    return outputs.UniexOutput(
      index_logits=pairs(forms[:, :1], text_positions)[..., 0],
      type_logits=pairs(forms[:, 1:], text_positions if span_positions is None else span_positions),
    )


def _at(hidden: jax.Array, positions: jax.Array | None) -> jax.Array:
  """`[batch, length, size]` at `[batch, places]`, all of it where that is None."""
  return hidden if positions is None else jnp.take_along_axis(hidden, positions[..., None], axis=1)


EXTRACTION_HEADS: dict[str, type[Head]] = {"ubert": Ubert, "uniex": Uniex}
