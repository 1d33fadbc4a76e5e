"""Hub config fields that ZEN 1 and ZEN 2 share."""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS
from fsb_jax.models.ngram import NgramSpec

# The original's classes.
ZEN_HEADS = {
  name: HEADS[name]
  for name in ("masked_lm", "pretraining", "next_sentence", "sequence_classification", "token_classification")
}
# Layers of the n-gram encoder where a config is silent.
_NGRAM_LAYERS = 6


def zen_fields(hf: Mapping, **ngrams) -> dict:
  """Reads the shared fields into arguments of `TransformerConfig`, with `ngrams` for its `NgramSpec`."""
  # Row 0 of both tables of words is padding, whatever the config says.
  fields = shared_fields({**hf, "pad_token_id": 0}, {})
  if "word_size" not in hf:
    raise UserError("config.json lacks word_size, the number of n-grams; is it the config of this model?")
  layers = hf.get("num_hidden_word_layers", _NGRAM_LAYERS)
  if not 1 <= layers <= fields["num_layers"]:
    raise UserError(
      f"config.json says num_hidden_word_layers={layers}, which is not between 1 and num_hidden_layers="
      f"{fields['num_layers']}"
    )
  return {**fields, "ngrams": NgramSpec(vocab_size=hf["word_size"], num_layers=layers, **ngrams)}


def zen_to_hf(config: TransformerConfig, name: str) -> dict:
  """Undoes `zen_fields`; `name` is what the original calls the model."""
  return {
    **shared_to_hf(config),
    "word_size": config.ngrams.vocab_size,
    "num_hidden_word_layers": config.ngrams.num_layers,
    "fengshen_model_type": f"fengshen-{name}",
  }


def zen_size(layers: int, width: int, ngrams: NgramSpec, **changes) -> TransformerConfig:
  """A size of the form of BERT's."""
  return TransformerConfig(
    vocab_size=21128, embed_dim=width, num_layers=layers, num_heads=width // 64, mlp_dim=4 * width, token_types=2,
    ngrams=ngrams, **changes,
  )  # fmt: skip
