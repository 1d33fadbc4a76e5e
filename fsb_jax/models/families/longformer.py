"""Longformer as the Hub has it: a RoBERTa whose tokens see a window, and some of them everything.

Source: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150.
"""

import functools
from collections.abc import Callable, Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.families._bert_form import shared_fields, shared_to_hf
from fsb_jax.models.heads import (
  FirstTokenClassification,
  Head,
  MaskedLM,
  MultipleChoice,
  QuestionAnswering,
  TokenClassification,
)
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.registry import Family
from fsb_jax.models.sliding_window import SlidingWindowAttention, Window

HEADS: dict[str, Callable[..., Head]] = {
  "masked_lm": functools.partial(MaskedLM, transform_activation="gelu"),
  "sequence_classification": functools.partial(FirstTokenClassification, global_tokens="first"),
  "token_classification": TokenClassification,
  "multiple_choice": functools.partial(MultipleChoice, global_tokens="answer"),
  "question_answering": functools.partial(QuestionAnswering, global_tokens="question"),
  # UniEX's rows say who sees whom, which a window leaves no room for.
  **{name: head for name, head in ORIGINAL_HEADS.items() if name != "uniex"},
}


def window_fields(hf: Mapping, num_layers: int, global_projections: bool) -> dict:
  """Arguments of `TransformerConfig` from a Hub config's fields about the window."""
  widths = hf.get("attention_window", 512)
  widths = [widths] * num_layers if isinstance(widths, int) else widths or []
  if len(widths) != num_layers or any(width <= 0 or width % 2 for width in widths):
    raise UserError(
      f"config.json says attention_window={hf['attention_window']!r}; it must be one positive even number, or one "
      f"for each of num_hidden_layers={num_layers}"
    )
  return dict(
    attention=SlidingWindowAttention,
    mask_fill="zeroed",
    window=Window(
      reach=tuple(width // 2 for width in widths),
      global_projections=global_projections,
      separator=hf.get("sep_token_id", 2),
      global_limit=hf.get("global_attention_limit", Window.global_limit),
    ),
  )


def window_to_hf(window: Window) -> dict:
  """Undoes `window_fields`."""
  limit = {} if window.global_limit == Window.global_limit else {"global_attention_limit": window.global_limit}
  return {"attention_window": [2 * reach for reach in window.reach], "sep_token_id": window.separator, **limit}


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, {"pad_token_id": 1})
  length = hf.get("max_position_embeddings", 512)
  return TransformerConfig(
    **fields,
    **window_fields(hf, fields["num_layers"], global_projections=True),
    positions=LearnedPositions(length=length, skip_padding=fields["pad_token_id"]),
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  return {**shared_to_hf(config), **window_to_hf(config.window)}


def _size(layers: int, width: int, heads: int, reach: int, token_types: int = 1) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=50265, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width, token_types=token_types,
    positions=LearnedPositions(length=4098, skip_padding=1), norm=NormSpec(epsilon=1e-5), pad_token_id=1,
    attention=SlidingWindowAttention, mask_fill="zeroed", window=Window(reach=(reach,) * layers),
  )  # fmt: skip


FAMILY = Family(
  name="longformer",
  model_type="longformer",
  class_prefix="Longformer",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2, 16, token_types=2),
    "longformer_base_4096": _size(12, 768, 12, 256),
    "longformer_large_4096": _size(24, 1024, 16, 256),
  },
  heads=HEADS,
  reads=lambda hf: "use_sparse_attention" not in hf,
)
