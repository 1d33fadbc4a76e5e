"""Megatron-T5: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/megatron_t5/modeling_megatron_t5.py."""

import numpy as np

from convert_torch.ops import decoder, heads_bias, heads_in, heads_out, pad_vocab
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import dense, norm
from convert_torch.weights._decoder_form import attention

_TABLES = ("word_embeddings.weight", "position_embeddings.weight")


def _stack(name: str) -> tuple[Row, ...]:
  """Encoder or decoder."""
  ours, theirs = f"{name}/layers_{{i}}", f"{name}.block.{{i}}"
  change = decoder if name == "decoder" else lambda op: op
  ops = dict(
    query=(change(heads_out), change(heads_bias)), key_value=(change(heads_out), change(heads_bias)),
    out=change(heads_in),
  )  # fmt: skip
  layers = [("attention", "T5LayerSelfAttention", "SelfAttention")]
  if name == "decoder":
    layers.append(("cross_attention", "T5LayerCrossAttention", "EncDecAttention"))
  return (
    *(
      row
      for part, layer, module in layers
      for row in (
        *attention(f"{ours}/{part}", f"{theirs}.{layer}.{module}", ("q", "k", "v", "o"), **ops),
        *norm(f"{ours}/{part}_norm", f"{theirs}.{layer}.layer_norm"),
      )
    ),
    *dense(f"{ours}/mlp/wi", f"{theirs}.T5LayerFF.DenseReluDense.wi"),
    *dense(f"{ours}/mlp/wo", f"{theirs}.T5LayerFF.DenseReluDense.wo"),
    *norm(f"{ours}/mlp_norm", f"{theirs}.T5LayerFF.layer_norm"),
    *norm(f"{name}/final_norm", f"{name}.final_layer_norm"),
  )


TABLE = Table(
  # Its classes name their parts alike, with a head or without.
  prefix="",
  rows=(
    Row("token_embed/embedding", "shared.word_embeddings.weight", pad_vocab),
    Row("position_embed/embedding", "shared.position_embeddings.weight"),
    *_stack("encoder"),
    *_stack("decoder"),
    Row("head/lm/bias", "lm_head_bias", pad_vocab),
  ),
  # Copies of the constant below.
  ignore=(r"(encoder|decoder)\.embed_tokens\.position_ids",),
  constants={"shared.position_ids": lambda config: np.arange(config.positions.length)[None]},
  copies={f"{stack}.embed_tokens.{x}": f"shared.{x}" for stack in ("encoder", "decoder") for x in _TABLES},
  in_transformers=False,
)
