"""DeBERTa-v2: https://github.com/huggingface/transformers, models/deberta_v2/modeling_deberta_v2.py."""

from convert_torch.ops import Op
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import (
  BUFFERS,
  OLD_NORMS,
  WRAPPED,
  attention,
  decoder,
  dense,
  embeddings,
  norm,
  to_heads,
)
from convert_torch.weights._original_heads import original_heads

OURS, THEIRS = "encoder/layers_{i}", "deberta.encoder.layer.{i}"

# A convolution over the sequence: [o, e, taps] <-> [taps, e, o].
taps_first = Op(lambda x, config: x.transpose(2, 1, 0), lambda x, config: x.transpose(2, 1, 0))

# What says whether these are there.
CONVOLVED = dict(optional=True, fields=("conv_kernel_size",))
APART = ("share_att_key", "pos_att_type")

TABLE = Table(
  prefix="deberta.",
  rows=(
    *embeddings("deberta.embeddings", position_fields=("position_biased_input",)),
    *norm("embedding_norm", "deberta.embeddings.LayerNorm"),
    # Two rows for each of these.
    Row(
      "encoder/relative_embed/embedding", "deberta.encoder.rel_embeddings.weight",
      fields=("position_buckets", "max_relative_positions"),
    ),
    *norm("encoder/relative_norm", "deberta.encoder.LayerNorm", fields=("norm_rel_ebd",)),
    Row("encoder/convolution/kernel", "deberta.encoder.conv.conv.weight", taps_first, **CONVOLVED),
    Row("encoder/convolution/bias", "deberta.encoder.conv.conv.bias", **CONVOLVED),
    Row("encoder/convolution/norm_scale", "deberta.encoder.conv.LayerNorm.weight", **CONVOLVED),
    Row("encoder/convolution/norm_bias", "deberta.encoder.conv.LayerNorm.bias", **CONVOLVED),
    *attention(f"{OURS}/attention", f"{THEIRS}.attention", names="self.{}_proj"),
    *to_heads(f"{OURS}/attention/distance_query", f"{THEIRS}.attention.self.pos_query_proj", APART),
    *to_heads(f"{OURS}/attention/distance_key", f"{THEIRS}.attention.self.pos_key_proj", APART),
    *norm(f"{OURS}/attention_norm", f"{THEIRS}.attention.output.LayerNorm"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.intermediate.dense"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.output.dense"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.output.LayerNorm"),
    *dense("pooler", "pooler.dense"),
    *dense("head/masked_lm/transform", "cls.predictions.transform.dense"),
    *norm("head/masked_lm/norm", "cls.predictions.transform.LayerNorm"),
    *decoder("cls.predictions", token_embed="deberta.embeddings.word_embeddings.weight"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
    *original_heads(),
  ),
  ignore=BUFFERS,
  rename=(
    *WRAPPED,
    *OLD_NORMS,
    # The authors' own names of the masked language model's head, which `"legacy": false` asks for.
    (r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
    (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
  ),
)
