"""Pegasus: Randeng-Pegasus.

Source: Zhang et al. 2019, https://arxiv.org/abs/1912.08777.
"""

import functools
from collections.abc import Mapping

from fsb_jax.models.config import DecoderSpec, Dropout, TransformerConfig
from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.families._bart_form import NORM, shared_fields, shared_to_hf
from fsb_jax.models.positions import SinusoidPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import LanguageModel

_REQUIRED = {
  "normalize_before": True, "normalize_embedding": False, "add_final_layer_norm": True,
  "static_position_embeddings": True,
}  # fmt: skip
_FORM = dict(norm_placement="pre", embedding_norm=False, final_norm=True)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  positions = SinusoidPositions(length=hf.get("max_position_embeddings", 1024))
  return TransformerConfig(
    **shared_fields(hf, positions, _REQUIRED, start=0, end=1), **_FORM, pad_token_id=hf.get("pad_token_id", 0)
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return {**shared_to_hf(config), "max_position_embeddings": config.positions.length}


def _size(layers: int, width: int, heads: int) -> TransformerConfig:
  positions = SinusoidPositions(length=512)
  return TransformerConfig(
    **_FORM, vocab_size=50000, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width,
    positions=positions, scale_embeddings=True, norm=NORM,
    decoder=DecoderSpec(
      num_layers=layers, num_heads=heads, mlp_dim=4 * width, positions=positions, end_token_id=1
    ),
    dropout=Dropout(hidden=0.1, attention=0.1, mlp=0.1, classifier=0.0),
  )  # fmt: skip


FAMILY = Family(
  name="pegasus",
  model_type="pegasus",
  class_prefix="Pegasus",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "randeng_238m": _size(12, 768, 12), "randeng_523m": _size(16, 1024, 16)},
  heads={"conditional_generation": functools.partial(LanguageModel, bias="fixed")},
  model=EncoderDecoderModel,
)
