"""GPT-2: https://github.com/huggingface/transformers, models/gpt2/modeling_gpt2.py.

Its layers are `Conv1D`: kernels `[inputs, outputs]`, as ours are.
"""

from convert_torch.ops import Op, fused, heads_bias, linear, pad_vocab, then
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import norm

# Their [e, h*d] and [h*d, e] in our form.
_to_heads = Op(
  lambda x, config: x.reshape(x.shape[0], config.num_heads, -1), lambda x, config: x.reshape(x.shape[0], -1)
)
_from_heads = Op(
  lambda x, config: x.reshape(config.num_heads, -1, x.shape[-1]), lambda x, config: x.reshape(-1, x.shape[-1])
)
_LAYER, _THEIRS = "decoder/layers_{i}", "transformer.h.{i}"


def _plain(ours: str, theirs: str) -> tuple[Row, ...]:
  return Row(f"{ours}/kernel", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")


TABLE = Table(
  prefix="transformer.",
  rows=(
    Row("token_embed/embedding", "transformer.wte.weight", pad_vocab),
    Row("decoder/position_embed/embedding", "transformer.wpe.weight"),
    *norm(f"{_LAYER}/attention_norm", f"{_THEIRS}.ln_1"),
    *(
      row
      for part, name in enumerate(("query", "key", "value"))
      for row in (
        Row(f"{_LAYER}/attention/{name}/kernel", f"{_THEIRS}.attn.c_attn.weight", fused(_to_heads, part, 3, axis=1)),
        Row(f"{_LAYER}/attention/{name}/bias", f"{_THEIRS}.attn.c_attn.bias", fused(heads_bias, part, 3)),
      )
    ),
    Row(f"{_LAYER}/attention/out/kernel", f"{_THEIRS}.attn.c_proj.weight", _from_heads),
    Row(f"{_LAYER}/attention/out/bias", f"{_THEIRS}.attn.c_proj.bias"),
    *norm(f"{_LAYER}/mlp_norm", f"{_THEIRS}.ln_2"),
    *_plain(f"{_LAYER}/mlp/wi", f"{_THEIRS}.mlp.c_fc"),
    *_plain(f"{_LAYER}/mlp/wo", f"{_THEIRS}.mlp.c_proj"),
    *norm("decoder/final_norm", "transformer.ln_f"),
    Row(
      "head/lm/decoder/kernel", "lm_head.weight", then(pad_vocab, linear), tied_to="transformer.wte.weight"
    ),
    Row("head/score/kernel", "score.weight", linear),
    Row("head/classifier/kernel", "classifier.weight", linear),
    Row("head/classifier/bias", "classifier.bias"),
  ),
  # Masks that old versions saved.
  ignore=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)
