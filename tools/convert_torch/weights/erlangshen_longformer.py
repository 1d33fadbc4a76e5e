"""Erlangshen-Longformer: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/longformer.

Longformer's names without the projections for global tokens. Its files keep the rotation's frequencies and a table of
positions that nothing reads.
"""

import numpy as np

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, dense, embeddings, layers, norm
from convert_torch.weights.longformer import HEADS
from convert_torch.weights.zhouwenwang import frequencies

TABLE = Table(
  prefix="longformer.",
  rows=(
    *embeddings("longformer.embeddings", positions=False),
    *norm("embedding_norm", "longformer.embeddings.LayerNorm"),
    *layers("longformer"),
    *dense("pooler", "longformer.pooler.dense"),
    *HEADS,
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
  constants={
    "longformer.embeddings.position_embeddings.weight": lambda config: np.zeros(
      (config.positions.length, config.embed_dim), np.float32
    ),
    "longformer.encoder.layer.{i}.attention.self.rope_emb.div_term": frequencies,
  },
  in_transformers=False,
)
