"""XLNet (Chinese-XLNet).

Source: Yang et al. 2019, https://arxiv.org/abs/1906.08237.
"""

import functools
from collections.abc import Mapping

from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.families._bert_form import require_values, shared_fields, shared_to_hf
from fsb_jax.models.heads import QuestionAnswering, SummaryClassification, SummaryMultipleChoice, TokenClassification
from fsb_jax.models.registry import Family
from fsb_jax.models.two_stream import SinusoidDistances, TwoStreamModel
from fsb_jax.models.writing_heads import LanguageModel

# XLNet's name of a field -> BERT's.
_NAMES = {
  "d_model": "hidden_size",
  "n_layer": "num_hidden_layers",
  "n_head": "num_attention_heads",
  "d_inner": "intermediate_size",
  "ff_activation": "hidden_act",
  "dropout": "hidden_dropout_prob",
}
_SUMMARY = dict(summary_type="last", summary_use_proj=True, summary_activation="tanh", summary_last_dropout=0.1)
_REQUIRED = {"attn_type": "bi", "bi_data": False, "same_length": False, **_SUMMARY}


def _dropout(rate: float) -> Dropout:
  """The one rate there is; the states are dropped out before a classifier reads them, and not once more."""
  return Dropout(hidden=rate, attention=rate, mlp=rate, classifier=0.0)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  read = {name: value for name, value in hf.items() if name != "pad_token_id"}
  read |= {theirs: hf[name] for name, theirs in _NAMES.items() if name in hf}
  fields = shared_fields({**read, "type_vocab_size": 0, "pad_token_id": None}, {})
  # Null would mean that there is no such part.
  require_values(hf, _SUMMARY, null=False)
  require_values(hf, {**_REQUIRED, "d_head": fields["embed_dim"] // fields["num_heads"]})
  rate = fields["dropout"].hidden
  clamp, memory = hf.get("clamp_len", -1), hf.get("mem_len", 512)
  return TransformerConfig(
    **{**fields, "dropout": _dropout(rate)},
    positions=SinusoidDistances(clamp=clamp if clamp > 0 else None, memory=memory or None, reuse=hf.get("reuse_len")),
    embedding_norm=False,
    base_pooler=False,
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  hf, positions = shared_to_hf(config), config.positions
  return {
    **{name: hf[theirs] for name, theirs in _NAMES.items()},
    **{name: hf[name] for name in ("vocab_size", "layer_norm_eps", "initializer_range", "tie_word_embeddings")},
    **_REQUIRED,
    "d_head": config.head_dim,
    "clamp_len": positions.clamp or -1,
    "mem_len": positions.memory,
    "reuse_len": positions.reuse,
  }


def _size(layers: int, width: int, heads: int) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=32000, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width, pad_token_id=None,
    positions=SinusoidDistances(memory=512), embedding_norm=False, base_pooler=False, dropout=_dropout(0.1),
  )  # fmt: skip


_SUMMED = dict(token=-1, summary_activation="tanh", summary_dropout=0.1, classifier="summary_classifier")

FAMILY = Family(
  name="xlnet",
  model_type="xlnet",
  class_prefix="XLNet",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={"tiny": _size(2, 128, 2), "xlnet_base": _size(12, 768, 12), "xlnet_mid": _size(24, 768, 12)},
  heads={
    "lm": LanguageModel,
    "sequence_classification": functools.partial(SummaryClassification, **_SUMMED),
    "token_classification": TokenClassification,
    "multiple_choice": functools.partial(SummaryMultipleChoice, **_SUMMED),
    "question_answering_simple": QuestionAnswering,
  },
  model=TwoStreamModel,
)
