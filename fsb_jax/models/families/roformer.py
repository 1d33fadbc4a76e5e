"""RoFormer as the Hub has it: a BERT whose queries and keys are rotated by their index.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864.
"""

import functools
from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import (
  FirstTokenClassification,
  MaskedLM,
  QuestionAnswering,
  SummaryMultipleChoice,
  TokenClassification,
)
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import RotaryPositions
from fsb_jax.models.registry import Family


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, {})
  token_dim = hf.get("embedding_size") or fields["embed_dim"]
  return TransformerConfig(
    **fields,
    token_dim=None if token_dim == fields["embed_dim"] else token_dim,
    base_pooler=False,
    positions=RotaryPositions(
      length=hf.get("max_position_embeddings", 1536), values=bool(hf.get("rotary_value", False))
    ),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return {**shared_to_hf(config), "embedding_size": config.token_width, "rotary_value": config.positions.values}


def _size(layers: int, width: int, heads: int) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=50000, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width, token_types=2,
    base_pooler=False, positions=RotaryPositions(length=1536),
  )


FAMILY = Family(
  name="roformer",
  model_type="roformer",
  class_prefix="RoFormer",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "roformer_base": _size(12, 768, 12)},
  heads={
    "masked_lm": MaskedLM,
    "sequence_classification": functools.partial(FirstTokenClassification, hidden_activation=None),
    "token_classification": TokenClassification,
    # From the last position, whatever stands there.
    "multiple_choice": functools.partial(SummaryMultipleChoice, token=-1),
    "question_answering": QuestionAnswering,
    **ORIGINAL_HEADS,
  },
  # Zhouwenwang's configs share the name, and have neither.
  reads=lambda hf: "rotary_value" in hf or "embedding_size" in hf,
)
