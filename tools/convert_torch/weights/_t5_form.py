"""T5 and mT5: https://github.com/huggingface/transformers, models/t5/modeling_t5.py."""

from convert_torch.ops import decoder, heads_bias, heads_in, heads_out, linear, pad_vocab
from convert_torch.weights import Row, Table
from convert_torch.weights._decoder_form import attention, lm_head

_NAMES = ("q", "k", "v", "o")


def _stack(name: str) -> tuple[Row, ...]:
  """Encoder or decoder; their sub-layers differ in number."""
  ours, theirs = f"{name}/layers_{{i}}", f"{name}.block.{{i}}.layer"
  decodes = name == "decoder"
  change = decoder if decodes else lambda op: op
  ops = dict(
    query=(change(heads_out), change(heads_bias)), key_value=(change(heads_out), change(heads_bias)),
    out=change(heads_in), biases=False,
  )  # fmt: skip
  cross = (
    *attention(f"{ours}/cross_attention", f"{theirs}.1.EncDecAttention", _NAMES, **ops),
    Row(f"{ours}/cross_attention_norm/scale", f"{theirs}.1.layer_norm.weight"),
  )
  last = f"{theirs}.{2 if decodes else 1}"
  return (
    *attention(f"{ours}/attention", f"{theirs}.0.SelfAttention", _NAMES, **ops),
    Row(f"{name}/relative_embed/embedding", f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    Row(f"{ours}/attention_norm/scale", f"{theirs}.0.layer_norm.weight"),
    *(cross if decodes else ()),
    *(
      Row(f"{ours}/mlp/{x}/kernel", f"{last}.DenseReluDense.{x}.weight", linear, optional=True)
      for x in ("wi", "wi_0", "wi_1")
    ),
    Row(f"{ours}/mlp/wo/kernel", f"{last}.DenseReluDense.wo.weight", linear),
    Row(f"{ours}/mlp_norm/scale", f"{last}.layer_norm.weight"),
    Row(f"{name}/final_norm/scale", f"{name}.final_layer_norm.weight"),
  )


TABLE = Table(
  # Its classes name their parts alike, with a head or without.
  prefix="",
  rows=(
    Row("token_embed/embedding", "shared.weight", pad_vocab),
    *_stack("encoder"),
    *_stack("decoder"),
    lm_head("shared.weight"),
  ),
  # Old files have a bias of the cross-attention that nothing ever read.
  ignore=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
  copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
  keeps_apart=True,
)
