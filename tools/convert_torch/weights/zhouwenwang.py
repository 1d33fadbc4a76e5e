"""Zhouwenwang: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/roformer/modeling_roformer.py.

MegatronBERT's names, without positions. Its files keep the rotation's frequencies and the position ids.
"""

import numpy as np

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, attention, bert_heads, dense, embeddings, norm

OURS, THEIRS = "encoder/layers_{i}", "bert.encoder.layer.{i}"


def frequencies(config) -> np.ndarray:
  """The angle of every pair of features for a step of the index, `[head_dim / 2]`."""
  return (config.positions.base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)).astype(np.float32)


TABLE = Table(
  prefix="bert.",
  rows=(
    *embeddings("bert.embeddings", positions=False),
    *norm(f"{OURS}/attention_norm", f"{THEIRS}.attention.ln"),
    *attention(f"{OURS}/attention", f"{THEIRS}.attention"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.ln"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.intermediate.dense"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.output.dense"),
    *norm("encoder/final_norm", "bert.encoder.ln"),
    *dense("pooler", "bert.pooler.dense"),
    *bert_heads(),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
  constants={
    "bert.embeddings.position_ids": lambda config: np.arange(config.positions.length)[None],
    f"{THEIRS}.attention.self.rope_emb.div_term": frequencies,
  },
  in_transformers=False,
)
