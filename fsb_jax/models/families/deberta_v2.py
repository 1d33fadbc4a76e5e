"""DeBERTa-v2 (Erlangshen-DeBERTa): attention to content and to distance apart.

Source: He et al. 2020, https://arxiv.org/abs/2006.03654; logarithmic buckets, shared projections and the convolution
are of the second version of its authors' code, https://github.com/microsoft/DeBERTa.
"""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.disentangled import ConvolutionSpec, DisentangledAttention, DisentangledPositions
from fsb_jax.models.families._bert_form import require_values, shared_fields, shared_to_hf
from fsb_jax.models.heads import HEADS
from fsb_jax.models.layers import ACTIVATIONS, NormSpec
from fsb_jax.models.original_heads import ORIGINAL_HEADS
from fsb_jax.models.registry import Family

_DEFAULTS = {"layer_norm_eps": 1e-7, "type_vocab_size": 0}
# What its pooler is made of, and other options that the core does not have.
_REQUIRED = {"pooler_hidden_act": "gelu", "pooler_dropout": 0, "conv_groups": 1}
_NORMS = {"none": False, "layer_norm": True}
_TERMS = ("c2p", "p2c")


def config_from_hf(hf: Mapping) -> TransformerConfig:
  """Reads a Hub config."""
  fields = shared_fields(hf, {**_DEFAULTS, "classifier_dropout": hf.get("cls_dropout")})
  head_size = fields["embed_dim"] // fields["num_heads"]
  require_values(hf, {**_REQUIRED, "embedding_size": fields["embed_dim"], "attention_head_size": head_size})
  if not hf.get("relative_attention", False):
    raise UserError("config.json does not say relative_attention=true, and fsb_jax has no DeBERTa without it")
  terms = hf.get("pos_att_type") or []
  terms = [term.strip() for term in terms.lower().split("|")] if isinstance(terms, str) else terms
  if set(terms) - set(_TERMS):
    raise UserError(f"config.json says pos_att_type={hf['pos_att_type']!r}, of which fsb_jax knows c2p and p2c only")
  norm = hf.get("norm_rel_ebd", "none").strip().lower()
  if norm not in _NORMS:
    raise UserError(f"config.json says norm_rel_ebd={norm!r}, which fsb_jax does not know; known: {', '.join(_NORMS)}")
  length = hf.get("max_position_embeddings", 512)
  buckets, distance = hf.get("position_buckets", -1), hf.get("max_relative_positions", -1)
  size, act = hf.get("conv_kernel_size", 0), hf.get("conv_act", "tanh")
  if act not in ACTIVATIONS:
    raise UserError(f"config.json says conv_act={act!r}, which fsb_jax does not know; known: {', '.join(ACTIVATIONS)}")
  return TransformerConfig(
    **fields,
    positions=DisentangledPositions(
      length=length,
      absolute=hf.get("position_biased_input", True),
      max_distance=distance if distance > 0 else length,
      buckets=buckets if buckets > 0 else None,
      terms=tuple(term for term in _TERMS if term in terms),
      shared_projections=hf.get("share_att_key", False),
      normed=_NORMS[norm],
    ),
    attention=DisentangledAttention,
    convolution=ConvolutionSpec(kernel_size=size, activation=act) if size > 0 else None,
    mask_embeddings=True,
    mask_fill="replaced",
    base_pooler=False,
    pooler_activation="gelu",
  )


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  hf, positions, convolution = shared_to_hf(config), config.positions, config.convolution
  return {
    **hf,
    **_REQUIRED,
    "cls_dropout": hf.pop("classifier_dropout"),
    "relative_attention": True,
    "position_biased_input": positions.absolute,
    "max_relative_positions": positions.max_distance,
    "position_buckets": positions.buckets or -1,
    "pos_att_type": list(positions.terms),
    "share_att_key": positions.shared_projections,
    "norm_rel_ebd": "layer_norm" if positions.normed else "none",
    "pooler_hidden_size": config.embed_dim,
    **({"conv_kernel_size": convolution.kernel_size, "conv_act": convolution.activation} if convolution else {}),
    # The names under which the masked language model's head is written.
    "legacy": True,
  }


def _size(layers: int, width: int, heads: int, vocab_size: int = 12800) -> TransformerConfig:
  return TransformerConfig(
    vocab_size=vocab_size, embed_dim=width, num_layers=layers, num_heads=heads, mlp_dim=4 * width,
    positions=DisentangledPositions(length=512), attention=DisentangledAttention, norm=NormSpec(epsilon=1e-7),
    convolution=ConvolutionSpec(), mask_embeddings=True, mask_fill="replaced", base_pooler=False,
    pooler_activation="gelu",
  )  # fmt: skip


FAMILY = Family(
  name="deberta_v2",
  model_type="deberta-v2",
  class_prefix="DebertaV2",
  config_from_hf=config_from_hf,
  config_to_hf=config_to_hf,
  sizes={
    "tiny": _size(2, 128, 2),
    "erlangshen_97m": _size(12, 768, 12),
    "erlangshen_186m": _size(12, 768, 12, vocab_size=128000),
    "erlangshen_320m": _size(24, 1024, 16),
    "erlangshen_710m": _size(24, 1536, 24),
    "unimc_1_4b": _size(48, 1536, 24),
  },
  heads={
    **{name: head for name, head in HEADS.items() if name not in ("pretraining", "next_sentence")},
    **ORIGINAL_HEADS,
  },
)
