"""BART: Randeng-BART.

Source: Lewis et al. 2019, https://arxiv.org/abs/1910.13461.
"""

import dataclasses
import functools
from collections.abc import Mapping

from fsb_jax.models.config import DecoderSpec, Dropout, HeadSizes, TransformerConfig
from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.families._bart_form import NORM, shared_fields, shared_to_hf
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.text_infill import TextInfill
from fsb_jax.models.writing_heads import EndTokenClassification, LanguageModel

_REQUIRED = {
  "normalize_before": False, "normalize_embedding": True, "add_final_layer_norm": False,
  "static_position_embeddings": False,
}  # fmt: skip
# The first rows of its table are not used.
_FIRST = 2


def _positions(length: int) -> LearnedPositions:
  return LearnedPositions(length=length + _FIRST, first=_FIRST)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, _positions(hf.get("max_position_embeddings", 1024)), _REQUIRED, start=2, end=2)
  told = {name: hf[name] for name in TextInfill.sizes if name in hf}
  return TransformerConfig(**fields, pad_token_id=hf.get("pad_token_id", 1), head_sizes=HeadSizes(**told))


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  told = {name: value for name, value in dataclasses.asdict(config.head_sizes).items() if name in TextInfill.sizes}
  return {
    **shared_to_hf(config),
    "max_position_embeddings": config.positions.usable_length,
    **{name: value for name, value in told.items() if value != getattr(HeadSizes(), name)},
  }


def _size(
  layers: int, width: int, heads: int, vocab_size: int, pad: int = 0, start: int = 101, end: int = 102
) -> TransformerConfig:
  positions = _positions(1024)
  return TransformerConfig(
    vocab_size=vocab_size, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width, positions=positions,
    decoder=DecoderSpec(
      num_layers=layers, num_heads=heads, mlp_dim=4 * width, positions=positions, start_token_id=start,
      end_token_id=end,
    ),
    norm=NORM, pad_token_id=pad, dropout=Dropout(hidden=0.1, attention=0.0, classifier=0.0),
  )  # fmt: skip


FAMILY = Family(
  name="bart",
  model_type="bart",
  class_prefix="Bart",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2, 21128),
    "bart_base": _size(6, 768, 12, 50265, pad=1, start=2, end=2),
    "randeng_139m": _size(6, 768, 12, 50000),
    "randeng_759m": _size(24, 1024, 16, 50000),
  },
  heads={
    "conditional_generation": functools.partial(LanguageModel, bias="fixed"),
    "sequence_classification": EndTokenClassification,
    "text_infill": functools.partial(TextInfill, bias="fixed"),
  },
  model=EncoderDecoderModel,
)
