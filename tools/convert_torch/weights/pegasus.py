"""Pegasus: https://github.com/huggingface/transformers, models/pegasus/modeling_pegasus.py."""

from convert_torch.weights import Table
from convert_torch.weights._bart_form import COPIES, rows


def _codes(config):
  return config.positions.table(config.embed_dim)


TABLE = Table(
  prefix="model.",
  rows=rows(),
  copies=COPIES,
  constants={f"model.{name}.embed_positions.weight": _codes for name in ("encoder", "decoder")},
)
