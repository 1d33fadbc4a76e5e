"""ELECTRA: https://github.com/huggingface/transformers, models/electra/modeling_electra.py."""

from convert_torch.ops import linear, pad_vocab, then
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS, dense, embeddings, layers, norm
from convert_torch.weights._original_heads import original_heads

TABLE = Table(
  prefix="electra.",
  rows=(
    *embeddings("electra.embeddings"),
    *norm("embedding_norm", "electra.embeddings.LayerNorm"),
    *dense("embed_project", "electra.embeddings_project", fields=("embedding_size",)),
    *layers("electra"),
    *dense("head/masked_lm/transform", "generator_predictions.dense"),
    *norm("head/masked_lm/norm", "generator_predictions.LayerNorm"),
    Row("head/masked_lm/bias", "generator_lm_head.bias", pad_vocab),
    Row(
      "head/masked_lm/decoder/kernel",
      "generator_lm_head.weight",
      then(pad_vocab, linear),
      tied_to="electra.embeddings.word_embeddings.weight",
    ),
    Row("head/masked_lm/decoder/bias", "generator_lm_head.bias", pad_vocab),
    *dense("head/transform", "discriminator_predictions.dense"),
    *dense("head/replaced", "discriminator_predictions.dense_prediction"),
    # Sequence classification has two layers of its own; token classification and multiple choice have one.
    *dense("head/classifier_dense", "classifier.dense"),
    *dense("head/classifier_out", "classifier.out_proj"),
    *dense("head/classifier", "classifier"),
    *dense("head/summary", "sequence_summary.summary"),
    *dense("head/span", "qa_outputs"),
    *original_heads(),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
)
