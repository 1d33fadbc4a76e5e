"""Rows that decoders share."""

from convert_torch.ops import Op, heads_bias, heads_in, heads_out, linear, pad_vocab, same, then
from convert_torch.weights import Row


def attention(
  ours: str,
  theirs: str,
  names: tuple[str, str, str, str],
  *,
  query: tuple[Op, Op] = (heads_out, heads_bias),
  key_value: tuple[Op, Op] = (heads_out, heads_bias),
  out: Op = heads_in,
  biases: bool = True,
) -> tuple[Row, ...]:
  """Four projections; `names` are theirs of query, key, value and out. Some configs have no `biases`, or the family."""
  ops = {"query": query, "key": key_value, "value": key_value, "out": (out, same)}
  pairs = [(f"{ours}/{name}", f"{theirs}.{theirs_name}", *ops[name]) for name, theirs_name in zip(ops, names)]
  kernels = (Row(f"{ours}/kernel", f"{theirs}.weight", op) for ours, theirs, op, _ in pairs)
  rows = (Row(f"{ours}/bias", f"{theirs}.bias", op, optional=True) for ours, theirs, _, op in pairs)
  return (*kernels, *rows) if biases else tuple(kernels)


def lm_head(token_embed: str) -> Row:
  """The vocabulary's kernel, which repeats the token table where the config ties them."""
  return Row("head/lm/decoder/kernel", "lm_head.weight", then(pad_vocab, linear), tied_to=token_embed)
