"""What models return: one struct per head, with Hugging Face's field names."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class Output:
  """What every head returns beside its own fields, where a caller asked for it.

  Attributes:
    hidden_states: `num_layers + 1` arrays `[batch, length, embed]`.
    attentions: `num_layers` arrays of probabilities `[batch, heads, query, key]`.
    encoder_last_hidden_state: of a model with encoder and decoder, `[batch, length, embed]`; the two fields above are
      its encoder's under `encoder_hidden_states` and `encoder_attentions`, and its decoder's under the other names.
    encoder_hidden_states: see above.
    encoder_attentions: see above.
    decoder_hidden_states: see above.
    decoder_attentions: see above.
    cross_attentions: `num_layers` arrays of the decoder's probabilities over what the encoder made.
    cache: a `Cache` with these tokens in it, where one was given.
  """

  hidden_states: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  attentions: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  encoder_last_hidden_state: jax.Array | None = struct.field(default=None, kw_only=True)
  encoder_hidden_states: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  encoder_attentions: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  decoder_hidden_states: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  decoder_attentions: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  cross_attentions: tuple[jax.Array, ...] | None = struct.field(default=None, kw_only=True)
  cache: Any = struct.field(default=None, kw_only=True)


@struct.dataclass
class BaseOutput(Output):
  """No head: `last_hidden_state` `[batch, length, embed]`, `pooler_output` `[batch, embed]`."""

  last_hidden_state: jax.Array
  pooler_output: jax.Array | None = None


@struct.dataclass
class MaskedLMOutput(Output):
  """`logits` `[batch, length, vocab]`."""

  logits: jax.Array


@struct.dataclass
class PretrainingOutput(Output):
  """`prediction_logits` `[batch, length, vocab]`, `seq_relationship_logits` `[batch, 2]`."""

  prediction_logits: jax.Array
  seq_relationship_logits: jax.Array


@struct.dataclass
class SentenceOrderOutput(Output):
  """`prediction_logits` `[batch, length, vocab]`, `sop_logits` `[batch, 2]`: class 1 is for swapped texts."""

  prediction_logits: jax.Array
  sop_logits: jax.Array


@struct.dataclass
class DiscriminatorOutput(Output):
  """`logits` `[batch, length]`: above zero where a token was probably replaced."""

  logits: jax.Array


@struct.dataclass
class NextSentenceOutput(Output):
  """`logits` `[batch, 2]`: class 0 says that the second text follows the first."""

  logits: jax.Array


@struct.dataclass
class SequenceClassificationOutput(Output):
  """`logits` `[batch, labels]`."""

  logits: jax.Array


@struct.dataclass
class TokenClassificationOutput(Output):
  """`logits` `[batch, length, labels]`."""

  logits: jax.Array


@struct.dataclass
class TCBertOutput(Output):
  """`logits` `[batch, labels]`, `prediction_logits` `[batch, length, vocab]`."""

  logits: jax.Array
  prediction_logits: jax.Array


@struct.dataclass
class TextInfillOutput(Output):
  """`logits` `[batch, written, vocab]` and `encoder_logits`, of every token that is read.

  Attributes:
    logits: of what is written.
    encoder_logits: `[batch, length, labels]`; or `[batch, length]`, the label itself as a number.
    encoder_loss_weight: what the encoder's part of the loss is multiplied by.
  """

  logits: jax.Array
  encoder_logits: jax.Array
  encoder_loss_weight: float = struct.field(pytree_node=False, default=1.0)


@struct.dataclass
class MultipleChoiceOutput(Output):
  """`logits` `[batch, choices]`."""

  logits: jax.Array


@struct.dataclass
class UbertOutput(Output):
  """`span_logits` `[batch, labels, start, end]`: above zero where a span probably is one of that label."""

  span_logits: jax.Array


@struct.dataclass
class UniexOutput(Output):
  """`index_logits` `[batch, text, text]`, `type_logits` `[batch, spans, spans, types - 1]`, see `Uniex`."""

  index_logits: jax.Array
  type_logits: jax.Array


@struct.dataclass
class QuestionAnsweringOutput(Output):
  """`start_logits` and `end_logits` `[batch, length]`."""

  start_logits: jax.Array
  end_logits: jax.Array


@struct.dataclass
class CrfOutput(Output):
  """`logits` `[batch, length, labels]`, and what one tag says of the next; `crf.py` makes tags of them.

  Attributes:
    logits: of every tag at every token.
    transitions: `[labels, labels]`, of the second tag after the first.
    start_transitions: `[labels]`, of a tag as the first.
    end_transitions: `[labels]`, of a tag as the last.
  """

  logits: jax.Array
  transitions: jax.Array
  start_transitions: jax.Array
  end_transitions: jax.Array


@struct.dataclass
class SpanTaggingOutput(Output):
  """`start_logits` and `end_logits` `[batch, length, labels]`: of what begins and what ends at every token."""

  start_logits: jax.Array
  end_logits: jax.Array


@struct.dataclass
class BiaffineOutput(Output):
  """`span_logits` `[batch, start, end, labels]`: of the span from one token to another, both in it."""

  span_logits: jax.Array


@struct.dataclass
class ClipTextOutput(Output):
  """`text_embeds` `[batch, projection]`, not of length one; `last_hidden_state` `[batch, length, embed]`."""

  text_embeds: jax.Array
  last_hidden_state: jax.Array


@struct.dataclass
class ClipVisionOutput(Output):
  """`image_embeds` `[batch, projection]`, not of length one; `last_hidden_state` `[batch, patches + 1, embed]`."""

  image_embeds: jax.Array
  last_hidden_state: jax.Array


@struct.dataclass
class ClipOutput(Output):
  """How alike texts and images are, in at least float32.

  Attributes:
    logits_per_image: `[images, texts]`, cosines times the scale.
    logits_per_text: `[texts, images]`, the same.
    text_embeds: `[texts, projection]`, of length one.
    image_embeds: `[images, projection]`, of length one.
    text_model_output: of the text tower, before the projection; hidden states and attentions are here.
    vision_model_output: of the image tower, the same.
  """

  logits_per_image: jax.Array
  logits_per_text: jax.Array
  text_embeds: jax.Array
  image_embeds: jax.Array
  text_model_output: BaseOutput
  vision_model_output: BaseOutput
