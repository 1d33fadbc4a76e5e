"""Zhouwenwang-Unified: a MegatronBERT with rotary positions that reads and writes (its code calls it RoFormer).

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/roformer.
"""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS, MaskedLM
from fsb_jax.models.positions import RotaryPositions
from fsb_jax.models.registry import Family

_FORM = dict(norm_placement="pre", embedding_norm=False, final_norm=True, mask_kind="prefix")
_FILLS = ("plus_1", "minus_10000")


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  # A causal language model says that it is a decoder; its mask is the same.
  hf = {name: value for name, value in hf.items() if name != "is_decoder"}
  # The original adds its mask of booleans to the scores, and was trained so; "minus_10000" is what was meant.
  fill = hf.get("mask_fill", _FILLS[0])
  if fill not in _FILLS:
    raise UserError(f"config.json says mask_fill={fill!r}, which fsb_jax does not know; known: {', '.join(_FILLS)}")
  return TransformerConfig(
    **shared_fields(hf, {}),
    **_FORM,
    mask_fill=fill,
    positions=RotaryPositions(length=hf.get("max_position_embeddings", 512)),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  hf = shared_to_hf(config)
  return hf if config.mask_fill == _FILLS[0] else {**hf, "mask_fill": config.mask_fill}


def _size(layers: int, width: int, heads: int, vocab_size: int = 21128) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=vocab_size, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width, token_types=2,
    **_FORM, mask_fill="plus_1", positions=RotaryPositions(length=512),
  )  # fmt: skip


FAMILY = Family(
  name="zhouwenwang",
  model_type="roformer",
  class_prefix="RoFormer",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "unified_110m": _size(12, 768, 12), "unified_1_3b": _size(24, 2048, 32)},
  heads={**HEADS, "causal_lm": MaskedLM},
  reads=lambda hf: "rotary_value" not in hf and "embedding_size" not in hf,
)
