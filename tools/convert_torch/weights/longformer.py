"""Longformer: https://github.com/huggingface/transformers, models/longformer/modeling_longformer.py.

RoBERTa's names, and three more projections for global tokens.
"""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, decoder, dense, encoder, norm, to_heads
from convert_torch.weights._original_heads import tagging_heads, ubert_head

OURS, THEIRS = "encoder/layers_{i}/attention", "longformer.encoder.layer.{i}.attention.self"

HEADS = (
  *dense("head/masked_lm/transform", "lm_head.dense"),
  *norm("head/masked_lm/norm", "lm_head.layer_norm"),
  *decoder("lm_head", token_embed="longformer.embeddings.word_embeddings.weight"),
  # Sequence classification has two layers of its own; token classification and multiple choice have one.
  *dense("head/classifier_dense", "classifier.dense"),
  *dense("head/classifier_out", "classifier.out_proj"),
  *dense("head/classifier", "classifier"),
  *dense("head/span", "qa_outputs"),
  *ubert_head(),
  *tagging_heads(),
)

TABLE = Table(
  prefix="longformer.",
  rows=(
    *encoder("longformer"),
    *(row for x in ("query", "key", "value") for row in to_heads(f"{OURS}/global_{x}", f"{THEIRS}.{x}_global")),
    *HEADS,
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
  # Their softmax is float32 whatever the model's dtype.
  float64_in_transformers=False,
)
