"""LLaMA 1, 2 and 3: Ziya and Chinese-LLaMA-Alpaca.

Source: Touvron et al. 2023, https://arxiv.org/abs/2302.13971; grouped queries of the second version, 2307.09288.
"""

import dataclasses
import functools
from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.decoder import DecoderModel
from fsb_jax.models.families._bert_form import require_values
from fsb_jax.models.families._decoder_form import known_activation, require_fields, require_multiple
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.registry import Family
from fsb_jax.models.scaled_rotary import DynamicScaling, LinearScaling, Llama3Scaling, ScaledRotary, YarnScaling
from fsb_jax.models.writing_heads import LanguageModel, LastTokenClassification

FORM = dict(mask_kind="causal", norm_placement="pre", embedding_norm=False, final_norm=True)
# What else a scaling is said by -> our field.
_YARN = {"beta_fast": "fast", "beta_slow": "slow", "attention_factor": "magnitude", "truncate": "truncate"}
_LLAMA3 = {"low_freq_factor": "low", "high_freq_factor": "high"}
_ORIGINAL = "original_max_position_embeddings"
# Ways to scale, and what each must say.
_KINDS = {"default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": (), "llama3": ("factor", *_LLAMA3)}


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  require_fields(hf, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
  require_values(hf, {"use_parallel_residual": False})
  if not hf.get("head_dim"):
    require_multiple(hf, "hidden_size", "num_attention_heads")
  if hf.get("num_key_value_heads"):
    require_multiple(hf, "num_attention_heads", "num_key_value_heads")
  width, heads = hf["hidden_size"], hf["num_attention_heads"]
  kv_heads, head_dim = hf.get("num_key_value_heads") or heads, hf.get("head_dim") or width // heads
  return TransformerConfig(
    **FORM,
    vocab_size=hf["vocab_size"],
    embed_dim=width,
    num_layers=hf["num_hidden_layers"],
    num_heads=heads,
    num_kv_heads=None if kv_heads == heads else kv_heads,
    head_size=None if head_dim * heads == width else head_dim,
    mlp_dim=hf["intermediate_size"],
    attention_bias=bool(hf.get("attention_bias", False)),
    mlp_bias=bool(hf.get("mlp_bias", False)),
    positions=_positions(hf),
    activations=(known_activation("hidden_act", hf.get("hidden_act", "silu")), "linear"),
    norm=NormSpec(kind="rms", epsilon=hf.get("rms_norm_eps", 1e-6)),
    tie_embeddings=hf.get("tie_word_embeddings", False),
    pad_token_id=hf.get("pad_token_id"),
    initializer_range=hf.get("initializer_range", 0.02),
    dropout=Dropout(hidden=0.0, attention=hf.get("attention_dropout", 0.0)),
  )


def _positions(hf: Mapping) -> ScaledRotary:
  length = hf.get("max_position_embeddings", 2048)
  # Version 5 of transformers says both in one field.
  said = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
  base = said.get("rope_theta", hf.get("rope_theta", 10000.0))
  kind = said.get("rope_type", said.get("type", "default"))
  if kind not in _KINDS:
    raise UserError(
      f"config.json says rope_type={kind!r}, which fsb_jax does not know; known: {', '.join(_KINDS)}"
    )
  if said.get("partial_rotary_factor", 1.0) != 1.0 or said.get("mscale") or said.get("mscale_all_dim"):
    raise UserError("config.json turns a part of each head or scales it by mscale, which fsb_jax does not support")
  missing = [name for name in _KINDS[kind] if said.get(name) is None]
  if missing:
    raise UserError(f"config.json scales positions by rope_type={kind!r}, but lacks {', '.join(missing)}")
  original = said.get(_ORIGINAL) or hf.get(_ORIGINAL) or length
  factor = said.get("factor") or length / original

  def also(names):
    return {ours: said[theirs] for theirs, ours in names.items() if said.get(theirs) is not None}

  scaling = {
    "default": lambda: None,
    "linear": lambda: LinearScaling(factor=factor),
    "dynamic": lambda: DynamicScaling(factor=factor, original_length=length),
    "yarn": lambda: YarnScaling(factor=factor, original_length=original, **also(_YARN)),
    "llama3": lambda: Llama3Scaling(factor=factor, original_length=original, **also(_LLAMA3)),
  }[kind]()
  return ScaledRotary(length=length, base=base, scaling=scaling)


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  positions = config.positions
  scaling = _scaling_to_hf(positions.scaling)
  return {
    "vocab_size": config.vocab_size,
    "hidden_size": config.embed_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_dim,
    "attention_bias": config.attention_bias,
    "mlp_bias": config.mlp_bias,
    "max_position_embeddings": positions.length,
    "rope_theta": positions.base,
    # For version 4 of transformers and for version 5.
    "rope_scaling": scaling,
    "rope_parameters": {"rope_theta": positions.base, **(scaling or {"rope_type": "default"})},
    "hidden_act": config.activations[0],
    "rms_norm_eps": config.norm.epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    "pad_token_id": config.pad_token_id,
    "initializer_range": config.initializer_range,
    "attention_dropout": config.dropout.attention,
  }


def _scaling_to_hf(scaling) -> dict | None:
  if scaling is None:
    return None
  kinds = {LinearScaling: "linear", DynamicScaling: "dynamic", YarnScaling: "yarn", Llama3Scaling: "llama3"}
  kind = kinds[type(scaling)]
  fields = dataclasses.asdict(scaling)
  names = {ours: theirs for theirs, ours in {**_YARN, **_LLAMA3}.items()}
  if kind != "dynamic":
    names["original_length"] = _ORIGINAL
  kept = {names[x]: value for x, value in fields.items() if x in names and value is not None}
  # The name that old versions read, too.
  return {"rope_type": kind, "type": kind, "factor": fields["factor"], **kept}


def _size(
  layers: int, width: int, heads: int, mlp_dim: int, vocab_size: int, length: int = 2048, **changes
) -> TransformerConfig:
  changes = {"positions": ScaledRotary(length=length), "norm": NormSpec(kind="rms", epsilon=1e-6), **changes}
  return TransformerConfig(
    **FORM, vocab_size=vocab_size, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=mlp_dim,
    attention_bias=False, mlp_bias=False, activations=("silu", "linear"), tie_embeddings=False, pad_token_id=None,
    dropout=Dropout(hidden=0.0, attention=0.0), **changes,
  )  # fmt: skip


_NORM_2 = NormSpec(kind="rms", epsilon=1e-5)

FAMILY = Family(
  name="llama",
  model_type="llama",
  class_prefix="Llama",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2, 344, 32000),
    "ziya_13b": _size(40, 5120, 40, 13824, 39424),
    "chinese_llama_7b": _size(32, 4096, 32, 11008, 49953),
    "chinese_alpaca_7b": _size(32, 4096, 32, 11008, 49954),
    "chinese_alpaca_13b": _size(40, 5120, 40, 13824, 49954),
    "chinese_alpaca_2_1_3b": _size(4, 4096, 32, 11008, 55296, 4096, norm=_NORM_2),
    "chinese_alpaca_2_7b": _size(32, 4096, 32, 11008, 55296, 4096, norm=_NORM_2),
    "chinese_alpaca_2_13b": _size(40, 5120, 40, 13824, 55296, 4096, norm=_NORM_2),
    "llama_3_chinese_8b": _size(
      32, 4096, 32, 14336, 128256, num_kv_heads=8, norm=_NORM_2, positions=ScaledRotary(length=8192, base=500000.0)
    ),
  },
  heads={
    "causal_lm": functools.partial(LanguageModel, bias="none"),
    "sequence_classification": LastTokenClassification,
  },
  model=DecoderModel,
  # The original's own layout has a family of its own.
  reads=lambda hf: "rms_norm_epsilon" not in hf,
)
