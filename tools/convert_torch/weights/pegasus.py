"""Pegasus: https://github.com/huggingface/transformers, models/pegasus/modeling_pegasus.py."""

from convert_torch.weights import Table
from convert_torch.weights._bart_form import COPIES, rows
from convert_torch.weights._bert_form import norm

_TABLES = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def _codes(config):
  return config.positions.table(config.embed_dim)


TABLE = Table(
  prefix="model.",
  rows=(
    *rows(),
    *norm("encoder/final_norm", "model.encoder.layer_norm"),
    *norm("decoder/final_norm", "model.decoder.layer_norm"),
  ),
  untied_copies=COPIES,
  constants=dict.fromkeys(_TABLES, _codes),
  checked=_TABLES,
)
