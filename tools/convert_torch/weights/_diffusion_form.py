"""What the tables of UNet and autoencoder share. Each knows two layouts of names.

"diffusers": https://github.com/huggingface/diffusers, src/diffusers/models/unets/unet_2d_condition.py and
autoencoders/autoencoder_kl.py. "original": https://github.com/CompVis/latent-diffusion,
ldm/modules/diffusionmodules/openaimodel.py and model.py, which single files keep.
"""

from collections.abc import Mapping

from convert_torch.ops import Op, convolution, linear, pixelwise
from convert_torch.weights import Row


def map_rows(ours: str, theirs: str, op: Op = linear, optional: bool = False) -> tuple[Row, Row]:
  """Kernel and bias."""
  return (
    Row(f"{ours}/kernel", f"{theirs}.weight", op, optional=optional),
    Row(f"{ours}/bias", f"{theirs}.bias", optional=optional),
  )


def norm_rows(ours: str, theirs: str, optional: bool = False) -> tuple[Row, Row]:
  """Scale and bias."""
  return (
    Row(f"{ours}/scale", f"{theirs}.weight", optional=optional),
    Row(f"{ours}/bias", f"{theirs}.bias", optional=optional),
  )


def resnet_rows(ours: str, theirs: str, names: Mapping[str, str]) -> list[Row]:
  """A ResNet's, of whose tensors `names` has those that are called otherwise."""

  def at(name):
    return f"{ours}/{name}", f"{theirs}.{names[name]}"

  return [
    *norm_rows(*at("norm_1")),
    *map_rows(*at("convolution_1"), convolution),
    *(map_rows(*at("time")) if "time" in names else ()),
    *norm_rows(*at("norm_2")),
    *map_rows(*at("convolution_2"), convolution),
    # Only where it changes the number of channels.
    *map_rows(*at("shortcut"), pixelwise, optional=True),
  ]
