"""MegatronBERT: https://github.com/huggingface/transformers, models/megatron_bert/modeling_megatron_bert.py.

Its norms stand before the sub-layers (`attention.ln`, `ln`), one stands after the stack, none after the embeddings.
"""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, attention, decoder, dense, embeddings, norm

OURS, THEIRS = "encoder/layers_{i}", "bert.encoder.layer.{i}"

TABLE = Table(
  prefix="bert.",
  rows=(
    *embeddings("bert.embeddings"),
    *norm(f"{OURS}/attention_norm", f"{THEIRS}.attention.ln"),
    *attention(f"{OURS}/attention", f"{THEIRS}.attention"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.ln"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.intermediate.dense"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.output.dense"),
    *norm("encoder/final_norm", "bert.encoder.ln"),
    *dense("pooler", "bert.pooler.dense"),
    *dense("head/masked_lm/transform", "cls.predictions.transform.dense"),
    *norm("head/masked_lm/norm", "cls.predictions.transform.LayerNorm"),
    *decoder("cls.predictions", token_embed="bert.embeddings.word_embeddings.weight"),
    *dense("head/next_sentence", "cls.seq_relationship"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
)
