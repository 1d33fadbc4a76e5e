"""What is read off a tagger's outputs on the device: little enough to hand to the host, which makes entities of it."""

import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.crf import crf_decode
from fsb_jax.models.layers import at_least_float32

Said = dict[str, jax.Array]


def said_by_tagger(
  output: outputs.Output, attention_mask: jax.Array, label_mask: jax.Array, max_width: int
) -> Said:
  """What a tagger says of every row.

  Args:
    output: of a tagger: linear, CRF, span or biaffine.
    attention_mask: `[batch, length]`, 1 for real tokens.
    label_mask: `[batch, labels]`, which labels may be answers; no other is one.
    max_width: tokens of the longest span that a biaffine tagger is asked about.

  Returns:
    Of a linear one `predictions` `[batch, length]`, the likeliest label of every token; of a CRF the same, of the
    likeliest sequence. Of spans `starts` and `ends` `[batch, length]`. Of pairs of tokens `pairs` `[batch, length,
    max_width]`, the likeliest label of the span of 1, 2, ... tokens that begins at each token, and `sureness`, its log
    probability; what would end beyond the row means nothing.
  """
  return _SAID[type(output)](output, attention_mask, label_mask, max_width)


def _allowed(logits: jax.Array, label_mask: jax.Array) -> jax.Array:
  """Logits `[batch, ..., labels]` in at least float32, -inf where a label may not be."""
  mask = label_mask.reshape(len(label_mask), *(1,) * (logits.ndim - 2), -1)
  return jnp.where(mask != 0, logits.astype(at_least_float32(logits.dtype)), -jnp.inf)


def _said_by_linear(output: outputs.TokenClassificationOutput, attention_mask, label_mask, max_width) -> Said:
  del attention_mask, max_width
  return {"predictions": jnp.argmax(_allowed(output.logits, label_mask), -1)}


def _said_by_crf(output: outputs.CrfOutput, attention_mask, label_mask, max_width) -> Said:
  del max_width
  emissions = _allowed(output.logits, label_mask)
  tags = crf_decode(
    emissions, attention_mask, output.transitions, output.start_transitions, output.end_transitions
  )
  return {"predictions": tags}


def _said_by_span(output: outputs.SpanTaggingOutput, attention_mask, label_mask, max_width) -> Said:
  del attention_mask, max_width
  return {
    "starts": jnp.argmax(_allowed(output.start_logits, label_mask), -1),
    "ends": jnp.argmax(_allowed(output.end_logits, label_mask), -1),
  }


def _said_by_biaffine(output: outputs.BiaffineOutput, attention_mask, label_mask, max_width) -> Said:
  del attention_mask
  length = output.span_logits.shape[1]
  first = jnp.arange(length)[:, None]
  last = jnp.minimum(first + jnp.arange(max_width), length - 1)
  logits = _allowed(output.span_logits[:, first, last], label_mask)
  return {"pairs": jnp.argmax(logits, -1), "sureness": jnp.max(jax.nn.log_softmax(logits, axis=-1), -1)}


_SAID = {
  outputs.TokenClassificationOutput: _said_by_linear,
  outputs.CrfOutput: _said_by_crf,
  outputs.SpanTaggingOutput: _said_by_span,
  outputs.BiaffineOutput: _said_by_biaffine,
}
