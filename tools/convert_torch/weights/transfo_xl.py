"""Transformer-XL: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/transfo_xl_denoise."""

import numpy as np

from convert_torch.ops import fused, heads_bias, heads_in, heads_out, pad_vocab
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import dense, norm
from fsb_jax.models.positions import LearnedPositions

OURS, THEIRS = "decoder/layers_{i}", "transformer.layers.{i}"


def frequencies(config) -> np.ndarray | None:
  """The angle of every pair of a code for a step of the distance, `[embed / 2]`; none with a table of positions."""
  if isinstance(config.positions, LearnedPositions):
    return None
  # Rounded twice, as PyTorch's are.
  return 1 / (10000.0 ** (np.arange(0, config.embed_dim, 2) / config.embed_dim)).astype(np.float32)


TABLE = Table(
  # Its one class names its parts so.
  prefix="",
  rows=(
    Row("token_embed/embedding", "word_embeddings.weight", pad_vocab),
    Row("decoder/position_embed/embedding", "transformer.position_embeddings.weight", optional=True),
    Row("decoder/attention_biases/content_bias", "transformer.r_w_bias", optional=True),
    Row("decoder/attention_biases/distance_bias", "transformer.r_r_bias", optional=True),
    *norm(f"{OURS}/attention_norm", f"{THEIRS}.input_layernorm"),
    *(
      row
      for part, name in enumerate(("query", "key", "value"))
      for row in (
        Row(f"{OURS}/attention/{name}/kernel", f"{THEIRS}.attention.query_key_value.weight", fused(heads_out, part, 3)),
        Row(f"{OURS}/attention/{name}/bias", f"{THEIRS}.attention.query_key_value.bias", fused(heads_bias, part, 3)),
      )
    ),
    Row(f"{OURS}/attention/distance/kernel", f"{THEIRS}.attention.relative.weight", heads_out, optional=True),
    Row(f"{OURS}/attention/distance/bias", f"{THEIRS}.attention.relative.bias", heads_bias, optional=True),
    Row(f"{OURS}/attention/out/kernel", f"{THEIRS}.attention.dense.weight", heads_in),
    Row(f"{OURS}/attention/out/bias", f"{THEIRS}.attention.dense.bias"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.post_attention_layernorm"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.mlp.dense_h_to_4h"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.mlp.dense_4h_to_h"),
    *norm("decoder/final_norm", "transformer.final_layernorm"),
  ),
  constants={"transformer.position_embeddings.inv_freq": frequencies},
  in_transformers=False,
)
