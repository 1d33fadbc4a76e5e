"""RoFormer: https://github.com/huggingface/transformers, models/roformer/modeling_roformer.py."""

import numpy as np

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, decoder, dense, embeddings, layers, norm
from convert_torch.weights._original_heads import original_heads


def sines(config) -> np.ndarray:
  """The table of rotations that PyTorch keeps with the weights: sines, then cosines, `[length, head_dim]`."""
  sines_and_cosines = config.positions.table(config.head_dim, config.positions.length)
  return np.concatenate([np.asarray(x)[:, 0] for x in sines_and_cosines], -1)


TABLE = Table(
  prefix="roformer.",
  rows=(
    *embeddings("roformer.embeddings", positions=False),
    *norm("embedding_norm", "roformer.embeddings.LayerNorm"),
    *dense("embed_project", "roformer.embeddings_project", fields=("embedding_size",)),
    *layers("roformer"),
    *dense("head/masked_lm/transform", "cls.predictions.transform.dense"),
    *norm("head/masked_lm/norm", "cls.predictions.transform.LayerNorm"),
    *decoder("cls.predictions", token_embed="roformer.embeddings.word_embeddings.weight"),
    # Sequence classification has two layers of its own; token classification and multiple choice have one.
    *dense("head/classifier_dense", "classifier.dense"),
    *dense("head/classifier_out", "classifier.out_proj"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
    *original_heads(),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
  constants={"roformer.encoder.embed_positions.weight": sines},
)
