"""Heads that find entities: conditional random field, spans by their ends, spans as pairs of tokens.

The plain linear tagger is `heads.TokenClassification`. These are of the original code,
https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/tagging_models.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.heads import Attend, Head
from fsb_jax.models.layers import NormSpec, at_least_float32, dense


class CrfTagging(Head):
  """A tag for every token, the tags of a text scored as a sequence; see `crf.py`."""

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.CrfOutput:
    """See the module's docstring."""

    def scores(name, *shape):
      initializer = nn.with_logical_partitioning(_uniform(0.1), ("labels", None)[: len(shape)])
      return self.param(name, initializer, shape, self.config.run.param_dtype)

    labels = self.num_labels
    return outputs.CrfOutput(
      logits=self.classify(encoded.last_hidden_state, deterministic),
      transitions=scores("transitions", labels, labels),
      start_transitions=scores("start_transitions", labels),
      end_transitions=scores("end_transitions", labels),
    )


class SpanTagging(Head):
  """For every token, what kind of entity begins and what kind ends there.

  Where entities end is asked knowing where they begin: by the gold labels in training where they are given, else by the
  head's own answer.

  Attributes:
    soft_labels: the beginnings are told as a probability of every label; otherwise as the label's number.
  """

  soft_labels: bool = True

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    start_positions: jax.Array | None = None,
  ) -> outputs.SpanTaggingOutput:
    """Scores the labels.

    Args:
      encoded: see the module's docstring.
      attend: not used.
      deterministic: no dropout, and no gold labels.
      start_positions: int `[batch, length]`, the gold label of what begins at each token, 0 for nothing.
    """
    config, hidden = self.config, self.drop(encoded.last_hidden_state, deterministic)
    start_logits = dense(config, (self.num_labels,), ("embed", "labels"), "start_tags")(hidden)
    told = None if deterministic else start_positions
    if self.soft_labels:
      wide = start_logits.astype(at_least_float32(start_logits.dtype))
      starts = jax.nn.softmax(wide) if told is None else jax.nn.one_hot(told, self.num_labels)
    else:
      starts = (jnp.argmax(start_logits, -1) if told is None else jnp.maximum(told, 0))[..., None]
    x = jnp.concatenate([hidden, starts.astype(hidden.dtype)], axis=-1)
    # Its width is no multiple of anything, so no axis has a name.
    x = jnp.tanh(dense(config, x.shape[-1:], (None, None), "end_dense")(x))
    x = NormSpec(epsilon=1e-5)("end_norm", config.run)(x)
    end_logits = dense(config, (self.num_labels,), (None, "labels"), "end_tags")(x)
    return outputs.SpanTaggingOutput(start_logits=start_logits, end_logits=end_logits)


class BiaffineTagging(Head):
  """For every pair of tokens, what kind of entity begins at the one and ends at the other (Yu et al. 2020).

  https://arxiv.org/abs/2005.07150. The LSTM reads padding as it reads text.

  Attributes:
    lstm_dim: width of one direction; None takes half the encoder's.
    lstm_layers: how many.
    lstm_dropout: between them.
    span_dim: width of a token as the first or the last of a span.
  """

  lstm_dim: int | None = None
  lstm_layers: int = 2
  lstm_dropout: float = 0.5
  span_dim: int = 128

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.BiaffineOutput:
    """See the module's docstring."""
    config = self.config
    x = BidirectionalLstm(
      config, self.lstm_dim or config.embed_dim // 2, self.lstm_layers, self.lstm_dropout, name="lstm"
    )(encoded.last_hidden_state, deterministic)

    def side(name):
      y = nn.relu(dense(config, (self.span_dim,), ("embed", None), name)(x))
      return jnp.concatenate([y, jnp.ones_like(y[..., :1])], axis=-1)

    width = self.span_dim + 1
    initializer = nn.initializers.normal(config.initializer_range)
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(initializer, (None, "labels", None)),
      (width, self.num_labels, width),
      config.run.param_dtype,
    )
    # b batch, s first token, t last token, i and j their features, o labels
    logits = jnp.einsum("bsi,ioj,btj->bsto", side("span_start"), kernel.astype(config.run.dtype), side("span_end"))
    return outputs.BiaffineOutput(span_logits=logits)


class BidirectionalLstm(nn.Module):
  """Layers of two LSTMs each, one of which reads backwards (`torch.nn.LSTM(bidirectional=True)`).

  Flax's own cells have one bias where PyTorch's have two, which could not be told apart again.

  Attributes:
    features: width of one direction.
    layers: how many.
    dropout: rate between layers.
  """

  config: Any
  features: int
  layers: int
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    """Maps `[batch, length, ...]` to `[batch, length, 2 * features]`."""
    for i in range(self.layers):
      if i:
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
      directions = (
        Lstm(self.config, self.features, backwards, name=f"{name}_{i}")(x)
        for name, backwards in (("forward", False), ("backward", True))
      )
      x = jnp.concatenate(list(directions), axis=-1)
    return x


class Lstm(nn.Module):
  """One direction of one layer (Hochreiter & Schmidhuber 1997).

  Attributes:
    features: width.
    backwards: reads from the last position to the first.
  """

  config: Any
  features: int
  backwards: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, length, ...]` to `[batch, length, features]`."""
    # What the tokens bring to all gates at once; only the rest has to wait for its turn.
    gates = dense(self.config, (4 * self.features,), ("embed", None), "input")(x)
    steps = nn.scan(
      _LstmCell,
      variable_broadcast="params",
      split_rngs={"params": False},
      in_axes=1,
      out_axes=1,
      reverse=self.backwards,
    )
    zeros = jnp.zeros((x.shape[0], self.features), gates.dtype)
    return steps(self.config, self.features, name="cell")((zeros, zeros), gates)[1]


class _LstmCell(nn.Module):
  config: Any
  features: int

  @nn.compact
  def __call__(self, carry: tuple[jax.Array, jax.Array], gates: jax.Array):
    state, memory = carry
    gates += dense(self.config, (4 * self.features,), (None, None), "recurrent")(state)
    # In PyTorch's order.
    write, forget, new, read = jnp.split(gates, 4, axis=-1)
    memory = nn.sigmoid(forget) * memory + nn.sigmoid(write) * jnp.tanh(new)
    state = nn.sigmoid(read) * jnp.tanh(memory)
    return (state, memory), state


def _uniform(limit: float) -> Callable[..., jax.Array]:
  """Draws evenly from -limit to limit."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


TAGGING_HEADS: dict[str, Callable[..., Head]] = {
  "crf": CrfTagging,
  "span": SpanTagging,
  "span_hard": functools.partial(SpanTagging, soft_labels=False),
  "biaffine": BiaffineTagging,
}
