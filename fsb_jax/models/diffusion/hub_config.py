"""config.json of a folder's `unet` and `vae`, read and written; every option that we lack is refused by its name."""

from collections.abc import Mapping
from typing import Any

from fsb_jax.errors import UserError
from fsb_jax.models.diffusion.config import AutoencoderConfig, UNetConfig

# What else decides what is computed: (field, the only value we read).
_UNET_REQUIRED = {
  "mid_block_type": "UNetMidBlock2DCrossAttn", "downsample_padding": 1, "mid_block_scale_factor": 1, "act_fn": "silu",
  "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
  "num_attention_heads": None, "dual_cross_attention": False, "class_embed_type": None, "num_class_embeds": None,
  "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
  "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
  "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
  "attention_type": "default", "class_embeddings_concat": False, "cross_attention_norm": None,
}  # fmt: skip
_AUTOENCODER_REQUIRED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}

# By whether a level has attention.
_DOWN = {False: "DownBlock2D", True: "CrossAttnDownBlock2D"}
_UP = {False: "UpBlock2D", True: "CrossAttnUpBlock2D"}

# What diffusers takes where a file is silent.
_UNET_DEFAULTS = {
  "sample_size": 64, "in_channels": 4, "out_channels": 4, "center_input_sample": False, "flip_sin_to_cos": True,
  "freq_shift": 0, "down_block_types": [*[_DOWN[True]] * 3, _DOWN[False]],
  "up_block_types": [_UP[False], *[_UP[True]] * 3], "only_cross_attention": False,
  "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "dropout": 0.0, "norm_num_groups": 32,
  "norm_eps": 1e-5, "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "attention_head_dim": 8,
  "use_linear_projection": False, "addition_embed_type": None, "addition_time_embed_dim": None,
  "projection_class_embeddings_input_dim": None,
}  # fmt: skip
_AUTOENCODER_DEFAULTS = {
  "in_channels": 3, "out_channels": 3, "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"],
  "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "norm_num_groups": 32,
  "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": 0.0, "force_upcast": True, "use_quant_conv": True,
  "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip


def unet_config_from_hf(hf: Mapping[str, Any]) -> UNetConfig:
  """Reads the config of a `UNet2DConditionModel`; UserError on an option that we lack."""
  _require(hf, _UNET_REQUIRED)
  read = {**_UNET_DEFAULTS, **{name: value for name, value in hf.items() if value is not None}}
  levels = len(read["block_out_channels"])

  def by_level(name):
    value = read[name]
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
    if len(values) != levels or any(isinstance(x, list | tuple) for x in values):
      _refuse(name, value, f"one value, or one for each of {levels} levels")
    return values

  attends = tuple(kind == _DOWN[True] for kind in read["down_block_types"])
  for name, known, order in (("down_block_types", _DOWN, 1), ("up_block_types", _UP, -1)):
    if list(read[name]) != [known[attention] for attention in attends[::order]]:
      _refuse(name, read[name], f"{' and '.join(known.values())}, with attention at the same levels down and up")
  if len(attends) != levels:
    _refuse("down_block_types", read["down_block_types"], f"one for each of {levels} levels")
  adds = read["addition_embed_type"]
  if adds not in (None, "text_time"):
    _refuse("addition_embed_type", adds, "null and 'text_time'")
  numbers, width = read["addition_time_embed_dim"], read["projection_class_embeddings_input_dim"]
  if adds and not (numbers and width):
    lacking = "projection_class_embeddings_input_dim" if numbers else "addition_time_embed_dim"
    raise UserError(f"config.json says addition_embed_type={adds!r} and lacks {lacking}")
  text_dims = set(by_level("cross_attention_dim"))
  if len(text_dims) > 1:
    _refuse("cross_attention_dim", read["cross_attention_dim"], "the same for all levels")
  channels, heads = tuple(read["block_out_channels"]), by_level("attention_head_dim")
  if any(width % count for width, count in zip(channels, heads, strict=True)):
    _refuse("attention_head_dim", read["attention_head_dim"], "numbers of heads that divide block_out_channels")
  depths, size = by_level("transformer_layers_per_block"), read["sample_size"]
  return UNetConfig(
    in_channels=read["in_channels"],
    out_channels=read["out_channels"],
    channels=channels,
    resnets=by_level("layers_per_block"),
    heads=heads,
    depths=tuple(depth if attention else 0 for depth, attention in zip(depths, attends, strict=True)),
    middle_depth=depths[-1],
    text_dim=text_dims.pop(),
    text_only=by_level("only_cross_attention"),
    linear_projection=read["use_linear_projection"],
    norm_groups=read["norm_num_groups"],
    norm_epsilon=read["norm_eps"],
    centre_input=read["center_input_sample"],
    cosine_first=read["flip_sin_to_cos"],
    frequency_shift=read["freq_shift"],
    added_number_dim=numbers if adds else None,
    added_dim=width if adds else None,
    sample_size=size if isinstance(size, int) else size[0],
    dropout=read["dropout"],
  )


