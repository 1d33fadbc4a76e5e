"""ALBERT: a narrow embedding and one set of parameters for all layers (Erlangshen-UniMC-Albert).

Source: Lan et al. 2019, https://arxiv.org/abs/1909.11942.
"""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.families._bert_form import require_values, shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS, SentenceOrder
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family

_DEFAULTS = {"hidden_act": "gelu_new", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  require_values(hf, {"inner_group_num": 1})
  fields = shared_fields(hf, {**_DEFAULTS, "classifier_dropout": hf.get("classifier_dropout_prob", 0.1)})
  groups = hf.get("num_hidden_groups", 1)
  if fields["num_layers"] % groups:
    raise UserError(
      f"config.json says num_hidden_groups={groups}, which does not divide num_hidden_layers={fields['num_layers']}"
    )
  return TransformerConfig(
    **fields,
    token_dim=hf.get("embedding_size", 128),
    layer_groups=groups,
    positions=LearnedPositions(length=hf.get("max_position_embeddings", 512)),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  hf = shared_to_hf(config)
  classifier_dropout = hf.pop("classifier_dropout")
  return {
    **hf,
    "embedding_size": config.token_dim,
    "num_hidden_groups": config.layer_groups,
    "inner_group_num": 1,
    "classifier_dropout_prob": classifier_dropout,
  }


def _size(layers: int, width: int, heads: int, vocab_size: int = 30000) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=vocab_size, token_dim=128, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width,
    layer_groups=1, token_types=2, activations=("gelu_new",),
    dropout=Dropout(hidden=0.0, attention=0.0, classifier=0.1),
  )


FAMILY = Family(
  name="albert",
  model_type="albert",
  class_prefix="Albert",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "albert_base": _size(12, 768, 12), "unimc_235m": _size(12, 4096, 64)},
  heads={
    **{name: head for name, head in HEADS.items() if name not in ("pretraining", "next_sentence")},
    "sentence_order": SentenceOrder,
    **ORIGINAL_HEADS,
  },
)
