"""What Hub configs say of CLIP's towers, each by itself or one nested beside the other."""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.families._bert_form import require_values
from fsb_jax.models.families._decoder_form import known_activation, require_multiple
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.vision import VisionConfig

_SHARED = {
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "attention_dropout": 0.0,
  "initializer_range": 0.02,
  "projection_dim": 512,
  "num_hidden_layers": 12,
}
_TEXT = _SHARED | {
  "vocab_size": 49408,
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_attention_heads": 8,
  "max_position_embeddings": 77,
  "pad_token_id": 1,
  "eos_token_id": 49407,
}
_VISION = _SHARED | {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_attention_heads": 12,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 32,
}
# What transformers' class reads there, and what it means.
_HIGHEST_ID = 2
FORM = dict(norm_placement="pre", embedding_norm=False, trains_padding=True, base_pooler=True)


def text_fields(hf: Mapping) -> dict:
  """Arguments of `ClipTextConfig` from a text tower's config; UserError on what we lack."""
  require_values(hf, {"is_decoder": False, "add_cross_attention": False})
  # Null is a value here: no padding id, and no end.
  read = {**_TEXT, **{name: x for name, x in hf.items() if x is not None}}
  end = hf.get("eos_token_id", read["eos_token_id"])
  if isinstance(end, list):
    raise UserError(f"config.json says eos_token_id={end}; a text is read at one end token: name that one")
  return dict(
    **FORM,
    **_shared_fields(read),
    mask_kind="causal",
    vocab_size=read["vocab_size"],
    positions=LearnedPositions(length=read["max_position_embeddings"]),
    pad_token_id=hf.get("pad_token_id", read["pad_token_id"]),
    end_token_id=None if end == _HIGHEST_ID else end,
    projection_dim=read["projection_dim"],
  )


def text_to_hf(config) -> dict:
  """Undoes `text_fields`."""
  return {
    "model_type": "clip_text_model",
    **_shared_to_hf(config),
    "vocab_size": config.vocab_size,
    "max_position_embeddings": config.positions.length,
    "pad_token_id": config.pad_token_id,
    "eos_token_id": _HIGHEST_ID if config.end_token_id is None else config.end_token_id,
  }


def vision_from_hf(hf: Mapping) -> VisionConfig:
  """Reads an image tower's config; UserError on what we lack."""
  read = {**_VISION, **{name: x for name, x in hf.items() if x is not None}}
  for name in ("image_size", "patch_size"):
    if not isinstance(read[name], int):
      raise UserError(f"config.json says {name}={read[name]}; fsb_jax reads square images and patches: give one number")
  patches = (read["image_size"] // read["patch_size"]) ** 2
  return VisionConfig(
    **FORM | {"embedding_norm": True},
    **_shared_fields(read),
    positions=LearnedPositions(length=patches + 1),
    pad_token_id=None,
    image_size=read["image_size"],
    patch_size=read["patch_size"],
    channels=read["num_channels"],
    projection_dim=read["projection_dim"],
  )


def vision_to_hf(config: VisionConfig) -> dict:
  """Undoes `vision_from_hf`."""
  return {
    "model_type": "clip_vision_model",
    **_shared_to_hf(config),
    "image_size": config.image_size,
    "patch_size": config.patch_size,
    "num_channels": config.channels,
  }


def nested(hf: Mapping, name: str) -> dict:
  """The config of the tower called `name`, "text" or "vision", as wide at its end as both towers are together.

  Old files say of a tower in a second place what differs from the defaults, and transformers believes that one.
  """
  own = hf.get(f"{name}_config") or {}
  return {**own, **(hf.get(f"{name}_config_dict") or {}), "projection_dim": hf.get("projection_dim") or 512}


def reads_bert(hf: Mapping) -> bool:
  """Whether the text tower of a config of both is BERT."""
  return (hf.get("text_config") or {}).get("model_type") == "bert"


def joint_fields(hf: Mapping) -> dict:
  """Arguments of `ClipConfig` beyond those of the text tower."""
  scale = hf.get("logit_scale_init_value")
  return dict(vision=vision_from_hf(nested(hf, "vision")), logit_scale=2.6592 if scale is None else scale)


def joint_to_hf(config, text: Mapping) -> dict:
  """The Hub's config of both towers, given the text tower's."""
  return {
    "text_config": dict(text),
    "vision_config": vision_to_hf(config.vision),
    "projection_dim": config.projection_dim,
    "logit_scale_init_value": config.logit_scale,
  }


def _shared_fields(read: Mapping) -> dict:
  require_multiple(read, "hidden_size", "num_attention_heads")
  return dict(
    embed_dim=read["hidden_size"],
    num_layers=read["num_hidden_layers"],
    num_heads=read["num_attention_heads"],
    mlp_dim=read["intermediate_size"],
    activations=(known_activation("hidden_act", read["hidden_act"]),),
    norm=NormSpec(epsilon=read["layer_norm_eps"]),
    initializer_range=read["initializer_range"],
    dropout=Dropout(hidden=0.0, attention=read["attention_dropout"]),
  )


def _shared_to_hf(config: TransformerConfig) -> dict:
  return {
    "hidden_size": config.embed_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": config.mlp_dim,
    "hidden_act": config.activations[0],
    "layer_norm_eps": config.norm.epsilon,
    "initializer_range": config.initializer_range,
    "attention_dropout": config.dropout.attention,
    "projection_dim": config.projection_dim,
  }
