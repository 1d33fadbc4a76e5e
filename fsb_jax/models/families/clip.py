"""CLIP: texts and images in one space.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from collections.abc import Mapping

from fsb_jax.models.clip import ClipConfig, ClipModel, Features
from fsb_jax.models.families._clip_form import joint_fields, joint_to_hf, nested, reads_bert, text_fields, text_to_hf
from fsb_jax.models.families.clip_text import size
from fsb_jax.models.families.clip_vision import SIZES
from fsb_jax.models.registry import Family


def config_from_hf(hf: Mapping) -> ClipConfig:
  """Reads a Hub config."""
  return ClipConfig(**text_fields(nested(hf, "text")), **joint_fields(hf))


def config_to_hf(config: ClipConfig) -> dict:
  """Undoes `config_from_hf`."""
  return joint_to_hf(config, text_to_hf(config))


def _sized(name: str, layers: int, width: int, **fields) -> ClipConfig:
  vision = SIZES[name]
  return ClipConfig(**vars(size(layers, width, projection=vision.projection_dim, **fields)), vision=vision)


FAMILY = Family(
  name="clip",
  model_type="clip",
  class_prefix="CLIP",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  reads=lambda hf: not reads_bert(hf),
  sizes={
    "tiny": _sized("tiny", 2, 128, vocab_size=1000),
    "vit_base_patch32": _sized("vit_base_patch32", 12, 512),
    "vit_large_patch14": _sized("vit_large_patch14", 12, 768),
  },
  heads={"clip": Features},
  classes={"clip": "CLIPModel"},
  model=ClipModel,
)