def unet_config_to_hf(config: UNetConfig) -> dict[str, Any]:
  """Undoes `unet_config_from_hf`."""
  attends = [depth > 0 for depth in config.depths]
  depths = [depth or 1 for depth in config.depths[:-1]] + [config.middle_depth]
  return {
    "in_channels": config.in_channels,
    "out_channels": config.out_channels,
    "block_out_channels": list(config.channels),
    "layers_per_block": _one_or_all(config.resnets),
    "attention_head_dim": _one_or_all(config.heads),
    "down_block_types": [_DOWN[attention] for attention in attends],
    "up_block_types": [_UP[attention] for attention in attends[::-1]],
    "transformer_layers_per_block": _one_or_all(depths),
    "cross_attention_dim": config.text_dim,
    "only_cross_attention": _one_or_all(config.text_only),
    "use_linear_projection": config.linear_projection,
    "norm_num_groups": config.norm_groups,
    "norm_eps": config.norm_epsilon,
    "center_input_sample": config.centre_input,
    "flip_sin_to_cos": config.cosine_first,
    "freq_shift": config.frequency_shift,
    "addition_embed_type": "text_time" if config.added_dim else None,
    "addition_time_embed_dim": config.added_number_dim,
    "projection_class_embeddings_input_dim": config.added_dim,
    "sample_size": config.sample_size,
    "dropout": config.dropout,
  }


def autoencoder_config_from_hf(hf: Mapping[str, Any]) -> AutoencoderConfig:
  """Reads the config of an `AutoencoderKL`; UserError on an option that we lack."""
  _require(hf, _AUTOENCODER_REQUIRED)
  read = {**_AUTOENCODER_DEFAULTS, **{name: value for name, value in hf.items() if value is not None}}
  levels = len(read["block_out_channels"])
  for name in ("down_block_types", "up_block_types"):
    only = _AUTOENCODER_DEFAULTS[name] * levels
    if list(read[name]) != only:
      _refuse(name, read[name], f"{only[0]} for each of {levels} levels")
  size = read["sample_size"]
  return AutoencoderConfig(
    in_channels=read["in_channels"],
    out_channels=read["out_channels"],
    latent_channels=read["latent_channels"],
    channels=tuple(read["block_out_channels"]),
    resnets=read["layers_per_block"],
    norm_groups=read["norm_num_groups"],
    quant_convolution=read["use_quant_conv"],
    post_quant_convolution=read["use_post_quant_conv"],
    middle_attention=read["mid_block_add_attention"],
    scaling_factor=read["scaling_factor"],
    shift_factor=read["shift_factor"],
    sample_size=size if isinstance(size, int) else size[0],
    force_upcast=read["force_upcast"],
  )


def autoencoder_config_to_hf(config: AutoencoderConfig) -> dict[str, Any]:
  """Undoes `autoencoder_config_from_hf`."""
  levels = len(config.channels)
  return {
    "in_channels": config.in_channels,
    "out_channels": config.out_channels,
    "latent_channels": config.latent_channels,
    "block_out_channels": list(config.channels),
    **{name: _AUTOENCODER_DEFAULTS[name] * levels for name in ("down_block_types", "up_block_types")},
    "layers_per_block": config.resnets,
    "norm_num_groups": config.norm_groups,
    "use_quant_conv": config.quant_convolution,
    "use_post_quant_conv": config.post_quant_convolution,
    "mid_block_add_attention": config.middle_attention,
    "scaling_factor": config.scaling_factor,
    "shift_factor": config.shift_factor,
    "sample_size": config.sample_size,
    "force_upcast": config.force_upcast,
  }


def _one_or_all(values):
  return values[0] if len(set(values)) == 1 else list(values)


def _require(hf: Mapping[str, Any], required: Mapping[str, Any]) -> None:
  for name, value in required.items():
    if hf.get(name, value) not in (value, None) or (name == "mid_block_type" and hf.get(name, value) is None):
      _refuse(name, hf[name], repr(value))


def _refuse(name: str, said: Any, supported: str) -> None:
  raise UserError(f"config.json says {name}={said!r}, which fsb_jax does not support (only {supported})")
