"""BERT and what shares its form: RoBERTa-wwm, MacBERT, PERT, LERT, RBT and most Erlangshen encoders.

Chinese "RoBERTa-wwm" checkpoints are BERTs: their config says `bert`, and so does their arithmetic.
Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.tcbert import TCBert


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  return TransformerConfig(
    **shared_fields(hf, {}), positions=LearnedPositions(length=hf.get("max_position_embeddings", 512))
  )


def _size(layers: int, width: int) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=21128, embed_dim=width, num_layers=layers, num_heads=width // 64, mlp_dim=4 * width, token_types=2
  )


FAMILY = Family(
  name="bert",
  model_type="bert",
  class_prefix="Bert",
  config_from_hf=config_from_hf,
  config_to_hf=shared_to_hf,
  sizes={
    "tiny": _size(2, 128),
    "rbt3": _size(3, 768),
    "rbt4": _size(4, 768),
    "rbt6": _size(6, 768),
    "rbtl3": _size(3, 1024),
    "erlangshen_roberta_110m": _size(12, 768),
    "erlangshen_roberta_330m": _size(24, 1024),
  },
  heads={**HEADS, **ORIGINAL_HEADS, "tcbert": TCBert},
)
