"""RoBERTa: https://github.com/huggingface/transformers, models/roberta/modeling_roberta.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, attention, decoder, dense, embeddings, norm

OURS, THEIRS = "encoder/layers_{i}", "roberta.encoder.layer.{i}"

TABLE = Table(
  prefix="roberta.",
  rows=(
    *embeddings("roberta.embeddings"),
    *norm("embedding_norm", "roberta.embeddings.LayerNorm"),
    *attention(f"{OURS}/attention", f"{THEIRS}.attention"),
    *norm(f"{OURS}/attention_norm", f"{THEIRS}.attention.output.LayerNorm"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.intermediate.dense"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.output.dense"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.output.LayerNorm"),
    *dense("pooler", "roberta.pooler.dense"),
    *dense("head/masked_lm/transform", "lm_head.dense"),
    *norm("head/masked_lm/norm", "lm_head.layer_norm"),
    *decoder("lm_head", token_embed="roberta.embeddings.word_embeddings.weight"),
    # Sequence classification has two layers of its own; token classification and multiple choice have one.
    *dense("head/classifier_dense", "classifier.dense"),
    *dense("head/classifier_out", "classifier.out_proj"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
)
