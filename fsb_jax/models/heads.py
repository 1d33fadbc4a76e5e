"""Heads on an encoder. Each reads a `BaseOutput` and returns its own struct of `outputs.py`.

A head class says by `uses_pooler` whether the encoder computes its pooler for it, and by `of_encoder` whether it reads
the encoder of an encoder-decoder, which then has no decoder. Arrays that its `__call__` takes
beyond the first three are inputs of the model with that head, by the same names; they must have defaults.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.layers import activation, dense, mask_unused_rows

Attend = Callable[[jax.Array], jax.Array]


class Head(nn.Module):
  """Fields all heads share.

  Attributes:
    num_labels: classes of a classification head; others ignore it.
    global_tokens: which tokens see everything where the model has a window and the caller does not say; see
      `sliding_window.Window.global_tokens`.
  """

  config: Any
  num_labels: int = 2
  global_tokens: str = "none"

  uses_pooler = False
  of_encoder = False

  def classify(self, x: jax.Array, deterministic: bool, name: str = "classifier") -> jax.Array:
    """Dropout and a linear layer to `num_labels`, `[..., embed] -> [..., num_labels]`."""
    x = self.drop(x, deterministic)
    return dense(self.config, (self.num_labels,), ("embed", "labels"), name)(x)

  def drop(self, x: jax.Array, deterministic: bool) -> jax.Array:
    """The classifier's dropout."""
    rates = self.config.dropout
    rate = rates.hidden if rates.classifier is None else rates.classifier
    return nn.Dropout(rate, deterministic=deterministic)(x)


def fold_choices(
  head: Head | None, input_ids: jax.Array, *others: jax.Array | None
) -> tuple[tuple[int, int] | None, list[jax.Array | None]]:
  """Lays the choices of a multiple choice head one below the other.

  Args:
    head: an unbound head, or None.
    input_ids: `[batch, length]`, or `[batch, choices, length]` where `head` takes choices.
    *others: arrays that begin as `input_ids` does, or None.

  Returns:
    (batch, choices), or None where there are none; and all arrays, `[batch * choices, ...]` where there are.
  """
  arrays = [input_ids, *others]
  if not getattr(head, "takes_choices", False):
    return None, arrays
  if input_ids.ndim != 3:
    raise ValueError(f"this head takes input_ids [batch, choices, length], got shape {input_ids.shape}")
  return input_ids.shape[:2], [x if x is None else x.reshape(-1, *x.shape[2:]) for x in arrays]


def with_head(
  head: Head | None,
  encoded: outputs.BaseOutput,
  attend: Attend,
  deterministic: bool,
  choices: tuple[int, int] | None,
  head_inputs: Mapping[str, jax.Array | None],
) -> outputs.Output:
  """What a model returns.

  Args:
    head: the model's, or None for `encoded` itself.
    encoded: what the encoder made.
    attend: of the token embeddings, hidden states to scores of the vocabulary.
    deterministic: no dropout.
    choices: from `fold_choices`.
    head_inputs: what the head takes beside; None is left out.
  """
  given = {name: x for name, x in head_inputs.items() if x is not None}
  if head is None:
    if given:
      raise TypeError(f"a model without a head takes no {', '.join(given)}")
    return encoded
  result = head(encoded, attend, deterministic, **given)
  if choices is not None:
    result = jax.tree.map(lambda x: x.reshape(*choices, *x.shape[1:]), result)
  return result.replace(hidden_states=encoded.hidden_states, attentions=encoded.attentions)


class Decoder(nn.Module):
  """Scores of the vocabulary: the token embeddings, or a layer of its own, and a bias.

  Attributes:
    bias: "trained"; "fixed" for one that is in the files and that training leaves as it is; or "none".
  """

  config: Any
  bias: Literal["trained", "fixed", "none"] = "trained"

  def decode(self, hidden: jax.Array, attend: Attend, length: str | None = "activation_length") -> jax.Array:
    """Maps `[batch, length, embed]` to `[batch, length, vocab]`; `length` is that axis's name."""
    config = self.config
    if config.tie_embeddings:
      logits = attend(hidden)
    else:
      layer = dense(config, (config.vocab_rows,), ("embed", "vocab"), "decoder", bias=self.bias == "trained")
      logits = layer(hidden)
    if self.bias == "fixed" or (self.bias == "trained" and config.tie_embeddings):
      bias = self.param(
        "bias",
        nn.with_logical_partitioning(nn.initializers.zeros_init(), ("vocab",)),
        (config.vocab_rows,),
        config.run.param_dtype,
      )
      bias = jax.lax.stop_gradient(bias) if self.bias == "fixed" else bias
      logits = logits + bias.astype(config.run.dtype)
    logits = nn.with_logical_constraint(logits, ("activation_batch", length, "activation_vocab"))
    return mask_unused_rows(logits, config.vocab_size)

  @nn.compact
  def __call__(self, hidden: jax.Array, attend: Attend, length: str | None = "activation_length") -> jax.Array:
    """See `decode`."""
    return self.decode(hidden, attend, length)


