"""DeltaLM: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/deltalm/modeling_deltalm.py."""

from convert_torch.weights import Table
from convert_torch.weights._bart_form import COPIES, embeddings, rows
from convert_torch.weights._bert_form import dense, norm

OURS, THEIRS = "decoder/layers_{i}", "model.decoder.layers.{i}"

TABLE = Table(
  prefix="model.",
  rows=(
    *rows(),
    *embeddings(),
    *norm("encoder/final_norm", "model.encoder.layer_norm", fields=("encoder_normalize_before",)),
    *dense(f"{OURS}/inner_mlp/wi", f"{THEIRS}.fc3"),
    *dense(f"{OURS}/inner_mlp/wo", f"{THEIRS}.fc4"),
    *norm(f"{OURS}/inner_mlp_norm", f"{THEIRS}.ffn_layer_norm"),
  ),
  copies=COPIES,
  in_transformers=False,
)
