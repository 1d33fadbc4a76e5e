"""BART: see `_bart_form`; text infilling: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/bart."""

from convert_torch.weights import Row, Table
from convert_torch.weights._bart_form import COPIES, embeddings, rows
from convert_torch.weights._bert_form import dense

TABLE = Table(
  prefix="model.",
  rows=(
    *rows(),
    *embeddings(),
    *dense("head/classifier_dense", "classification_head.dense"),
    *dense("head/classifier_out", "classification_head.out_proj"),
    Row("head/label_weights", "label_weights"),
  ),
  untied_copies=COPIES,
)
