"""ELECTRA: a discriminator, and the generator it is trained with (Chinese-ELECTRA).

Source: Clark et al. 2020, https://arxiv.org/abs/2003.10555.
"""

import functools
from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import require_values, shared_fields, shared_to_hf
from fsb_jax.models.heads import (
  Discriminator,
  FirstTokenClassification,
  MaskedLM,
  QuestionAnswering,
  SummaryMultipleChoice,
  TokenClassification,
)
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family

# What the multiple choice head is made of.
_SUMMARY = dict(summary_type="first", summary_use_proj=True, summary_activation="gelu", summary_last_dropout=0.1)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  # Null would mean that there is no such part.
  require_values(hf, _SUMMARY, null=False)
  fields = shared_fields(hf, {})
  token_dim = hf.get("embedding_size", 128)
  return TransformerConfig(
    **fields,
    token_dim=None if token_dim == fields["embed_dim"] else token_dim,
    base_pooler=False,
    positions=LearnedPositions(length=hf.get("max_position_embeddings", 512)),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return {**shared_to_hf(config), "embedding_size": config.token_width, **_SUMMARY}


def _size(layers: int, width: int, heads: int, mlp: int, token_dim: int | None = None) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=21128, token_dim=token_dim, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=mlp,
    token_types=2, base_pooler=False,
  )


FAMILY = Family(
  name="electra",
  model_type="electra",
  class_prefix="Electra",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2, 512, 64),
    "electra_small": _size(12, 256, 4, 1024, 128),
    "electra_small_ex": _size(24, 256, 4, 1024, 128),
    "electra_base": _size(12, 768, 12, 3072),
    "electra_large": _size(24, 1024, 16, 4096),
  },
  heads={
    "replaced_tokens": Discriminator,
    "masked_lm": functools.partial(MaskedLM, transform_activation="gelu"),
    "sequence_classification": functools.partial(FirstTokenClassification, hidden_activation="gelu"),
    "token_classification": TokenClassification,
    "multiple_choice": functools.partial(SummaryMultipleChoice, summary_activation="gelu", summary_dropout=0.1),
    "question_answering": QuestionAnswering,
    **ORIGINAL_HEADS,
  },
)
