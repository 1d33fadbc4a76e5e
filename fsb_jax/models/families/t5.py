"""T5: Randeng-T5-Char and others whose config says `t5`.

Source: Raffel et al. 2019, https://arxiv.org/abs/1910.10683.
"""

import functools

from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.families._t5_form import config_from_hf, config_to_hf, size
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import LanguageModel

FAMILY = Family(
  name="t5",
  model_type="t5",
  class_prefix="T5",
  config_from_hf=functools.partial(config_from_hf, feed_forward="relu", tied=True, scaled=True),
  config_to_hf=config_to_hf,
  sizes={
    "tiny": size(2, 128, 2, 256, 32128, gated=False, tied=True, scaled=True),
    "t5_small": size(6, 512, 8, 2048, 32128, gated=False, tied=True, scaled=True),
    "t5_base": size(12, 768, 12, 3072, 32128, gated=False, tied=True, scaled=True),
  },
  heads={"conditional_generation": functools.partial(LanguageModel, bias="none")},
  model=EncoderDecoderModel,
)
