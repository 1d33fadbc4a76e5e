"""GPT-2: Wenzhong and Yuyuan.

Source: Radford et al. 2019, https://openai.com/research/better-language-models.
"""

import functools
from collections.abc import Mapping

from fsb_jax.models.config import Dropout, TransformerConfig
from fsb_jax.models.decoder import DecoderModel
from fsb_jax.models.families._bert_form import require_values
from fsb_jax.models.families._decoder_form import known_activation, require_fields, require_multiple
from fsb_jax.models.heads import TokenClassification
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.writing_heads import LanguageModel, LastTokenClassification

_REQUIRED = {"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
_FORM = dict(mask_kind="causal", norm_placement="pre", embedding_norm=False, final_norm=True, trains_padding=True)


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  require_fields(hf, ("vocab_size", "n_embd", "n_layer", "n_head"))
  require_values(hf, _REQUIRED)
  require_multiple(hf, "n_embd", "n_head")
  hidden, embedding = hf.get("resid_pdrop", 0.1), hf.get("embd_pdrop", 0.1)
  return TransformerConfig(
    **_FORM,
    vocab_size=hf["vocab_size"],
    embed_dim=hf["n_embd"],
    num_layers=hf["n_layer"],
    num_heads=hf["n_head"],
    mlp_dim=hf.get("n_inner") or 4 * hf["n_embd"],
    positions=LearnedPositions(length=hf.get("n_positions", 1024)),
    activations=(known_activation("activation_function", hf.get("activation_function", "gelu_new")),),
    norm=NormSpec(epsilon=hf.get("layer_norm_epsilon", 1e-5)),
    tie_embeddings=hf.get("tie_word_embeddings", True),
    pad_token_id=hf.get("pad_token_id"),
    initializer_range=hf.get("initializer_range", 0.02),
    dropout=Dropout(
      hidden=hidden, embedding=None if embedding == hidden else embedding, attention=hf.get("attn_pdrop", 0.1)
    ),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  dropout = config.dropout
  return {
    "vocab_size": config.vocab_size,
    "n_embd": config.embed_dim,
    "n_layer": config.num_layers,
    "n_head": config.num_heads,
    "n_inner": config.mlp_dim,
    "n_positions": config.positions.length,
    "activation_function": config.activations[0],
    "layer_norm_epsilon": config.norm.epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    "pad_token_id": config.pad_token_id,
    "initializer_range": config.initializer_range,
    "resid_pdrop": dropout.hidden,
    "embd_pdrop": dropout.hidden if dropout.embedding is None else dropout.embedding,
    "attn_pdrop": dropout.attention,
  }


def _size(layers: int, width: int, heads: int, vocab_size: int = 50257) -> TransformerConfig:
  return TransformerConfig(
    **_FORM, vocab_size=vocab_size, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width,
    positions=LearnedPositions(length=1024), activations=("gelu_new",), norm=NormSpec(epsilon=1e-5), pad_token_id=None,
  )  # fmt: skip


FAMILY = Family(
  name="gpt2",
  model_type="gpt2",
  class_prefix="GPT2",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2),
    "wenzhong_110m": _size(12, 768, 12),
    "wenzhong_3_5b": _size(30, 3072, 32, vocab_size=50304),
  },
  heads={
    "causal_lm": functools.partial(LanguageModel, bias="none"),
    "sequence_classification": LastTokenClassification,
    "token_classification": TokenClassification,
  },
  classes={"causal_lm": "GPT2LMHeadModel"},
  model=DecoderModel,
)
