"""Hub config fields that T5 and mT5 share."""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.config import DecoderSpec, Dropout, TransformerConfig
from fsb_jax.models.families._decoder_form import known_activation, require_fields
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.relative_buckets import BucketAttention, RelativeBuckets

_FORM = dict(
  attention_bias=False, mlp_bias=False, score_scale=1.0, norm_placement="pre", embedding_norm=False, final_norm=True,
  attention=BucketAttention, trains_padding=True,
)  # fmt: skip
# Its name of a feed-forward block -> ours; "gated-gelu" was trained with the approximation.
_FORMS = {"gated-gelu": ("gelu_new", "linear"), "gated-silu": ("silu", "linear"), "gated-relu": ("relu", "linear")}


def config_from_hf(hf: Mapping, feed_forward: str, tied: bool, scaled: bool) -> TransformerConfig:
  """Reads a Hub config.

  Args:
    hf: the config.
    feed_forward: what it says of the feed-forward block where it is silent.
    tied: whether it ties embeddings where it is silent.
    scaled: tied embeddings score scaled hidden states.
  """
  require_fields(hf, ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"))
  projection = hf.get("feed_forward_proj", feed_forward)
  if projection.startswith("gated-") and projection not in _FORMS:
    raise UserError(
      f"config.json says feed_forward_proj={projection!r}, which fsb_jax does not know; known: {', '.join(_FORMS)} and "
      "plain activations"
    )
  tied = hf.get("tie_word_embeddings", tied)
  rate = hf.get("dropout_rate", 0.1)
  positions = RelativeBuckets(
    buckets=hf.get("relative_attention_num_buckets", 32), max_distance=hf.get("relative_attention_max_distance", 128)
  )
  return TransformerConfig(
    **_FORM,
    vocab_size=hf["vocab_size"],
    embed_dim=hf["d_model"],
    head_size=hf["d_kv"],
    mlp_dim=hf["d_ff"],
    num_layers=hf["num_layers"],
    num_heads=hf["num_heads"],
    positions=positions,
    decoder=DecoderSpec(
      num_layers=hf.get("num_decoder_layers") or hf["num_layers"], num_heads=hf["num_heads"], mlp_dim=hf["d_ff"],
      positions=positions, start_token_id=hf.get("decoder_start_token_id") or 0,
    ),
    activations=_FORMS.get(projection) or (known_activation("feed_forward_proj", projection),),
    norm=NormSpec(kind="rms", epsilon=hf.get("layer_norm_epsilon", 1e-6)),
    tie_embeddings=tied,
    # Version 5 of transformers says that all are tied, and this apart.
    scale_logits=scaled and hf.get("scale_decoder_outputs", tied),
    pad_token_id=hf.get("pad_token_id", 0),
    initializer_range=0.05 * hf.get("initializer_factor", 1.0),
    dropout=Dropout(hidden=rate, attention=rate, mlp=rate, output=rate, classifier=hf.get("classifier_dropout", 0.0)),
  )  # fmt: skip


def config_to_hf(config: TransformerConfig) -> dict:
  """Undoes `config_from_hf`."""
  forms = {ours: theirs for theirs, ours in _FORMS.items()}
  return {
    "vocab_size": config.vocab_size,
    "d_model": config.embed_dim,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "num_layers": config.num_layers,
    "num_decoder_layers": config.decoder.num_layers,
    "num_heads": config.num_heads,
    "relative_attention_num_buckets": config.positions.buckets,
    "relative_attention_max_distance": config.positions.max_distance,
    "feed_forward_proj": forms.get(config.activations, config.activations[0]),
    "layer_norm_epsilon": config.norm.epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    "pad_token_id": config.pad_token_id,
    "decoder_start_token_id": config.decoder.start_token_id,
    "scale_decoder_outputs": config.scale_logits,
    "initializer_factor": config.initializer_range / 0.05,
    "dropout_rate": config.dropout.hidden,
    "classifier_dropout": config.dropout.classifier,
  }


def size(
  layers: int, width: int, heads: int, mlp_dim: int, vocab_size: int, *, gated: bool, tied: bool, scaled: bool = False
) -> TransformerConfig:
  """A shape whose encoder and decoder are alike."""
  positions = RelativeBuckets()
  return TransformerConfig(
    **_FORM, vocab_size=vocab_size, embed_dim=width, head_size=64, mlp_dim=mlp_dim, num_layers=layers,
    num_heads=heads, positions=positions, activations=("gelu_new", "linear") if gated else ("relu",),
    decoder=DecoderSpec(num_layers=layers, num_heads=heads, mlp_dim=mlp_dim, positions=positions),
    norm=NormSpec(kind="rms", epsilon=1e-6), tie_embeddings=tied, scale_logits=scaled, initializer_range=0.05,
    dropout=Dropout(hidden=0.1, attention=0.1, mlp=0.1, output=0.1, classifier=0.0),
  )  # fmt: skip
