"""Configs of UNet and autoencoder from the shapes of a single file's tensors."""

import itertools
import re
from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.diffusion import AutoencoderConfig, UNetConfig

Shapes = Mapping[str, tuple[int, ...]]

# What shapes do not say, the published models agree on.
_NUMBER_DIM = 256


def unet_config(shapes: Shapes) -> UNetConfig:
  """The config of a UNet of Stable Diffusion 1, 2 or XL.

  Args:
    shapes: name in the original's layout, without prefix -> shape.

  Raises:
    UserError: not such a UNet.
  """
  try:
    return _unet_config(shapes)
  except (KeyError, IndexError, StopIteration):
    raise UserError(
      "the file's UNet is none of Stable Diffusion 1, 2 or XL; give config_from= with a folder of its configs"
    ) from None


def _unet_config(shapes: Shapes) -> UNetConfig:
  blocks = itertools.takewhile(
    lambda i: f"input_blocks.{i}.0.op.weight" in shapes or f"input_blocks.{i}.0.in_layers.2.weight" in shapes,
    itertools.count(1),
  )
  channels, resnets, depths = [], [0], []
  for i in blocks:
    name = f"input_blocks.{i}.0"
    if f"{name}.op.weight" in shapes:
      resnets.append(0)
      continue
    if not resnets[-1]:
      channels.append(shapes[f"{name}.in_layers.2.weight"][0])
      depths.append(_depth(shapes, f"input_blocks.{i}.1"))
    resnets[-1] += 1
  linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
  added = shapes.get("label_emb.0.0.weight")
  return UNetConfig(
    in_channels=shapes["input_blocks.0.0.weight"][1],
    out_channels=shapes["out.2.weight"][0],
    channels=tuple(channels),
    resnets=tuple(resnets),
    # Version 1 has 8 heads of whatever width, later ones have heads of 64.
    heads=tuple(width // 64 if linear else 8 for width in channels),
    depths=tuple(depths),
    middle_depth=_depth(shapes, "middle_block.1"),
    text_dim=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
    text_only=(False,) * len(channels),
    linear_projection=linear,
    added_number_dim=added and _NUMBER_DIM,
    added_dim=added and added[1],
    sample_size=128 if added else 64,
  )


def _depth(shapes: Shapes, transformer: str) -> int:
  pattern = re.escape(transformer) + r"\.transformer_blocks\.(\d+)\."
  return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


def autoencoder_config(shapes: Shapes, xl: bool) -> AutoencoderConfig:
  """The config of an autoencoder; see `unet_config`.

  Args:
    shapes: name in the original's layout, without prefix -> shape.
    xl: whether it is that of Stable Diffusion XL, which scales latents otherwise.
  """
  try:
    levels = itertools.takewhile(lambda i: f"encoder.down.{i}.block.0.conv1.weight" in shapes, itertools.count())
    channels = tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in levels)
    blocks = itertools.takewhile(lambda i: f"encoder.down.0.block.{i}.conv1.weight" in shapes, itertools.count())
    return AutoencoderConfig(
      in_channels=shapes["encoder.conv_in.weight"][1],
      out_channels=shapes["decoder.conv_out.weight"][0],
      latent_channels=shapes["decoder.conv_in.weight"][1],
      channels=channels,
      resnets=len(list(blocks)),
      quant_convolution="quant_conv.weight" in shapes,
      post_quant_convolution="post_quant_conv.weight" in shapes,
      middle_attention="encoder.mid.attn_1.q.weight" in shapes,
      scaling_factor=0.13025 if xl else 0.18215,
      sample_size=1024 if xl else 512,
    )
  except KeyError:
    raise UserError(
      "the file's autoencoder is not Stable Diffusion's; give config_from= with a folder of its configs"
    ) from None
