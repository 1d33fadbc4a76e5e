"""A tiny UNet and BERT of PyTorch's in float64, and the same as a `Denoiser` of ours."""

import dataclasses
import math

import tiny_diffusers
import torch
import transformers
from convert_torch import hub

from fsb_jax import models
from fsb_jax.models import diffusion
from fsb_jax.models.diffusion.schedulers import Schedule

TEXT_DIM = 12
SCALED = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def schedule(**changes):
  """Stable Diffusion's."""
  return Schedule(sampler="ddpm", **{**SCALED, **changes})


def in_float64(projection):
  """Makes diffusers' sinusoids of time in float64, as ours are then."""

  def forward(numbers):
    half = projection.num_channels // 2
    exponents = torch.arange(half, dtype=torch.float64) / (half - projection.downscale_freq_shift)
    angles = numbers[:, None].double() * torch.exp(-math.log(10000) * exponents)
    waves = [torch.sin(angles), torch.cos(angles)]
    return torch.cat(waves[::-1] if projection.flip_sin_to_cos else waves, dim=-1)

  projection.forward = forward


def theirs():
  """(UNet, text encoder)."""
  unet = tiny_diffusers.unet()
  in_float64(unet.time_proj)
  config = transformers.BertConfig(
    vocab_size=32, hidden_size=TEXT_DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=16,
  )  # fmt: skip
  return unet, tiny_diffusers.randomised(transformers.BertModel(config))


def read(unet, text_encoder, folder, **options):
  """The `Denoiser` and its parameters of two models of theirs, and the text encoder as read; `Denoiser`'s options."""
  module, unet_params = tiny_diffusers.read(unet, folder / "unet")
  text_encoder.save_pretrained(folder / "text_encoder")
  hub_model = hub.load_hub_folder(folder / "text_encoder", run=module.config.run)
  built = models.build(hub_model.family, hub_model.config, hub_model.head, None)
  options = {"schedule": schedule(), **options}
  params = {"unet": unet_params, "text_encoder": hub_model.params}
  return diffusion.Denoiser(module, built, **options), params, hub_model


def small(dtype="float64", **options):
  """A `Denoiser` whose widths eight devices divide."""
  run = models.Run(dtype=dtype, param_dtype=dtype)
  unet = diffusion.UNetConfig(
    channels=(16, 32), resnets=(1, 1), heads=(8, 8), depths=(1, 0), text_dim=16, text_only=(False, False),
    norm_groups=4, sample_size=8, initializer_range=0.2, run=run,
  )  # fmt: skip
  text = dataclasses.replace(
    models.sized("bert", "tiny"), vocab_size=32, embed_dim=16, num_heads=8, num_layers=2, mlp_dim=16,
    dropout=models.Dropout(hidden=0.0, attention=0.0), initializer_range=0.2, run=run,
  )  # fmt: skip
  options = {"schedule": schedule(), **options}
  return diffusion.Denoiser(diffusion.UNet(unet), models.build("bert", text), **options)
