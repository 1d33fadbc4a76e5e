"""MegatronBERT (Erlangshen-MegatronBert): BERT with norms before the sub-layers and one after the stack.

Source: Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 5.3.
"""

from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.tcbert import TCBert

_PLACEMENT = dict(norm_placement="pre", embedding_norm=False, final_norm=True)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  return TransformerConfig(
    **shared_fields(hf, {}),
    **_PLACEMENT,
    positions=LearnedPositions(length=hf.get("max_position_embeddings", 512)),
  )


def _size(layers: int, width: int, heads: int, vocab_size: int = 21128) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=vocab_size,
    embed_dim=width,
    num_layers=layers,
    num_heads=heads,
    mlp_dim=4 * width,
    token_types=2,
    **_PLACEMENT,
  )


FAMILY = Family(
  name="megatron_bert",
  model_type="megatron-bert",
  class_prefix="MegatronBert",
  config_from_hf=config_from_hf,
  config_to_hf=shared_to_hf,
  sizes={
    "tiny": _size(2, 128, 2),
    "erlangshen_1_3b": _size(24, 2048, 32),
    "erlangshen_3_9b": _size(48, 2560, 40),
  },
  heads={**HEADS, **ORIGINAL_HEADS, "tcbert": TCBert},
)
