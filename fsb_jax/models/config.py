"""Frozen descriptions of a transformer: what it is (`TransformerConfig`) and how it runs (`Run`)."""

import dataclasses
from typing import Any, Literal

from fsb_jax.errors import UserError
from fsb_jax.models.attention import Attention
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.positions import LearnedPositions

# What the backward pass may keep, by their names in `jax.checkpoint_policies`.
REMAT_POLICIES = ("dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable", "nothing_saveable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout:
  """Dropout rates, applied only where a model is called with `deterministic=False`.

  Attributes:
    hidden: after the embeddings and on every residual branch.
    embedding: after the embeddings; None means `hidden`.
    output: of a decoder or an encoder with one, after the last layer.
    attention: on attention probabilities.
    mlp: inside the feed-forward block, after its activation.
    classifier: before a classification head; None means `hidden`.
  """

  hidden: float = 0.1
  embedding: float | None = None
  output: float = 0.0
  attention: float = 0.1
  mlp: float = 0.0
  classifier: float | None = None

  def __post_init__(self):
    for rate in (self.hidden, self.embedding or 0.0, self.output, self.attention, self.mlp, self.classifier or 0.0):
      if not 0 <= rate < 1:
        raise UserError(f"a dropout rate must be at least 0 and below 1, not {rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSizes:
  """Widths inside heads that have one of their own, and what else they are told, by their names in config.json.

  They lie in the config, because they are facts of a checkpoint that config.json says and that every folder of ours
  keeps there; a head reads its own, and names those in `sizes`.

  Attributes:
    biaffine_size: of Ubert's query and key.
    triaffine_hidden_size: of UniEX's start, end and type.
    encoder_loss_type: of text infilling, see `text_infill.TextInfill`.
    loss_weight: what its encoder's part of the loss is multiplied by.
  """

  biaffine_size: int = 256
  triaffine_hidden_size: int = 256
  encoder_loss_type: int = 0
  loss_weight: float = 1.0

  def __post_init__(self):
    if self.encoder_loss_type not in (0, 1):
      said = self.encoder_loss_type
      raise UserError(f"config.json says encoder_loss_type={said!r}; known: 0 (classes), 1 (a number)")


_DTYPES = ("float32", "bfloat16", "float16", "float64")
_KNOWN_CHOICES = {
  "dtype": _DTYPES,
  "param_dtype": _DTYPES,
  "remat": ("none", "full", *REMAT_POLICIES),
  "kernels": ("inputs_first", "outputs_first"),
  "attention": ("auto", "reference", "xla", "cudnn"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Choices of a run: none of them changes which function the model computes.

  Attributes:
    dtype: of activations and matrix products; norms, softmax and losses use at least float32.
    param_dtype: of parameters.
    scan_layers: one stacked layer compiled once (`layers/...`, leading axis) or `layers_{i}/...`.
    remat: "none", "full", or one of `REMAT_POLICIES`.
    attention: "auto", "reference", or an `implementation` of `jax.nn.dot_product_attention` ("xla", "cudnn").
    kernels: "inputs_first", or "outputs_first": how the axes of kernels are ordered. With few rows, as in generation,
      CPUs multiply the latter faster; folders and PyTorch's tables know the former alone, see `generation.prepared`.
    vocab_multiple: vocabulary rows are padded up to a multiple of this, so that a mesh divides them.
  """

  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernels: str = "inputs_first"
  vocab_multiple: int = 1

  def __post_init__(self):
    for name, known in _KNOWN_CHOICES.items():
      if getattr(self, name) not in known:
        raise UserError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSpec:
  """How the decoder differs from the encoder that it reads; the rest of its config is the encoder's.

  Attributes:
    num_layers: see `TransformerConfig`, as the next three.
    num_heads: as above.
    mlp_dim: as above.
    positions: as above; None for the encoder's, of which one table serves both.
    sublayers: as above; "cross_attention" sees what the encoder made.
    final_norm: as above; None for the encoder's.
    start_token_id: id that a text begins with.
    end_token_id: id that it ends with, for a head that reads there; None where the checkpoint has several or none.
  """

  num_layers: int
  num_heads: int
  mlp_dim: int
  positions: Any = None
  sublayers: tuple[str, ...] = ("attention", "cross_attention", "mlp")
  final_norm: bool | None = None
  start_token_id: int = 0
  end_token_id: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """One stack of transformer blocks with its embeddings; with `decoder`, that of an encoder and its decoder.

  Attributes:
    vocab_size: token ids the model knows; the table may hold more rows (`Run.vocab_multiple`).
    embed_dim: width of the residual stream.
    mlp_dim: width inside the feed-forward block.
    token_dim: width of the embeddings, which a linear layer brings to `embed_dim`; None where they have it.
    token_types: rows of the token type table, 0 for none.
    num_kv_heads: heads of keys and values, each for a group of query heads; None for as many as there are of queries.
    head_size: width of one head; None for `embed_dim / num_heads`.
    attention_bias: projections of the attention have a bias.
    attention_out_bias: the one that follows it has; None for what the others have.
    mlp_bias: so have those of the feed-forward block.
    score_scale: multiplies the attention's scores; None for `head_dim ** -0.5`.
    scale_embeddings: token embeddings are multiplied by `embed_dim ** 0.5`.
    scale_logits: hidden states are divided by as much before a language model's head.
    sublayers: of a block, in their order; each has its residual and norm. What ends in "mlp" is a feed-forward block.
    decoder: of an encoder-decoder; None for a single stack.
    layer_groups: how many sets of parameters the layers have, each for a run of equally many; None for one a layer.
    positions: a position object, see `positions.py`.
    attention: the module of self-attention.
    convolution: of the embeddings, joined after the first layer, see `disentangled.py`; None for none.
    window: how far tokens see, see `sliding_window.py`; None for everywhere.
    ngrams: a side encoder of n-grams, joined after every layer, see `ngram.py`; None for none.
    activations: one name for a plain feed-forward block, two for a gated one.
    norm: kind and epsilon of every normalisation.
    norm_placement: "post" normalises after the residual sum, "pre" before each sub-layer.
    embedding_norm: normalise the sum of the embeddings.
    final_norm: normalise after the last block.
    mask_embeddings: embeddings of padding are zero.
    mask_kind: "padding"; "prefix" where token types say what is generated, see `masks.prefix_mask`; or "causal" where
      tokens see no later ones.
    memory: how many tokens before a call's a cache lets them see; None for all.
    mask_fill: what a masked score becomes, see `masks.Mask`.
    base_pooler: the encoder without a head has a pooler.
    pooler_activation: of the pooler, wherever there is one.
    tie_embeddings: language-model heads decode with the token embedding.
    pad_token_id: id that fills short rows; None for none.
    trains_padding: looking it up trains its row as any other's.
    initializer_range: standard deviation of freshly drawn kernels and tables.
    head_sizes: of the heads that have a width of their own.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  token_dim: int | None = None
  token_types: int = 0
  num_kv_heads: int | None = None
  head_size: int | None = None
  attention_bias: bool = True
  attention_out_bias: bool | None = None
  mlp_bias: bool = True
  score_scale: float | None = None
  scale_embeddings: bool = False
  scale_logits: bool = False
  sublayers: tuple[str, ...] = ("attention", "mlp")
  decoder: DecoderSpec | None = None
  layer_groups: int | None = None
  positions: Any = LearnedPositions(length=512)
  attention: type[Attention] = Attention
  convolution: Any = None
  window: Any = None
  ngrams: Any = None
  activations: tuple[str, ...] = ("gelu",)
  norm: NormSpec = NormSpec()
  norm_placement: Literal["pre", "post"] = "post"
  embedding_norm: bool = True
  final_norm: bool = False
  mask_embeddings: bool = False
  mask_kind: Literal["padding", "prefix", "causal"] = "padding"
  memory: int | None = None
  mask_fill: str = "finfo_min"
  base_pooler: bool = True
  pooler_activation: str = "tanh"
  tie_embeddings: bool = True
  pad_token_id: int | None = 0
  trains_padding: bool = False
  initializer_range: float = 0.02
  dropout: Dropout = Dropout()
  head_sizes: HeadSizes = HeadSizes()
  run: Run = Run()

  def __post_init__(self):
    if self.head_size is None and self.embed_dim % self.num_heads:
      raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
    if self.num_heads % self.kv_heads:
      raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
    if self.num_layers % (self.layer_groups or 1):
      raise ValueError(f"num_layers {self.num_layers} is not a multiple of layer_groups {self.layer_groups}")

  @property
  def head_dim(self) -> int:
    """Width of one attention head."""
    return self.head_size or self.embed_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    """Heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def decoder_config(self) -> "TransformerConfig":
    """Of the stack that generates: the config itself, or that of an encoder-decoder's decoder."""
    spec = self.decoder
    if spec is None:
      return self
    return dataclasses.replace(
      self, num_layers=spec.num_layers, num_heads=spec.num_heads, mlp_dim=spec.mlp_dim,
      positions=self.positions if spec.positions is None else spec.positions, sublayers=spec.sublayers,
      final_norm=self.final_norm if spec.final_norm is None else spec.final_norm,
      mask_kind="causal", decoder=None,
    )  # fmt: skip

  @property
  def token_width(self) -> int:
    """Width of the embeddings."""
    return self.token_dim or self.embed_dim

  @property
  def padding_row(self) -> int | None:
    """The row of the token table that looking it up does not train."""
    return None if self.trains_padding else self.pad_token_id

  @property
  def vocab_rows(self) -> int:
    """Rows of the token table: `vocab_size` rounded up to `run.vocab_multiple`."""
    multiple = self.run.vocab_multiple
    return -(-self.vocab_size // multiple) * multiple

  def with_run(self, **changes) -> "TransformerConfig":
    """A copy with some run choices replaced."""
    return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))
