"""The autoencoder of latent diffusion, in two layouts of names, see `_diffusion_form`."""

from typing import Literal

from convert_torch.ops import convolution, linear, pixelwise
from convert_torch.weights import Row, Table
from convert_torch.weights._diffusion_form import map_rows, norm_rows, resnet_rows
from fsb_jax.models.diffusion import AutoencoderConfig

_NAMES = {
  "diffusers": {
    "norm_1": "norm1", "convolution_1": "conv1", "norm_2": "norm2", "convolution_2": "conv2",
    "shortcut": "conv_shortcut", "norm_out": "conv_norm_out",
    "norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
  },
  "original": {
    "norm_1": "norm1", "convolution_1": "conv1", "norm_2": "norm2", "convolution_2": "conv2",
    "shortcut": "nin_shortcut", "norm_out": "norm_out",
    "norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out",
  },
}  # fmt: skip
# How diffusers called the attention's maps before version 0.17.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_RENAME = tuple((rf"(.*\.attentions\.0)\.{old}\.", rf"\1.{new}.") for old, new in _OLD.items())


def autoencoder_table(
  config: AutoencoderConfig, layout: Literal["diffusers", "original"] = "diffusers", prefix: str = ""
) -> Table:
  """The weight table of an autoencoder; see `unet_table`."""
  diffusers, names = layout == "diffusers", _NAMES[layout]
  levels = len(config.channels)
  rows: list[Row] = []
  for half, way, extra in (("encoder", "down", 0), ("decoder", "up", 1)):
    rows += map_rows(f"{half}/convolution_in", f"{half}.conv_in", convolution)
    for i in range(levels):
      # On the way up the original counts as on the way down.
      theirs = f"{half}.{way}_blocks.{i}" if diffusers else f"{half}.{way}.{levels - 1 - i if extra else i}"
      for j in range(config.resnets + extra):
        name = f"{theirs}.resnets.{j}" if diffusers else f"{theirs}.block.{j}"
        rows += resnet_rows(f"{half}/{way}_{i}/resnets_{j}", name, names)
      if i < levels - 1:
        name = f"{theirs}.{way}samplers.0.conv" if diffusers else f"{theirs}.{way}sample.conv"
        rows += map_rows(f"{half}/{way}_{i}/{way}sample", name, convolution)
    middle = f"{half}.mid_block" if diffusers else f"{half}.mid"
    for j in range(2):
      name = f"{middle}.resnets.{j}" if diffusers else f"{middle}.block_{j + 1}"
      rows += resnet_rows(f"{half}/middle/resnets_{j}", name, names)
    name = f"{middle}.attentions.0" if diffusers else f"{middle}.attn_1"
    rows += _attention_rows(f"{half}/middle/attention", name, layout)
    rows += norm_rows(f"{half}/norm_out", f"{half}.{names['norm_out']}")
    rows += map_rows(f"{half}/convolution_out", f"{half}.conv_out", convolution)
  rows += map_rows("quant", "quant_conv", pixelwise, optional=True)
  rows += map_rows("post_quant", "post_quant_conv", pixelwise, optional=True)
  return Table(
    prefix="",
    rows=tuple(Row(row.ours, prefix + row.theirs, row.op, optional=row.optional) for row in rows),
    rename=_RENAME if diffusers else (),
    # Of the loss that the original trains it with.
    ignore=() if diffusers else (r".*\bloss\..*",),
  )


def _attention_rows(ours: str, theirs: str, layout: str) -> list[Row]:
  names, op = _NAMES[layout], linear if layout == "diffusers" else pixelwise
  rows = [*norm_rows(f"{ours}/norm", f"{theirs}.{names['norm']}", optional=True)]
  for name in ("query", "key", "value", "out"):
    rows += map_rows(f"{ours}/{name}", f"{theirs}.{names[name]}", op, optional=True)
  return rows
