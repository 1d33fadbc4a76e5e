"""Hub config fields that BART and Pegasus share."""

from collections.abc import Mapping

from fsb_jax.models.config import DecoderSpec, Dropout, TransformerConfig
from fsb_jax.models.families._bert_form import require_values
from fsb_jax.models.families._decoder_form import known_activation, require_fields, require_multiple
from fsb_jax.models.layers import NormSpec

_SHAPE = ("vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "decoder_layers",
          "decoder_attention_heads", "decoder_ffn_dim")  # fmt: skip
NORM = NormSpec(epsilon=1e-5)


def shared_fields(hf: Mapping, positions, required: Mapping, start: int, end: int) -> dict:
  """Reads the shared fields into arguments of `TransformerConfig`.

  Args:
    hf: the Hub's config.
    positions: of both stacks.
    required: options of old configs, with the only value of each that we read.
    start: the id a text begins with where the config does not say.
    end: the id it ends with where the config does not say.
  """
  require_fields(hf, _SHAPE)
  require_values(hf, required)
  require_multiple(hf, "d_model", "encoder_attention_heads", "decoder_attention_heads")
  said, ends = hf.get("decoder_start_token_id"), hf.get("eos_token_id", end)
  return dict(
    vocab_size=hf["vocab_size"],
    embed_dim=hf["d_model"],
    num_layers=hf["encoder_layers"],
    num_heads=hf["encoder_attention_heads"],
    mlp_dim=hf["encoder_ffn_dim"],
    positions=positions,
    decoder=DecoderSpec(
      num_layers=hf["decoder_layers"], num_heads=hf["decoder_attention_heads"], mlp_dim=hf["decoder_ffn_dim"],
      positions=positions, start_token_id=start if said is None else said,
      end_token_id=ends if isinstance(ends, int) else None,
    ),
    scale_embeddings=bool(hf.get("scale_embedding")),
    activations=(known_activation("activation_function", hf.get("activation_function", "gelu")),),
    norm=NORM,
    tie_embeddings=hf.get("tie_word_embeddings", True),
    initializer_range=hf.get("init_std", 0.02),
    dropout=Dropout(
      hidden=hf.get("dropout", 0.1), attention=hf.get("attention_dropout", 0.0), mlp=hf.get("activation_dropout", 0.0),
      classifier=hf.get("classifier_dropout", 0.0),
    ),
  )  # fmt: skip


def shared_to_hf(config: TransformerConfig) -> dict:
  """Undoes `shared_fields`."""
  decoder, dropout = config.decoder, config.dropout
  return {
    "vocab_size": config.vocab_size,
    "d_model": config.embed_dim,
    "encoder_layers": config.num_layers,
    "encoder_attention_heads": config.num_heads,
    "encoder_ffn_dim": config.mlp_dim,
    "decoder_layers": decoder.num_layers,
    "decoder_attention_heads": decoder.num_heads,
    "decoder_ffn_dim": decoder.mlp_dim,
    "num_hidden_layers": config.num_layers,
    "decoder_start_token_id": decoder.start_token_id,
    "scale_embedding": config.scale_embeddings,
    "activation_function": config.activations[0],
    "tie_word_embeddings": config.tie_embeddings,
    "pad_token_id": config.pad_token_id,
    "init_std": config.initializer_range,
    "dropout": dropout.hidden,
    "attention_dropout": dropout.attention,
    "activation_dropout": dropout.mlp,
    "classifier_dropout": dropout.classifier,
    **({} if decoder.end_token_id is None else {"eos_token_id": decoder.end_token_id}),
  }
