"""The UNet of Stable Diffusion, in two layouts of names, see `_diffusion_form`."""

from typing import Literal

from convert_torch.ops import convolution, fused, heads_in, heads_out, linear, of_config, pixelwise, same
from convert_torch.weights import Row, Table
from convert_torch.weights._diffusion_form import map_rows, norm_rows, resnet_rows
from fsb_jax.models import TransformerConfig
from fsb_jax.models.diffusion import UNetConfig

_RESNET = {
  "diffusers": {
    "norm_1": "norm1", "convolution_1": "conv1", "time": "time_emb_proj", "norm_2": "norm2",
    "convolution_2": "conv2", "shortcut": "conv_shortcut",
  },
  "original": {
    "norm_1": "in_layers.0", "convolution_1": "in_layers.2", "time": "emb_layers.1", "norm_2": "out_layers.0",
    "convolution_2": "out_layers.3", "shortcut": "skip_connection",
  },
}  # fmt: skip
_ENDS = {
  "diffusers": {
    "convolution_in": "conv_in", "time": "time_embedding.linear_", "added": "add_embedding.linear_",
    "norm_out": "conv_norm_out", "convolution_out": "conv_out",
  },
  "original": {
    "convolution_in": "input_blocks.0.0", "time": "time_embed.", "added": "label_emb.0.", "norm_out": "out.0",
    "convolution_out": "out.2",
  },
}  # fmt: skip
# How the two linear maps of an embedding are counted.
_LINEAR = {"diffusers": (1, 2), "original": (0, 2)}
_ATTENTIONS = {"attention": "attn1", "cross_attention": "attn2"}


def unet_table(
  config: UNetConfig, layout: Literal["diffusers", "original"] = "diffusers", prefix: str = ""
) -> Table:
  """The weight table of a UNet.

  Args:
    config: the UNet's.
    layout: how tensors are named.
    prefix: what begins every name.
  """
  ends, resnets, diffusers = _ENDS[layout], _RESNET[layout], layout == "diffusers"
  transformers = config.transformers()
  rows = [*map_rows("convolution_in", ends["convolution_in"], convolution)]
  for ours in ("time", "added"):
    for i, theirs in zip((1, 2), _LINEAR[layout], strict=True):
      rows += map_rows(f"{ours}/linear_{i}", f"{ends[ours]}{theirs}", optional=ours == "added")

  def place(ours: str, resnet: str, attention: str, i: int) -> None:
    rows.extend(resnet_rows(f"{ours}/resnets_{i}", resnet, resnets))
    stack = transformers.get((ours, f"attentions_{i}"))
    if stack is not None:
      rows.extend(_transformer_rows(f"{ours}/attentions_{i}", attention, config, stack))

  levels = len(config.channels)
  block = 0
  for level in range(levels):
    ours, theirs = f"down_{level}", f"down_blocks.{level}"
    for i in range(config.resnets[level]):
      block += 1
      original = f"input_blocks.{block}"
      names = (f"{theirs}.resnets.{i}", f"{theirs}.attentions.{i}") if diffusers else (f"{original}.0", f"{original}.1")
      place(ours, *names, i)
    if level < levels - 1:
      block += 1
      name = f"{theirs}.downsamplers.0.conv" if diffusers else f"input_blocks.{block}.0.op"
      rows += map_rows(f"{ours}/downsample", name, convolution)
  for i in range(2):
    names = f"mid_block.resnets.{i}" if diffusers else f"middle_block.{2 * i}"
    place("middle", names, "mid_block.attentions.0" if diffusers else "middle_block.1", i)
  block = 0
  for i in range(levels):
    ours, theirs, level = f"up_{i}", f"up_blocks.{i}", levels - 1 - i
    for j in range(config.resnets[level] + 1):
      original = f"output_blocks.{block}"
      names = (f"{theirs}.resnets.{j}", f"{theirs}.attentions.{j}") if diffusers else (f"{original}.0", f"{original}.1")
      place(ours, *names, j)
      block += 1
    if level > 0:
      after = 1 if config.transformer(level) is None else 2
      name = f"{theirs}.upsamplers.0.conv" if diffusers else f"{original}.{after}.conv"
      rows += map_rows(f"{ours}/upsample", name, convolution)
  rows += norm_rows("norm_out", ends["norm_out"])
  rows += map_rows("convolution_out", ends["convolution_out"], convolution)
  return Table(prefix="", rows=tuple(Row(row.ours, prefix + row.theirs, row.op, optional=row.optional) for row in rows))


def _transformer_rows(ours: str, theirs: str, config: UNetConfig, stack: TransformerConfig) -> list[Row]:
  """Those of the transformer at a place, which both layouts name alike."""
  projection = linear if config.linear_projection else pixelwise
  layer, their_layer = f"{ours}/blocks/layers_{{i}}", f"{theirs}.transformer_blocks.{{i}}"
  rows = [*norm_rows(f"{ours}/norm", f"{theirs}.norm")]
  rows += map_rows(f"{ours}/project_in", f"{theirs}.proj_in", projection)
  for i, sublayer in enumerate((*_ATTENTIONS, "mlp")):
    rows += norm_rows(f"{layer}/{sublayer}_norm", f"{their_layer}.norm{i + 1}")
  for name, attn in _ATTENTIONS.items():
    for which in ("query", "key", "value"):
      kernel = f"{their_layer}.{attn}.to_{which[0]}.weight"
      rows.append(Row(f"{layer}/{name}/{which}/kernel", kernel, of_config(heads_out, stack)))
    rows += map_rows(f"{layer}/{name}/out", f"{their_layer}.{attn}.to_out.0", of_config(heads_in, stack))
  # The first half is gated by the activation of the second.
  for name, part in (("wi_1", 0), ("wi_0", 1)):
    gated = f"{their_layer}.ff.net.0.proj"
    rows.append(Row(f"{layer}/mlp/{name}/kernel", f"{gated}.weight", fused(linear, part, 2)))
    rows.append(Row(f"{layer}/mlp/{name}/bias", f"{gated}.bias", fused(same, part, 2)))
  rows += map_rows(f"{layer}/mlp/wo", f"{their_layer}.ff.net.2")
  rows += map_rows(f"{ours}/project_out", f"{theirs}.proj_out", projection)
  return rows
