"""DeltaLM: Randeng-Deltalm.

Its decoder has a feed-forward block after each of its attentions. Source: Ma et al. 2021,
https://arxiv.org/abs/2106.13736; https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/deltalm.
"""

import dataclasses
import functools
from collections.abc import Mapping

from fsb_jax.models.config import DecoderSpec, Dropout, TransformerConfig
from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.families._bart_form import NORM, shared_fields, shared_to_hf
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import LanguageModel

# The first rows of its tables are not used.
_FIRST = 2
# The encoder alone may have a last norm.
_DECODER = dict(sublayers=("attention", "inner_mlp", "cross_attention", "mlp"), final_norm=False)


def _positions(length: int) -> LearnedPositions:
  return LearnedPositions(length=length + _FIRST, first=_FIRST)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, _positions(hf.get("max_position_embeddings", 512)), {}, start=0, end=2)
  fields["decoder"] = dataclasses.replace(fields["decoder"], **_DECODER)
  return TransformerConfig(
    **fields, final_norm=hf.get("encoder_normalize_before", False), pad_token_id=hf.get("pad_token_id", 1)
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return {
    **shared_to_hf(config),
    "max_position_embeddings": config.positions.usable_length,
    "encoder_normalize_before": config.final_norm,
  }


def _size(encoder_layers: int, decoder_layers: int, width: int, heads: int, vocab_size: int) -> TransformerConfig:
  positions = _positions(512)
  return TransformerConfig(
    vocab_size=vocab_size, embed_dim=width, num_layers=encoder_layers, num_heads=heads, mlp_dim=4 * width,
    positions=positions, norm=NORM, pad_token_id=1, dropout=Dropout(hidden=0.1, attention=0.0, classifier=0.0),
    decoder=DecoderSpec(
      num_layers=decoder_layers, num_heads=heads, mlp_dim=4 * width, positions=positions, end_token_id=2,
      **_DECODER,
    ),
  )  # fmt: skip


FAMILY = Family(
  name="deltalm",
  model_type="Deltalm",
  class_prefix="Deltalm",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 2, 128, 2, 21128), "randeng_362m": _size(12, 6, 768, 12, 250001)},
  heads={"conditional_generation": functools.partial(LanguageModel, bias="fixed")},
  model=EncoderDecoderModel,
)
