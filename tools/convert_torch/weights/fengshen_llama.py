"""LLaMA in Megatron's layout: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/llama/modeling_llama.py."""

import numpy as np

from convert_torch.ops import fused_by_head, heads_in, heads_out, linear, pad_vocab, then
from convert_torch.weights import Row, Table

_LAYER, _THEIRS = "decoder/layers_{i}", "llama.layers.{i}"
_TOKENS = "llama.embed_in.word_embeddings.weight"

TABLE = Table(
  prefix="llama.",
  rows=(
    Row("token_embed/embedding", _TOKENS, pad_vocab),
    Row(f"{_LAYER}/attention_norm/scale", f"{_THEIRS}.input_layernorm.scale"),
    *(
      Row(
        f"{_LAYER}/attention/{name}/kernel", f"{_THEIRS}.attention.query_key_value.weight",
        fused_by_head(heads_out, part, 3),
      )
      for part, name in enumerate(("query", "key", "value"))
    ),
    Row(f"{_LAYER}/attention/out/kernel", f"{_THEIRS}.attention.dense.weight", heads_in),
    Row(f"{_LAYER}/mlp_norm/scale", f"{_THEIRS}.post_attention_layernorm.scale"),
    Row(f"{_LAYER}/mlp/wi_0/kernel", f"{_THEIRS}.mlp.w1.weight", linear),
    Row(f"{_LAYER}/mlp/wi_1/kernel", f"{_THEIRS}.mlp.w3.weight", linear),
    Row(f"{_LAYER}/mlp/wo/kernel", f"{_THEIRS}.mlp.w2.weight", linear),
    Row("decoder/final_norm/scale", "llama.final_layer_norm.scale"),
    Row("head/lm/decoder/kernel", "embed_out.final_linear.weight", then(pad_vocab, linear), tied_to=_TOKENS),
  ),
  constants={
    # Angles per step.
    "llama.layers.{i}.attention.rotary_emb.inv_freq": lambda config: (
      config.positions.base ** -(np.arange(0, config.head_dim, 2, np.float32) / config.head_dim)
    ).astype(np.float32)
  },
  parallel_axes={
    _TOKENS: 0,
    f"{_THEIRS}.attention.query_key_value.weight": 0,
    f"{_THEIRS}.attention.dense.weight": 1,
    f"{_THEIRS}.mlp.w1.weight": 0,
    f"{_THEIRS}.mlp.w2.weight": 1,
    f"{_THEIRS}.mlp.w3.weight": 0,
    "embed_out.final_linear.weight": 0,
  },
  in_transformers=False,
)
