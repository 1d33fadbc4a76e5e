"""BART: see `_bart_form`."""

from convert_torch.weights import Row, Table
from convert_torch.weights._bart_form import COPIES, rows
from convert_torch.weights._bert_form import dense, norm

TABLE = Table(
  prefix="model.",
  rows=(
    *rows(),
    *(
      row
      for name in ("encoder", "decoder")
      for row in (
        Row(f"{name}/position_embed/embedding", f"model.{name}.embed_positions.weight"),
        *norm(f"{name}/embedding_norm", f"model.{name}.layernorm_embedding"),
      )
    ),
    *dense("head/classifier_dense", "classification_head.dense"),
    *dense("head/classifier_out", "classification_head.out_proj"),
  ),
  untied_copies=COPIES,
)
