"""Tiny random models of diffusers, one for every layout that has been published, and what tests do with them."""

import dataclasses
import math

import diffusers
import torch
from convert_torch import engine, io
from convert_torch.diffusers_folder import AUTOENCODER, UNET

from fsb_jax import models

_CROSS = {
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_BASE = {
  "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
  "cross_attention_dim": 12, "attention_head_dim": 2, **_CROSS,
}  # fmt: skip
# By what they are tiny ones of.
UNETS = {
  "sd1": _BASE,
  "sd2": {**_BASE, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
  "sdxl": {
    **_BASE,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2), "attention_head_dim": (2, 4), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34,
    "layers_per_block": (1, 2),
  },
  "inpainting": {**_BASE, "in_channels": 9, "center_input_sample": True},
  "text_only": {**_BASE, "only_cross_attention": (True, False), "flip_sin_to_cos": False, "freq_shift": 1},
}  # fmt: skip
VAE = {
  "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
}  # fmt: skip


def randomised(model, dtype=torch.float64):
  """The model with weights large enough that mistakes show."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      fan_in = math.prod(parameter.shape[1:])
      parameter.normal_(std=1.0 / math.sqrt(fan_in) if parameter.ndim > 1 else 0.3)
      if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
        parameter.add_(1.0)
  return model.eval().to(dtype)


def unet(name="sd1", dtype=torch.float64):
  """A tiny UNet of diffusers."""
  return randomised(diffusers.UNet2DConditionModel(**UNETS[name]), dtype)


def vae(dtype=torch.float64, **changes):
  """A tiny autoencoder of diffusers."""
  return randomised(diffusers.AutoencoderKL(**{**VAE, **changes}), dtype)


def read(model, folder, dtype="float64", **run):
  """Module and parameters of ours from a model of diffusers, by way of a folder."""
  component = UNET if isinstance(model, diffusers.UNet2DConditionModel) else AUTOENCODER
  model.save_pretrained(folder)
  config = dataclasses.replace(
    component.from_hf(io.read_config(folder)), run=models.Run(dtype=dtype, param_dtype=dtype, **run)
  )
  params = component.read(folder, io.WeightFiles(folder, io.DIFFUSERS_NAMES), config)
  return component.module(config), params


def in_their_names(module, tree):
  """A tree like our parameters' by the names, and in the form, of diffusers."""
  component = UNET if type(module).__name__ == "UNet" else AUTOENCODER
  return dict(engine.save(component.table(module.config), models.flatten(tree), module.config, prefixed=True))
