"""RoBERTa: https://github.com/huggingface/transformers, models/roberta/modeling_roberta.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, decoder, dense, encoder, norm
from convert_torch.weights._original_heads import original_heads

TABLE = Table(
  prefix="roberta.",
  rows=(
    *encoder("roberta"),
    *dense("head/masked_lm/transform", "lm_head.dense"),
    *norm("head/masked_lm/norm", "lm_head.layer_norm"),
    *decoder("lm_head", token_embed="roberta.embeddings.word_embeddings.weight"),
    # Sequence classification has two layers of its own; token classification and multiple choice have one.
    *dense("head/classifier_dense", "classifier.dense"),
    *dense("head/classifier_out", "classifier.out_proj"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
    *original_heads(),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
)
