"""RoBERTa proper (`model_type` roberta, e.g. Taiyi-Roberta-124M-D): positions skip padding, heads differ from BERT's.

Source: Liu et al. 2019, https://arxiv.org/abs/1907.11692.
"""

import functools
from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS, FirstTokenClassification, MaskedLM
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, {"pad_token_id": 1})
  length = hf.get("max_position_embeddings", 512)
  return TransformerConfig(**fields, positions=LearnedPositions(length=length, skip_padding=fields["pad_token_id"]))


FAMILY = Family(
  name="roberta",
  model_type="roberta",
  class_prefix="Roberta",
  config_from_hf=config_from_hf,
  config_to_hf=shared_to_hf,
  sizes={
    "roberta_base": TransformerConfig(
      vocab_size=50265,
      embed_dim=768,
      num_layers=12,
      num_heads=12,
      mlp_dim=3072,
      token_types=1,
      positions=LearnedPositions(length=514, skip_padding=1),
      norm=NormSpec(epsilon=1e-5),
      pad_token_id=1,
    )
  },
  heads={
    **{name: head for name, head in HEADS.items() if name not in ("pretraining", "next_sentence")},
    "masked_lm": functools.partial(MaskedLM, transform_activation="gelu"),
    "sequence_classification": FirstTokenClassification,
    **ORIGINAL_HEADS,
  },
)
