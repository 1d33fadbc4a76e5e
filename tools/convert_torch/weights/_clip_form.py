"""Rows of CLIP's towers."""

import dataclasses
from collections.abc import Iterable

from convert_torch.ops import Op, heads_bias, heads_in, heads_out, linear, pad_vocab, same
from convert_torch.weights import Row
from convert_torch.weights._bert_form import dense, norm
from convert_torch.weights._decoder_form import attention

# PyTorch's convolution keeps OIHW, ours HWIO.
_convolution = Op(lambda x, config: x.transpose(2, 3, 1, 0), lambda x, config: x.transpose(3, 2, 0, 1))


def _of_vision(op: Op) -> Op:
  """`op` with the image tower's config."""
  return Op(lambda x, config: op.load(x, config.vision_config), lambda x, config: op.save(x, config.vision_config))


def _layers(theirs: str, kernel: Op, bias: Op, out: Op) -> tuple[Row, ...]:
  layer, their_layer = "encoder/layers_{i}", f"{theirs}.encoder.layers.{{i}}"
  names = ("q_proj", "k_proj", "v_proj", "out_proj")
  return (
    *norm(f"{layer}/attention_norm", f"{their_layer}.layer_norm1"),
    *attention(
      f"{layer}/attention", f"{their_layer}.self_attn", names, query=(kernel, bias), key_value=(kernel, bias), out=out
    ),
    *norm(f"{layer}/mlp_norm", f"{their_layer}.layer_norm2"),
    *dense(f"{layer}/mlp/wi", f"{their_layer}.mlp.fc1"),
    *dense(f"{layer}/mlp/wo", f"{their_layer}.mlp.fc2"),
  )


def text_tower() -> tuple[Row, ...]:
  """Of the tower that reads texts, as a model of its own."""
  return (
    Row("token_embed/embedding", "text_model.embeddings.token_embedding.weight", pad_vocab),
    Row("encoder/position_embed/embedding", "text_model.embeddings.position_embedding.weight"),
    *_layers("text_model", heads_out, heads_bias, heads_in),
    *norm("final_norm", "text_model.final_layer_norm"),
  )


def vision_tower() -> tuple[Row, ...]:
  """Of the tower that reads images, as a model of its own."""
  return (
    Row("class_token", "vision_model.embeddings.class_embedding", same),
    Row("patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", _convolution),
    Row("position_embed/embedding", "vision_model.embeddings.position_embedding.weight"),
    # So it is spelled.
    *norm("embedding_norm", "vision_model.pre_layrnorm"),
    *_layers("vision_model", _of_vision(heads_out), _of_vision(heads_bias), _of_vision(heads_in)),
    *norm("final_norm", "vision_model.post_layernorm"),
  )


def within(tower: str, rows: Iterable[Row]) -> tuple[Row, ...]:
  """Rows of a model that is a part of another, by the name `tower`."""
  return tuple(dataclasses.replace(row, ours=f"{tower}/{row.ours}") for row in rows)


def projections() -> tuple[Row, ...]:
  """What joins the towers."""
  return (
    Row("text_projection/kernel", "text_projection.weight", linear),
    Row("visual_projection/kernel", "visual_projection.weight", linear),
    Row("logit_scale", "logit_scale"),
  )
