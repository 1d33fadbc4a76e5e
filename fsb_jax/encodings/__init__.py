"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.documents import encode_documents
from fsb_jax.encodings.masking import IGNORED, asked_positions, mask_words
from fsb_jax.encodings.pairs import encode_pairs
from fsb_jax.encodings.tcbert import encode_tcbert
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer
from fsb_jax.encodings.unimc import answers_unimc, batch_unimc, encode_unimc, mask_unimc, only_asked_unimc

__all__ = [
  "IGNORED",
  "answers_unimc",
  "asked_positions",
  "batch_unimc",
  "bert_tokenizer_from_characters",
  "encode_documents",
  "encode_pairs",
  "encode_tcbert",
  "encode_unimc",
  "load_tokenizer",
  "mask_unimc",
  "mask_words",
  "only_asked_unimc",
  "save_tokenizer",
]
