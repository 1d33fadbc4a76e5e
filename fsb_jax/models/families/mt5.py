"""mT5: Randeng-T5-77M and -784M with their tasks.

Source: Xue et al. 2020, https://arxiv.org/abs/2010.11934.
"""

import functools

from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.families._t5_form import config_from_hf, config_to_hf, size
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import LanguageModel

FAMILY = Family(
  name="mt5",
  model_type="mt5",
  class_prefix="MT5",
  config_from_hf=functools.partial(config_from_hf, feed_forward="gated-gelu", tied=False, scaled=False),
  config_to_hf=config_to_hf,
  sizes={
    "tiny": size(2, 128, 2, 256, 32598, gated=True, tied=False),
    "randeng_77m": size(8, 512, 6, 1024, 32598, gated=True, tied=False),
    "randeng_784m": size(24, 1024, 16, 2816, 32598, gated=True, tied=False),
  },
  heads={"conditional_generation": functools.partial(LanguageModel, bias="none")},
  model=EncoderDecoderModel,
)
