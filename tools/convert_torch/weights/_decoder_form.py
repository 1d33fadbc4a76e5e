"""Rows that decoders share."""

from convert_torch.ops import Op, heads_bias, heads_in, heads_out, linear, pad_vocab, then
from convert_torch.weights import Row


def attention(
  ours: str,
  theirs: str,
  names: tuple[str, str, str, str],
  *,
  query: tuple[Op, Op] = (heads_out, heads_bias),
  key_value: tuple[Op, Op] = (heads_out, heads_bias),
  out: Op = heads_in,
) -> tuple[Row, ...]:
  """Four projections, whose biases may lack; `names` are theirs of query, key, value and out."""
  pairs = zip(("query", "key", "value"), names, (query, key_value, key_value))
  return (
    *(
      row
      for name, theirs_name, (op, bias) in pairs
      for row in (
        Row(f"{ours}/{name}/kernel", f"{theirs}.{theirs_name}.weight", op),
        Row(f"{ours}/{name}/bias", f"{theirs}.{theirs_name}.bias", bias, optional=True),
      )
    ),
    Row(f"{ours}/out/kernel", f"{theirs}.{names[3]}.weight", out),
    Row(f"{ours}/out/bias", f"{theirs}.{names[3]}.bias", optional=True),
  )


def lm_head(token_embed: str) -> Row:
  """The vocabulary's kernel, which repeats the token table where the config ties them."""
  return Row("head/lm/decoder/kernel", "lm_head.weight", then(pad_vocab, linear), tied_to=token_embed)
