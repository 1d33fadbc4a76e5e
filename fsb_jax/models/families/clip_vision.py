"""CLIP's image tower alone.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from fsb_jax.models.families._clip_form import vision_from_hf, vision_to_hf
from fsb_jax.models.registry import Family
from fsb_jax.models.vision import ImageProjection, VisionConfig, VisionModel


def size(layers: int, width: int, *, patch: int, projection: int, **fields) -> VisionConfig:
  """A tower of so many layers, with heads 64 wide; `fields` are config.json's."""
  return vision_from_hf(
    dict(
      num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width,
      patch_size=patch, projection_dim=projection, **fields,
    )
  )  # fmt: skip


SIZES = {
  "tiny": size(2, 128, patch=16, projection=64, image_size=32),
  "vit_base_patch32": size(12, 768, patch=32, projection=512),
  "vit_large_patch14": size(24, 1024, patch=14, projection=768),
}

FAMILY = Family(
  name="clip_vision",
  model_type="clip_vision_model",
  class_prefix="CLIPVision",
  config_from_hf=vision_from_hf,
  config_to_hf=vision_to_hf,
  sizes=SIZES,
  heads={"projection": ImageProjection},
  model=VisionModel,
)
