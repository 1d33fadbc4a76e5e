"""Rows that the BERT-shaped families share."""

from convert_torch.ops import heads_bias, heads_in, heads_out, linear, pad_vocab, then
from convert_torch.weights import Row

# Registered buffers that older versions of transformers saved.
BUFFERS = (r"(.*\.)?embeddings\.(position_ids|token_type_ids)",)

# The original's UniMC and TCBert call the masked language model inside them `bert`; its trainer calls both `model`.
WRAPPED = ((r"^model\.", ""), (r"^bert\.(?=(bert|deberta|albert|cls|predictions)\.)", ""))

# Checkpoints converted from the first TensorFlow release.
OLD_NORMS = ((r"\bLayerNorm\.gamma$", "LayerNorm.weight"), (r"\bLayerNorm\.beta$", "LayerNorm.bias"))


def dense(ours: str, theirs: str, fields: tuple[str, ...] = ()) -> tuple[Row, ...]:
  """A linear layer; optional where `fields` say whether there is one, see `Row`."""
  said = dict(optional=bool(fields), fields=fields)
  return Row(f"{ours}/kernel", f"{theirs}.weight", linear, **said), Row(f"{ours}/bias", f"{theirs}.bias", **said)


def norm(ours: str, theirs: str, fields: tuple[str, ...] = ()) -> tuple[Row, ...]:
  """A layer norm; `fields` as in `dense`."""
  said = dict(optional=bool(fields), fields=fields)
  return Row(f"{ours}/scale", f"{theirs}.weight", **said), Row(f"{ours}/bias", f"{theirs}.bias", **said)


def to_heads(ours: str, theirs: str, fields: tuple[str, ...] = ()) -> tuple[Row, ...]:
  """A linear layer whose outputs are those of several heads; `fields` as in `dense`."""
  said = dict(optional=bool(fields), fields=fields)
  return (
    Row(f"{ours}/kernel", f"{theirs}.weight", heads_out, **said),
    Row(f"{ours}/bias", f"{theirs}.bias", heads_bias, **said),
  )


def attention(ours: str, theirs: str, names: str = "self.{}", out: str = "output.dense") -> tuple[Row, ...]:
  """Self-attention's four projections."""
  return (
    *(row for x in ("query", "key", "value") for row in to_heads(f"{ours}/{x}", f"{theirs}.{names.format(x)}")),
    Row(f"{ours}/out/kernel", f"{theirs}.{out}.weight", heads_in),
    Row(f"{ours}/out/bias", f"{theirs}.{out}.bias"),
  )


def embeddings(theirs: str, positions: bool = True, position_fields: tuple[str, ...] = ()) -> tuple[Row, ...]:
  """The tables that are summed; without positions, where a family has no such table. `position_fields`: see `Row`."""
  position = Row(
    "position_embed/embedding", f"{theirs}.position_embeddings.weight", optional=True, fields=position_fields
  )
  return (
    Row("token_embed/embedding", f"{theirs}.word_embeddings.weight", pad_vocab),
    *((position,) if positions else ()),
    Row(
      "token_type_embed/embedding", f"{theirs}.token_type_embeddings.weight", optional=True,
      fields=("type_vocab_size",),
    ),
  )


def layers(theirs: str, ours: str = "encoder", name: str = "layer") -> tuple[Row, ...]:
  """BERT's own layers, their norms after the sub-layers; `ours` is the stack, `name` their list of layers."""
  ours, layer = f"{ours}/layers_{{i}}", f"{theirs}.encoder.{name}.{{i}}"
  return (
    *attention(f"{ours}/attention", f"{layer}.attention"),
    *norm(f"{ours}/attention_norm", f"{layer}.attention.output.LayerNorm"),
    *dense(f"{ours}/mlp/wi", f"{layer}.intermediate.dense"),
    *dense(f"{ours}/mlp/wo", f"{layer}.output.dense"),
    *norm(f"{ours}/mlp_norm", f"{layer}.output.LayerNorm"),
  )


def encoder(theirs: str) -> tuple[Row, ...]:
  """BERT's own encoder with its embeddings and its pooler."""
  return (
    *embeddings(f"{theirs}.embeddings"),
    *norm("embedding_norm", f"{theirs}.embeddings.LayerNorm"),
    *layers(theirs),
    *dense("pooler", f"{theirs}.pooler.dense"),
  )


def bert_heads() -> tuple[Row, ...]:
  """The heads under the names of BERT and MegatronBERT."""
  return (
    *dense("head/masked_lm/transform", "cls.predictions.transform.dense"),
    *norm("head/masked_lm/norm", "cls.predictions.transform.LayerNorm"),
    *decoder("cls.predictions", token_embed="bert.embeddings.word_embeddings.weight"),
    *dense("head/next_sentence", "cls.seq_relationship"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
  )


def decoder(theirs: str, token_embed: str) -> tuple[Row, ...]:
  """The masked language model's last layer: a bias alone where the kernel is the token table, else a whole layer.

  PyTorch's head holds its bias twice. Version 4 of transformers makes the two one tensor, tied or not, and saves
  either name; version 5 computes with `decoder.bias`.
  """
  ours = "head/masked_lm"
  bias, decoder_bias = f"{theirs}.bias", f"{theirs}.decoder.bias"
  return (
    Row(f"{ours}/bias", bias, pad_vocab, otherwise=decoder_bias),
    Row(f"{ours}/decoder/kernel", f"{theirs}.decoder.weight", then(pad_vocab, linear), tied_to=token_embed),
    Row(f"{ours}/decoder/bias", decoder_bias, pad_vocab, otherwise=bias, tied_to=bias),
  )
