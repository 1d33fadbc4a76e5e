"""BERT: https://github.com/huggingface/transformers, models/bert/modeling_bert.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, WRAPPED, bert_heads, dense, encoder
from convert_torch.weights._original_heads import original_heads

TABLE = Table(
  prefix="bert.",
  rows=(
    *encoder("bert"),
    *bert_heads(),
    *original_heads(),
    *dense("head/linear_classifier", "linear_classifier"),
  ),
  ignore=BUFFERS,
  rename=(*WRAPPED, *OLD_NORMS),
)