class Vocabulary(Decoder):
  """Transform, norm and decoder of a masked language model (BERT, Devlin et al. 2018, section 3.1).

  Attributes:
    transform_activation: after the transform; None takes the feed-forward block's.
    norm_epsilon: of the norm; None takes the other norms'.
  """

  transform_activation: str | None = None
  norm_epsilon: float | None = None

  @nn.compact
  def __call__(self, hidden: jax.Array, attend: Attend, positions: jax.Array | None = None) -> jax.Array:
    """Maps `[batch, length, embed]` to `[batch, length, vocab]`; at `positions` `[batch, asked]` alone where given."""
    config, length = self.config, "activation_length"
    if positions is not None:
      # Not split: they are few, and XLA (jaxlib 0.10.2) computes wrong gradients where parts are of different size.
      hidden, length = jnp.take_along_axis(hidden, positions[..., None], axis=1), None
    hidden = dense(config, (config.token_width,), ("embed", "mlp"), "transform")(hidden)
    hidden = activation(self.transform_activation or config.activations[0])(hidden)
    norm = config.norm if self.norm_epsilon is None else dataclasses.replace(config.norm, epsilon=self.norm_epsilon)
    hidden = norm("norm", config.run)(hidden)
    return self.decode(hidden, attend, length)


class MaskedLM(Head):
  """Scores of the vocabulary at every position.

  Attributes:
    transform_activation: see `Vocabulary`.
    norm_epsilon: see `Vocabulary`.
  """

  transform_activation: str | None = None
  norm_epsilon: float | None = None

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    masked_lm_positions: jax.Array | None = None,
  ) -> outputs.MaskedLMOutput:
    """Scores the vocabulary.

    Args:
      encoded: see the module's docstring.
      attend: of the token embeddings.
      deterministic: no dropout.
      masked_lm_positions: int `[batch, asked]`, where to score it; everywhere if not given.
    """
    vocabulary = Vocabulary(
      self.config, transform_activation=self.transform_activation, norm_epsilon=self.norm_epsilon, name="masked_lm"
    )
    logits = vocabulary(encoded.last_hidden_state, attend, masked_lm_positions)
    return outputs.MaskedLMOutput(logits=logits)


class NextSentence(Head):
  """Does the second text follow the first?"""

  uses_pooler = True

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.NextSentenceOutput:
    """See the module's docstring."""
    logits = dense(self.config, (2,), ("embed", "labels"), "next_sentence")(encoded.pooler_output)
    return outputs.NextSentenceOutput(logits=logits)


class Pretraining(Head):
  """`MaskedLM` and `NextSentence` together."""

  uses_pooler = True

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    masked_lm_positions: jax.Array | None = None,
  ) -> outputs.PretrainingOutput:
    """See the module's docstring; `masked_lm_positions` as in `MaskedLM`."""
    vocabulary = Vocabulary(self.config, name="masked_lm")
    return outputs.PretrainingOutput(
      prediction_logits=vocabulary(encoded.last_hidden_state, attend, masked_lm_positions),
      seq_relationship_logits=dense(self.config, (2,), ("embed", "labels"), "next_sentence")(encoded.pooler_output),
    )


class SentenceOrder(Head):
  """`MaskedLM`, and are the two texts in their order (ALBERT, Lan et al. 2019)?"""

  uses_pooler = True

  @nn.compact
  def __call__(
    self,
    encoded: outputs.BaseOutput,
    attend: Attend,
    deterministic: bool,
    masked_lm_positions: jax.Array | None = None,
  ) -> outputs.SentenceOrderOutput:
    """See the module's docstring; `masked_lm_positions` as in `MaskedLM`."""
    vocabulary = Vocabulary(self.config, name="masked_lm")
    x = self.drop(encoded.pooler_output, deterministic)
    return outputs.SentenceOrderOutput(
      prediction_logits=vocabulary(encoded.last_hidden_state, attend, masked_lm_positions),
      sop_logits=dense(self.config, (2,), ("embed", "labels"), "sentence_order")(x),
    )


class Discriminator(Head):
  """Was each token replaced by another (ELECTRA, Clark et al. 2020)?"""

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.DiscriminatorOutput:
    """See the module's docstring."""
    config = self.config
    x = dense(config, (config.embed_dim,), ("embed", "mlp"), "transform")(encoded.last_hidden_state)
    x = activation(config.activations[0])(x)
    logits = dense(config, (1,), ("embed", "labels"), "replaced")(x)[..., 0]
    return outputs.DiscriminatorOutput(logits=logits)


