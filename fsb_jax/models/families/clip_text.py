"""CLIP's text tower alone, and what Stable Diffusion reads prompts with.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from collections.abc import Mapping

from fsb_jax.models.clip import ClipTextConfig, ClipTextModel, TextProjection
from fsb_jax.models.families._clip_form import text_fields, text_to_hf
from fsb_jax.models.registry import Family


def config_from_hf(hf: Mapping) -> ClipTextConfig:
  """Reads a Hub config."""
  return ClipTextConfig(**text_fields(hf))


def size(layers: int, width: int, *, projection: int, highest_id_ends: bool = True, **fields) -> ClipTextConfig:
  """A tower of so many layers, with heads 64 wide; `fields` are config.json's."""
  return config_from_hf(
    dict(
      num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width,
      projection_dim=projection, eos_token_id=2 if highest_id_ends else 49407, **fields,
    )
  )  # fmt: skip


FAMILY = Family(
  name="clip_text",
  model_type="clip_text_model",
  class_prefix="CLIPText",
  config_from_hf=config_from_hf,
  config_to_hf=text_to_hf,
  sizes={
    "tiny": size(2, 128, projection=64, vocab_size=1000),
    # Of Stable Diffusion 1, and the first of SDXL's two.
    "vit_large_patch14": size(12, 768, projection=768),
    # The second, OpenCLIP's bigG.
    "vit_bigg_14": size(32, 1280, projection=1280, highest_id_ends=False, hidden_act="gelu"),
  },
  heads={"projection": TextProjection},
  model=ClipTextModel,
)
