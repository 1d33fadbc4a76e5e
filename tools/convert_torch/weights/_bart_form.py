"""BART and its kin: https://github.com/huggingface/transformers, models/bart/modeling_bart.py."""

from convert_torch.ops import Op, decoder, heads_bias, heads_in, heads_out, pad_vocab, then
from convert_torch.weights import Row
from convert_torch.weights._bert_form import dense, norm
from convert_torch.weights._decoder_form import attention, lm_head

_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
_row = Op(lambda x, config: x[0], lambda x, config: x[None])

COPIES = {f"model.{x}.embed_tokens.weight": "model.shared.weight" for x in ("encoder", "decoder")}


def stack(name: str, cross_attention: bool) -> tuple[Row, ...]:
  """Layers of the encoder or the decoder."""
  ours, theirs = f"{name}/layers_{{i}}", f"model.{name}.layers.{{i}}"
  change = decoder if name == "decoder" else lambda op: op
  ops = dict(
    query=(change(heads_out), change(heads_bias)), key_value=(change(heads_out), change(heads_bias)),
    out=change(heads_in),
  )  # fmt: skip
  return (
    *attention(f"{ours}/attention", f"{theirs}.self_attn", _NAMES, **ops),
    *norm(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm"),
    *(attention(f"{ours}/cross_attention", f"{theirs}.encoder_attn", _NAMES, **ops) if cross_attention else ()),
    *(norm(f"{ours}/cross_attention_norm", f"{theirs}.encoder_attn_layer_norm") if cross_attention else ()),
    *dense(f"{ours}/mlp/wi", f"{theirs}.fc1"),
    *dense(f"{ours}/mlp/wo", f"{theirs}.fc2"),
    *norm(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm"),
  )


def rows() -> tuple[Row, ...]:
  """Both stacks' layers, the token table and the language model's head."""
  return (
    Row("token_embed/embedding", "model.shared.weight", pad_vocab),
    *stack("encoder", False),
    *stack("decoder", True),
    lm_head("model.shared.weight"),
    Row("head/lm/bias", "final_logits_bias", then(_row, pad_vocab)),
  )


def embeddings() -> tuple[Row, ...]:
  """Both stacks' tables of positions and the norms of their embeddings."""
  return tuple(
    row
    for name in ("encoder", "decoder")
    for row in (
      Row(f"{name}/position_embed/embedding", f"model.{name}.embed_positions.weight"),
      *norm(f"{name}/embedding_norm", f"model.{name}.layernorm_embedding"),
    )
  )
