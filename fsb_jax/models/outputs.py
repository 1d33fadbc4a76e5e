"""What models return: one struct per head, with Hugging Face's field names.

`hidden_states`, where asked for, is a tuple of `num_layers + 1` arrays `[batch, length, embed]`.
"""

import jax
from flax import struct


@struct.dataclass
class BaseOutput:
  """No head: `last_hidden_state` `[batch, length, embed]`, `pooler_output` `[batch, embed]`."""

  last_hidden_state: jax.Array
  pooler_output: jax.Array | None = None
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class MaskedLMOutput:
  """`logits` `[batch, length, vocab]`."""

  logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class PretrainingOutput:
  """`prediction_logits` `[batch, length, vocab]`, `seq_relationship_logits` `[batch, 2]`."""

  prediction_logits: jax.Array
  seq_relationship_logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class SentenceOrderOutput:
  """`prediction_logits` `[batch, length, vocab]`, `sop_logits` `[batch, 2]`: class 1 is for swapped texts."""

  prediction_logits: jax.Array
  sop_logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class DiscriminatorOutput:
  """`logits` `[batch, length]`: above zero where a token was probably replaced."""

  logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class NextSentenceOutput:
  """`logits` `[batch, 2]`: class 0 says that the second text follows the first."""

  logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class SequenceClassificationOutput:
  """`logits` `[batch, labels]`."""

  logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class TokenClassificationOutput:
  """`logits` `[batch, length, labels]`."""

  logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class MultipleChoiceOutput:
  """`logits` `[batch, choices]`."""

  logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None


@struct.dataclass
class QuestionAnsweringOutput:
  """`start_logits` and `end_logits` `[batch, length]`."""

  start_logits: jax.Array
  end_logits: jax.Array
  hidden_states: tuple[jax.Array, ...] | None = None
