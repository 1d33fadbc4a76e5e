"""Rows of the heads of the original code: Ubert, UniEX and its taggers. Their names are the same on every encoder."""

from convert_torch.ops import Op, linear
from convert_torch.weights import Row
from convert_torch.weights._bert_form import dense, norm


def original_heads() -> tuple[Row, ...]:
  """All of them."""
  return (*ubert_head(), *uniex_head(), *tagging_heads())


# Ubert's U has an axis for one output: [i, 1, j] <-> [i, j].
_one_output = Op(lambda x, config: x[:, 0], lambda x, config: x[:, None])
# UniEX's W: [start, type, end] <-> [type, start, end].
_type_first = Op(lambda x, config: x.transpose(1, 0, 2), lambda x, config: x.transpose(1, 0, 2))


def ubert_head() -> tuple[Row, ...]:
  """Ubert."""
  return (
    *dense("head/query", "query_layer.0"),
    *dense("head/key", "key_layer.0"),
    Row("head/biaffine/kernel", "biaffine_query_key_cls.U", _one_output),
  )


def uniex_head() -> tuple[Row, ...]:
  """UniEX."""
  return (
    *dense("head/start", "mlp_start.mlp.0"),
    *dense("head/end", "mlp_end.mlp.0"),
    *dense("head/type", "mlp_cls.mlp.0"),
    Row("head/triaffine/kernel", "triaffine.weight", _type_first),
  )


def tagging_heads() -> tuple[Row, ...]:
  """The original's taggers, under the names they have on every encoder; the CRF's `classifier` is the families' own."""
  return (
    *(Row(f"head/{name}", f"crf.{name}") for name in ("transitions", "start_transitions", "end_transitions")),
    *dense("head/start_tags", "start_fc.dense"),
    *dense("head/end_dense", "end_fc.dense_0"),
    *norm("head/end_norm", "end_fc.LayerNorm"),
    *dense("head/end_tags", "end_fc.dense_1"),
    *(
      row
      for ours, theirs in (("forward", ""), ("backward", "_reverse"))
      for layer, kind in (("input", "ih"), ("cell/recurrent", "hh"))
      for row in (
        Row(f"head/lstm/{ours}_{{i}}/{layer}/kernel", f"lstm.weight_{kind}_l{{i}}{theirs}", linear),
        Row(f"head/lstm/{ours}_{{i}}/{layer}/bias", f"lstm.bias_{kind}_l{{i}}{theirs}"),
      )
    ),
    *dense("head/span_start", "start_layer.0"),
    *dense("head/span_end", "end_layer.0"),
    Row("head/kernel", "biaffne_layer.U"),
  )
