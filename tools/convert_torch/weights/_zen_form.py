"""Rows that ZEN 1 and ZEN 2 share; n-grams are "words" to them."""

from convert_torch.ops import Op, linear, pad_vocab, then
from convert_torch.weights import Row
from convert_torch.weights._bert_form import dense, embeddings, layers, norm

# `pad_vocab` for the table of n-grams.
pad_ngrams = Op(
  lambda x, config: pad_vocab.load(x, config.ngrams.config(config)),
  lambda x, config: pad_vocab.save(x, config.ngrams.config(config)),
)

# (our stack, their list of layers in "bert.encoder").
STACKS = (("encoder", "layer"), ("ngrams/encoder", "word_layers"))


def zen() -> tuple[Row, ...]:
  """Both encoders and the heads."""
  ngrams = "bert.word_embeddings"
  return (
    *embeddings("bert.embeddings"),
    *norm("embedding_norm", "bert.embeddings.LayerNorm"),
    Row("ngrams/token_embed/embedding", f"{ngrams}.word_embeddings.weight", pad_ngrams),
    Row("ngrams/token_type_embed/embedding", f"{ngrams}.token_type_embeddings.weight", optional=True),
    *norm("ngrams/embedding_norm", f"{ngrams}.LayerNorm"),
    *(row for ours, theirs in STACKS for row in layers("bert", ours, theirs)),
    *dense("pooler", "bert.pooler.dense"),
    *dense("head/masked_lm/transform", "cls.predictions.transform.dense"),
    *norm("head/masked_lm/norm", "cls.predictions.transform.LayerNorm"),
    # One bias alone, not the two of today's transformers.
    Row("head/masked_lm/bias", "cls.predictions.bias", pad_vocab),
    Row(
      "head/masked_lm/decoder/kernel",
      "cls.predictions.decoder.weight",
      then(pad_vocab, linear),
      tied_to="bert.embeddings.word_embeddings.weight",
    ),
    Row("head/masked_lm/decoder/bias", "cls.predictions.bias", pad_vocab),
    *dense("head/next_sentence", "cls.seq_relationship"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
  )
