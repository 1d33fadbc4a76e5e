"""Megatron-T5: Randeng-MegatronT5, whose config says `T5`.

T5 with layer norms, biases and learned positions. Source: Raffel et al. 2019, https://arxiv.org/abs/1910.10683;
https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/megatron_t5.
"""

from collections.abc import Mapping

from fsb_jax.models.config import DecoderSpec, Dropout, TransformerConfig
from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.families._decoder_form import known_activation, require_fields
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import EncoderAlone, LanguageModel

_FORM = dict(norm_placement="pre", embedding_norm=False, final_norm=True)
_REQUIRED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj",
             "max_position_embeddings")  # fmt: skip


def _dropout(rate: float) -> Dropout:
  # The embeddings go through two dropouts, which is one of this rate.
  return Dropout(hidden=rate, embedding=1 - (1 - rate) ** 2, attention=rate, mlp=rate, output=rate)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config; embeddings are tied whatever it says, for the original has no other kernel."""
  require_fields(hf, _REQUIRED)
  return TransformerConfig(
    **_FORM,
    vocab_size=hf["vocab_size"],
    embed_dim=hf["d_model"],
    head_size=hf["d_kv"],
    mlp_dim=hf["d_ff"],
    num_layers=hf["num_layers"],
    num_heads=hf["num_heads"],
    positions=LearnedPositions(length=hf["max_position_embeddings"]),
    decoder=DecoderSpec(
      num_layers=hf.get("num_decoder_layers") or hf["num_layers"], num_heads=hf["num_heads"], mlp_dim=hf["d_ff"],
      start_token_id=hf.get("decoder_start_token_id") or 0,
    ),
    activations=(known_activation("feed_forward_proj", hf["feed_forward_proj"]),),
    norm=NormSpec(epsilon=hf.get("layer_norm_epsilon", 1e-5)),
    pad_token_id=hf.get("pad_token_id", 0),
    initializer_range=0.05 * hf.get("initializer_factor", 1.0),
    dropout=_dropout(hf.get("dropout_rate", 0.1)),
  )  # fmt: skip


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return {
    "vocab_size": config.vocab_size,
    "d_model": config.embed_dim,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "num_layers": config.num_layers,
    "num_decoder_layers": config.decoder.num_layers,
    "num_heads": config.num_heads,
    "max_position_embeddings": config.positions.length,
    "feed_forward_proj": config.activations[0],
    "layer_norm_epsilon": config.norm.epsilon,
    "pad_token_id": config.pad_token_id,
    "decoder_start_token_id": config.decoder.start_token_id,
    "initializer_factor": config.initializer_range / 0.05,
    "dropout_rate": config.dropout.hidden,
  }


def _size(layers: int, width: int, heads: int) -> TransformerConfig:
  return TransformerConfig(
    **_FORM, vocab_size=21248, embed_dim=width, head_size=64, num_layers=layers, num_heads=heads, mlp_dim=4 * width,
    positions=LearnedPositions(length=512), norm=NormSpec(epsilon=1e-5), initializer_range=0.05, dropout=_dropout(0.1),
    decoder=DecoderSpec(num_layers=layers, num_heads=heads, mlp_dim=4 * width),
  )  # fmt: skip


FAMILY = Family(
  name="megatron_t5",
  model_type="T5",
  class_prefix="T5",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "randeng_770m": _size(24, 1024, 16)},
  heads={"conditional_generation": LanguageModel, "encoder": EncoderAlone},
  model=EncoderDecoderModel,
)
