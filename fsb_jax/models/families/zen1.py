"""ZEN 1 (Erlangshen-ZEN1): a BERT whose layers take in an encoder of n-grams.

Sources: Diao et al. 2019, https://arxiv.org/abs/1911.00720; https://github.com/IDEA-CCNL/Fengshenbang-LM,
fengshen/models/zen1.
"""

from collections.abc import Mapping

from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._zen_form import ZEN_HEADS, zen_fields, zen_size, zen_to_hf
from fsb_jax.models.ngram import NgramModel, NgramSpec
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family

# The original's heads hand the attention mask to its encoder in the place of the n-grams' token types; only the one of
# pre-training and the bare encoder mask padding. `"mask_as_ngram_token_types": false` has all of them do so.
_MASK_AS_TOKEN_TYPES = tuple(head for name, head in ZEN_HEADS.items() if name != "pretraining")


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  as_types = _MASK_AS_TOKEN_TYPES if hf.get("mask_as_ngram_token_types", True) else ()
  return TransformerConfig(
    **zen_fields(hf, mask_as_token_types=as_types),
    positions=LearnedPositions(length=hf.get("max_position_embeddings", 512)),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  hf = zen_to_hf(config, "zen1")
  return hf if config.ngrams.mask_as_token_types else {**hf, "mask_as_ngram_token_types": False}


def _ngrams(layers: int, vocab_size: int) -> NgramSpec:
  return NgramSpec(vocab_size=vocab_size, num_layers=layers, mask_as_token_types=_MASK_AS_TOKEN_TYPES)


FAMILY = Family(
  name="zen1",
  model_type="zen1",
  class_prefix="Zen",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  # A checkpoint's own config says how many n-grams it has.
  sizes={"tiny": zen_size(2, 128, _ngrams(1, 1000)), "erlangshen_224m": zen_size(12, 768, _ngrams(6, 104089))},
  heads=ZEN_HEADS,
  model=NgramModel,
)
