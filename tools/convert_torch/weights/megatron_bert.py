"""MegatronBERT: https://github.com/huggingface/transformers, models/megatron_bert/modeling_megatron_bert.py.

Its norms stand before the sub-layers (`attention.ln`, `ln`), one stands after the stack, none after the embeddings.
"""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, WRAPPED, attention, bert_heads, dense, embeddings, norm
from convert_torch.weights._original_heads import original_heads

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
    *bert_heads(),
    *original_heads(),
    *dense("head/linear_classifier", "linear_classifier"),
  ),
  ignore=BUFFERS,
  rename=(*WRAPPED, *OLD_NORMS),
)
