"""ALBERT: https://github.com/huggingface/transformers, models/albert/modeling_albert.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import (
  BUFFERS,
  OLD_NORMS,
  WRAPPED,
  attention,
  decoder,
  dense,
  embeddings,
  norm,
)
from convert_torch.weights._original_heads import original_heads

OURS, THEIRS = "encoder/group_{i}", "albert.encoder.albert_layer_groups.{i}.albert_layers.0"

TABLE = Table(
  prefix="albert.",
  rows=(
    *embeddings("albert.embeddings"),
    *norm("embedding_norm", "albert.embeddings.LayerNorm"),
    *dense("embed_project", "albert.encoder.embedding_hidden_mapping_in"),
    *attention(f"{OURS}/attention", f"{THEIRS}.attention", names="{}", out="dense"),
    *norm(f"{OURS}/attention_norm", f"{THEIRS}.attention.LayerNorm"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.ffn"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.ffn_output"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.full_layer_layer_norm"),
    *dense("pooler", "albert.pooler"),
    *dense("head/masked_lm/transform", "predictions.dense"),
    *norm("head/masked_lm/norm", "predictions.LayerNorm"),
    *decoder("predictions", token_embed="albert.embeddings.word_embeddings.weight"),
    *dense("head/sentence_order", "sop_classifier.classifier"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
    *original_heads(),
  ),
  ignore=BUFFERS,
  rename=(*WRAPPED, *OLD_NORMS),
)
