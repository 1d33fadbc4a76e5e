"""Transformer-XL: Bigan and Randeng-TransformerXL, which rewrite, paraphrase and reason.

Source: Dai et al. 2019, https://arxiv.org/abs/1901.02860; https://github.com/IDEA-CCNL/Fengshenbang-LM,
fengshen/models/transfo_xl_denoise.
"""

import functools
from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.attention import Attention
from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.decoder import DecoderModel
from fsb_jax.models.distance_attention import DistanceAttention, SharedDistances
from fsb_jax.models.families._decoder_form import require_fields
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import LanguageModel

_REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_memory_length", "relative_encoding")
_FORM = dict(
  mask_kind="causal", norm_placement="pre", embedding_norm=False, final_norm=True, activations=("gelu_new",),
  norm=NormSpec(epsilon=1e-5), pad_token_id=None,
)  # fmt: skip
_RELATIVE = dict(positions=SharedDistances(), attention=DistanceAttention)


def _absolute(length: int) -> dict:
  return dict(positions=LearnedPositions(length=length), attention=Attention)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config; embeddings are tied whatever it says, for the original has no other kernel."""
  relative = hf.get("relative_encoding")
  require_fields(hf, _REQUIRED if relative else (*_REQUIRED, "max_sequence_length"))
  width, heads = hf["hidden_size"], hf["num_attention_heads"]
  if width % heads:
    raise UserError(f"config.json says hidden_size={width}, which is no multiple of num_attention_heads={heads}")
  return TransformerConfig(
    **_FORM,
    **(_RELATIVE if relative else _absolute(hf["max_sequence_length"])),
    vocab_size=hf["vocab_size"],
    embed_dim=width,
    num_layers=hf["num_layers"],
    num_heads=heads,
    mlp_dim=4 * width,
    memory=hf["max_memory_length"] or None,
    # The original reads a rate for the attention's probabilities too, and drops none.
    dropout=Dropout(
      hidden=hf.get("output_dropout_prob", 0.1), embedding=hf.get("embedding_dropout_prob", 0.1), attention=0.0
    ),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  absolute = isinstance(config.positions, LearnedPositions)
  return {
    "vocab_size": config.vocab_size,
    "hidden_size": config.embed_dim,
    "num_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "max_memory_length": config.memory or 0,
    "relative_encoding": not absolute,
    **({"max_sequence_length": config.positions.length} if absolute else {}),
    "output_dropout_prob": config.dropout.hidden,
    "embedding_dropout_prob": config.dropout.embedding,
  }


def _size(layers: int, width: int, heads: int) -> TransformerConfig:
  return TransformerConfig(
    **_FORM, **_RELATIVE, vocab_size=50048, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width,
    memory=512, dropout=Dropout(hidden=0.1, embedding=0.1, attention=0.0),
  )  # fmt: skip


FAMILY = Family(
  name="transfo_xl",
  model_type="transfo_xl_denoise",
  class_prefix="TransfoXLDenoise",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "randeng_1_1b": _size(32, 1600, 25)},
  heads={"causal_lm": functools.partial(LanguageModel, bias="none")},
  # It has no class without its language model, which has no parameters of its own.
  classes={"causal_lm": "TransfoXLDenoiseModel"},
  model=DecoderModel,
)
