"""ZEN 2 (Erlangshen-ZEN2): ZEN with larger vocabularies of n-grams, and codes of offsets in place of positions.

Sources: Song et al. 2021, https://arxiv.org/abs/2105.01279; https://github.com/IDEA-CCNL/Fengshenbang-LM,
fengshen/models/zen2.
"""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._zen_form import ZEN_HEADS, zen_fields, zen_size, zen_to_hf
from fsb_jax.models.heads import QuestionAnswering
from fsb_jax.models.ngram import NgramModel, NgramSpec, SinusoidOffsetAttention, SinusoidOffsets
from fsb_jax.models.registry import Family

_FORM = dict(positions=SinusoidOffsets(), attention=SinusoidOffsetAttention)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  config = TransformerConfig(**zen_fields(hf, positions=_FORM["positions"]), **_FORM)
  if config.head_dim % 2 or config.head_dim < 4:
    raise UserError(
      f"config.json says hidden_size={config.embed_dim} and num_attention_heads={config.num_heads}, which makes heads "
      f"of width {config.head_dim}; the codes of offsets need an even one of at least 4"
    )
  return config


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return zen_to_hf(config, "zen2")


def _size(layers: int, width: int, ngram_layers: int = 6, ngrams: int = 261000) -> TransformerConfig:
  spec = NgramSpec(vocab_size=ngrams, num_layers=ngram_layers, positions=_FORM["positions"])
  return zen_size(layers, width, spec, **_FORM)


FAMILY = Family(
  name="zen2",
  model_type="zen2",
  class_prefix="Zen",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  # A checkpoint's own config says how many n-grams it has.
  sizes={"tiny": _size(2, 128, 1, 1000), "erlangshen_345m": _size(12, 768), "erlangshen_668m": _size(24, 1024)},
  heads={**ZEN_HEADS, "question_answering": QuestionAnswering},
  model=NgramModel,
)
