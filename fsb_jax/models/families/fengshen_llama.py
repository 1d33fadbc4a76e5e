"""LLaMA as the original code keeps Ziya: Megatron's layout of the same model.

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/llama.
"""

import dataclasses
from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.families import llama
from fsb_jax.models.families._bert_form import require_values
from fsb_jax.models.families._decoder_form import known_activation, require_fields
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.scaled_rotary import ScaledRotary

# What the original's config says of its form; no checkpoint has another.
_FIXED = {
  "norm": "rmsnorm",
  "pos_emb": "rotary",
  "rotary_pct": 1,
  "mlp_type": "llama",
  "use_bias_in_attn_linear": False,
  "use_parallel_residual": False,
  "gpt_j_residual": False,
  "gpt_j_tied": False,
  "lora": False,
}
_MULTIPLE_OF = 256


def _mlp_dim(width: int, multiple_of: int) -> int:
  """8/3 of the width, rounded up: `intermediate_size` is in the config, but the original does not read it."""
  return -(-int(8 * width / 3) // multiple_of) * multiple_of


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads the original's config; its `vocab_size` counts the rows that only pad the table too."""
  require_fields(hf, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"))
  require_values(hf, _FIXED)
  width = hf["hidden_size"]
  return TransformerConfig(
    **llama.FORM,
    vocab_size=hf["vocab_size"],
    embed_dim=width,
    num_layers=hf["num_hidden_layers"],
    num_heads=hf["num_attention_heads"],
    mlp_dim=_mlp_dim(width, hf.get("llama_mlp_multiple_of", _MULTIPLE_OF)),
    attention_bias=False,
    mlp_bias=False,
    positions=ScaledRotary(length=hf.get("max_position_embeddings", 2048), base=float(hf.get("rotary_emb_base", 1e4))),
    activations=(known_activation("hidden_act", hf.get("hidden_act", "silu")), "linear"),
    norm=NormSpec(kind="rms", epsilon=hf.get("rms_norm_epsilon", 1e-6)),
    tie_embeddings=hf.get("tie_word_embeddings", False),
    pad_token_id=hf.get("pad_token_id"),
    initializer_range=hf.get("initializer_range", 0.02),
    dropout=Dropout(hidden=hf.get("hidden_dropout", 0.0), attention=hf.get("attention_dropout", 0.0)),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`; UserError on a feed-forward width that the original cannot have."""
  width, mlp_dim = config.embed_dim, config.mlp_dim
  multiple_of = _MULTIPLE_OF if _mlp_dim(width, _MULTIPLE_OF) == mlp_dim else mlp_dim
  if _mlp_dim(width, multiple_of) != mlp_dim:
    raise UserError(
      f"intermediate_size {mlp_dim} is below 8/3 of hidden_size {width}, which the original's LLaMA cannot be; "
      "write the model as llama"
    )
  return {
    **_FIXED,
    "vocab_size": config.vocab_size,
    "hidden_size": width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": mlp_dim,
    "llama_mlp_multiple_of": multiple_of,
    "max_position_embeddings": config.positions.length,
    "rotary_emb_base": config.positions.base,
    "hidden_act": config.activations[0],
    "rms_norm_epsilon": config.norm.epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    "pad_token_id": config.pad_token_id,
    "initializer_range": config.initializer_range,
    "hidden_dropout": config.dropout.hidden,
    "attention_dropout": config.dropout.attention,
  }


FAMILY = dataclasses.replace(
  llama.FAMILY,
  name="fengshen_llama",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={name: llama.FAMILY.sizes[name] for name in ("tiny", "ziya_13b")},
  heads={"causal_lm": llama.FAMILY.heads["causal_lm"]},
  reads=lambda hf: "rms_norm_epsilon" in hf,
)
