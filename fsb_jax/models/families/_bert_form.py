"""Hub config fields that the BERT-shaped families share."""

import dataclasses
from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout, HeadSizes, TransformerConfig
from fsb_jax.models.layers import ACTIVATIONS, NormSpec

# Options that change what the model computes and that the core does not have: (field, the only value we read).
_REQUIRED_VALUES = {
  "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "pruned_heads": {},
}  # fmt: skip

_DEFAULTS = {
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
  "classifier_dropout": None,
  "layer_norm_eps": 1e-12,
  "initializer_range": 0.02,
  "max_position_embeddings": 512,
  "type_vocab_size": 2,
  "pad_token_id": 0,
  "tie_word_embeddings": True,
}
_HEAD_SIZES = tuple(field.name for field in dataclasses.fields(HeadSizes))
_SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def require_values(hf: Mapping, values: Mapping, *, null: bool = True) -> None:
  """UserError where a field has another value than the one that we read; `null` says whether that may be null."""
  for name, value in values.items():
    if hf.get(name, value) != value and not (null and hf[name] is None):
      raise UserError(f"config.json says {name}={hf[name]!r}, which fsb_jax does not support (only {value!r})")


def shared_fields(hf: Mapping, defaults: Mapping) -> dict:
  """Reads the shared fields into arguments of `TransformerConfig`; UserError on an option we lack."""
  missing = [name for name in _SHAPE if hf.get(name) is None]
  if missing:
    raise UserError(f"config.json lacks {', '.join(missing)}; is it the config of this model?")
  for name in (*_SHAPE, "max_position_embeddings"):
    if name in hf and (type(hf[name]) is not int or hf[name] < 1):
      raise UserError(f"config.json says {name}={hf[name]!r}; it must be a whole number of at least 1")
  require_values(hf, _REQUIRED_VALUES)
  read = {**_DEFAULTS, **defaults, **{k: v for k, v in hf.items() if v is not None}}
  if read["hidden_act"] not in ACTIVATIONS:
    raise UserError(
      f"config.json says hidden_act={read['hidden_act']!r}, which fsb_jax does not know; "
      f"known: {', '.join(sorted(ACTIVATIONS))}"
    )
  if read["hidden_size"] % read["num_attention_heads"]:
    raise UserError(
      f"config.json says hidden_size={read['hidden_size']}, which is no multiple of "
      f"num_attention_heads={read['num_attention_heads']}"
    )
  return dict(
    vocab_size=read["vocab_size"],
    embed_dim=read["hidden_size"],
    num_layers=read["num_hidden_layers"],
    num_heads=read["num_attention_heads"],
    mlp_dim=read["intermediate_size"],
    token_types=read["type_vocab_size"],
    activations=(read["hidden_act"],),
    norm=NormSpec(epsilon=read["layer_norm_eps"]),
    tie_embeddings=read["tie_word_embeddings"],
    pad_token_id=hf["pad_token_id"] if "pad_token_id" in hf else read["pad_token_id"],
    initializer_range=read["initializer_range"],
    dropout=Dropout(
      hidden=read["hidden_dropout_prob"],
      attention=read["attention_probs_dropout_prob"],
      classifier=read["classifier_dropout"],
    ),
    head_sizes=HeadSizes(**{name: read[name] for name in _HEAD_SIZES if name in read}),
  )


def shared_to_hf(config: TransformerConfig) -> dict:
  """Undoes `shared_fields`."""
  return dict(
    vocab_size=config.vocab_size,
    hidden_size=config.embed_dim,
    num_hidden_layers=config.num_layers,
    num_attention_heads=config.num_heads,
    intermediate_size=config.mlp_dim,
    type_vocab_size=config.token_types,
    hidden_act=config.activations[0],
    layer_norm_eps=config.norm.epsilon,
    tie_word_embeddings=config.tie_embeddings,
    pad_token_id=config.pad_token_id,
    initializer_range=config.initializer_range,
    hidden_dropout_prob=config.dropout.hidden,
    attention_probs_dropout_prob=config.dropout.attention,
    classifier_dropout=config.dropout.classifier,
    **{x: size for x, size in dataclasses.asdict(config.head_sizes).items() if size != getattr(HeadSizes(), x)},
    **({"max_position_embeddings": config.positions.length} if hasattr(config.positions, "length") else {}),
  )
