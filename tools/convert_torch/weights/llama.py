"""LLaMA: https://github.com/huggingface/transformers, models/llama/modeling_llama.py."""

from convert_torch.ops import heads_bias, heads_out, kv_heads_bias, kv_heads_out, linear, pad_vocab
from convert_torch.weights import Row, Table
from convert_torch.weights._decoder_form import attention, lm_head

_LAYER, _THEIRS = "decoder/layers_{i}", "model.layers.{i}"


def _mlp(ours: str, theirs: str) -> tuple[Row, Row]:
  ours, theirs = f"{_LAYER}/mlp/{ours}", f"{_THEIRS}.mlp.{theirs}"
  bias = Row(f"{ours}/bias", f"{theirs}.bias", optional=True, fields=("mlp_bias",))
  return Row(f"{ours}/kernel", f"{theirs}.weight", linear), bias


TABLE = Table(
  prefix="model.",
  rows=(
    Row("token_embed/embedding", "model.embed_tokens.weight", pad_vocab),
    Row(f"{_LAYER}/attention_norm/scale", f"{_THEIRS}.input_layernorm.weight"),
    *attention(
      f"{_LAYER}/attention", f"{_THEIRS}.self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"),
      query=(heads_out, heads_bias), key_value=(kv_heads_out, kv_heads_bias),
    ),
    Row(f"{_LAYER}/mlp_norm/scale", f"{_THEIRS}.post_attention_layernorm.weight"),
    *_mlp("wi_0", "gate_proj"),
    *_mlp("wi_1", "up_proj"),
    *_mlp("wo", "down_proj"),
    Row("decoder/final_norm/scale", "model.norm.weight"),
    lm_head("model.embed_tokens.weight"),
    Row("head/score/kernel", "score.weight", linear),
  ),
  # Angles that old versions saved.
  ignore=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"(model\.)?rotary_emb\.inv_freq"),
  # Its norms and angles are float32, whatever the model is.
  float64_in_transformers=False,
)
