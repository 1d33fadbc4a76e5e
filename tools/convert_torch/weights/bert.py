"""BERT: https://github.com/huggingface/transformers, models/bert/modeling_bert.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, WRAPPED, bert_heads, encoder

TABLE = Table(
  prefix="bert.",
  rows=(*encoder("bert"), *bert_heads()),
  ignore=BUFFERS,
  rename=(*WRAPPED, *OLD_NORMS),
)
