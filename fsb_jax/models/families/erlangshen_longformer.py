"""Erlangshen-Longformer: a BERT with rotary positions whose tokens see a window, and some of them everything.

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/longformer.
"""

from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.families.longformer import HEADS, window_fields, window_to_hf
from fsb_jax.models.positions import RotaryPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.sliding_window import SlidingWindowAttention, Window


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, {})
  # "use_sparse_attention" is what the original calls the window; without it every token sees all.
  windowed = hf.get("use_sparse_attention", True)
  return TransformerConfig(
    **fields,
    **(window_fields(hf, fields["num_layers"], False) if windowed else {"mask_fill": "minus_10000"}),
    positions=RotaryPositions(length=hf.get("max_position_embeddings", 512)),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  hf = {**shared_to_hf(config), "use_sparse_attention": config.window is not None}
  return hf if config.window is None else {**hf, **window_to_hf(config.window)}


def _size(layers: int, width: int, heads: int, reach: int = 64) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=12000, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width, token_types=2,
    positions=RotaryPositions(length=4096), attention=SlidingWindowAttention, mask_fill="zeroed",
    window=Window(reach=(reach,) * layers, global_projections=False),
  )  # fmt: skip


FAMILY = Family(
  name="erlangshen_longformer",
  model_type="longformer",
  class_prefix="Longformer",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2, 16),
    "erlangshen_110m": _size(12, 768, 12),
    "erlangshen_330m": _size(24, 1024, 16),
  },
  heads=HEADS,
  reads=lambda hf: "use_sparse_attention" in hf,
)