class SequenceClassification(Head):
  """One of `num_labels` classes for a text, from the pooled first token."""

  uses_pooler = True

  @nn.compact
  def __call__(
    self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool
  ) -> outputs.SequenceClassificationOutput:
    """See the module's docstring."""
    logits = self.classify(encoded.pooler_output, deterministic)
    return outputs.SequenceClassificationOutput(logits=logits)


class FirstTokenClassification(Head):
  """Classes of a text from a two-layer network of its own on the first token, without a pooler (RoBERTa).

  Attributes:
    hidden_activation: between the two; None takes the feed-forward block's.
  """

  hidden_activation: str | None = "tanh"

  def pooled(self, encoded: outputs.BaseOutput) -> jax.Array:
    """What is classified, `[batch, embed]`."""
    return encoded.last_hidden_state[:, 0]

  @nn.compact
  def __call__(
    self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool
  ) -> outputs.SequenceClassificationOutput:
    """See the module's docstring."""
    x = self.drop(self.pooled(encoded), deterministic)
    x = dense(self.config, (self.config.embed_dim,), ("embed", "mlp"), "classifier_dense")(x)
    x = activation(self.hidden_activation or self.config.activations[0])(x)
    logits = self.classify(x, deterministic, "classifier_out")
    return outputs.SequenceClassificationOutput(logits=logits)


class TokenClassification(Head):
  """One of `num_labels` classes for every token."""

  @nn.compact
  def __call__(
    self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool
  ) -> outputs.TokenClassificationOutput:
    """See the module's docstring."""
    logits = self.classify(encoded.last_hidden_state, deterministic)
    return outputs.TokenClassificationOutput(logits=logits)


class MultipleChoice(Head):
  """A score for every choice; inputs are `[batch, choices, length]`, flattened by the model before the encoder."""

  num_labels: int = 1

  uses_pooler = True
  takes_choices = True

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.MultipleChoiceOutput:
    """Returns logits `[batch * choices]`, which the model folds to `[batch, choices]`."""
    x = self.drop(encoded.pooler_output, deterministic)
    logits = dense(self.config, (1,), ("embed", "labels"), "classifier")(x)[:, 0]
    return outputs.MultipleChoiceOutput(logits=logits)


class SummaryClassification(Head):
  """Classes of a text from one token.

  Attributes:
    token: which one; -1 is the last position, padding or not.
    summary_activation: after a linear layer on it; None for no such layer.
    summary_dropout: after that.
    classifier: name of the last layer.
  """

  token: int = 0
  summary_activation: str | None = None
  summary_dropout: float = 0.0
  classifier: str = "classifier"

  @property
  def classes(self) -> int:
    """How many scores there are."""
    return self.num_labels

  def output(self, logits: jax.Array) -> outputs.Output:
    """What is returned of scores `[batch, classes]`."""
    return outputs.SequenceClassificationOutput(logits=logits)

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool):
    """See the module's docstring."""
    config, x = self.config, encoded.last_hidden_state[:, self.token]
    if self.summary_activation is not None:
      x = activation(self.summary_activation)(dense(config, (config.embed_dim,), ("embed", "mlp"), "summary")(x))
    x = nn.Dropout(self.summary_dropout, deterministic=deterministic)(x)
    logits = dense(config, (self.classes,), ("embed", "labels"), self.classifier)(x)
    return self.output(logits)


class SummaryMultipleChoice(SummaryClassification):
  """A score for every choice from one of its tokens; see `MultipleChoice`."""

  takes_choices = True
  classes = 1

  def output(self, logits: jax.Array) -> outputs.MultipleChoiceOutput:
    """Of scores `[batch * choices, 1]`, see `MultipleChoice`."""
    return outputs.MultipleChoiceOutput(logits=logits[:, 0])


class QuestionAnswering(Head):
  """Scores of every token as the first and as the last of an answer span."""

  @nn.compact
  def __call__(
    self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool
  ) -> outputs.QuestionAnsweringOutput:
    """See the module's docstring."""
    scores = dense(self.config, (2,), ("embed", "labels"), "span")(encoded.last_hidden_state)
    return outputs.QuestionAnsweringOutput(
      start_logits=scores[..., 0], end_logits=scores[..., 1]
    )


HEADS: dict[str, type[Head]] = {
  "masked_lm": MaskedLM,
  "pretraining": Pretraining,
  "next_sentence": NextSentence,
  "sequence_classification": SequenceClassification,
  "token_classification": TokenClassification,
  "multiple_choice": MultipleChoice,
  "question_answering": QuestionAnswering,
}
