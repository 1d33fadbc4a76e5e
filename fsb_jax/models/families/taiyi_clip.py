"""Taiyi-CLIP: a Chinese BERT and CLIP's image tower.

Its releases of the text tower alone are BERTs that classify texts, see `pipelines.image_text`.
https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/clip.
"""

from collections.abc import Mapping

from fsb_jax.models.clip import ClipConfig, Features, TaiyiClipModel
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families import bert
from fsb_jax.models.families._bert_form import shared_to_hf
from fsb_jax.models.families._clip_form import joint_fields, joint_to_hf, nested, reads_bert
from fsb_jax.models.families.clip_vision import SIZES
from fsb_jax.models.registry import Family


def config_from_hf(hf: Mapping) -> ClipConfig:
  """Reads a Hub config."""
  text = nested(hf, "text")
  return _joined(bert.config_from_hf(text), projection_dim=text["projection_dim"], **joint_fields(hf))


def config_to_hf(config: ClipConfig) -> dict:
  """Undoes `config_from_hf`."""
  return joint_to_hf(config, {"model_type": "bert", **shared_to_hf(config)})


def _joined(text: TransformerConfig, **fields) -> ClipConfig:
  return ClipConfig(**vars(text), **fields)


def _sized(text: str, vision: str) -> ClipConfig:
  vision = SIZES[vision]
  return _joined(bert.FAMILY.sizes[text], projection_dim=vision.projection_dim, vision=vision)


FAMILY = Family(
  name="taiyi_clip",
  model_type="clip",
  class_prefix="TaiyiCLIP",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  reads=reads_bert,
  # Named as the releases are, by their text towers.
  sizes={
    "tiny": _sized("tiny", "tiny"),
    "taiyi_102m": _sized("erlangshen_roberta_110m", "vit_base_patch32"),
    "taiyi_326m": _sized("erlangshen_roberta_330m", "vit_large_patch14"),
  },
  heads={"clip": Features},
  classes={"clip": "TaiyiCLIPModel"},
  model=TaiyiClipModel,
)
