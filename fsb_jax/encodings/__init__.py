"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.documents import encode_documents
from fsb_jax.encodings.masking import IGNORED, asked_positions, mask_words
from fsb_jax.encodings.ngrams import NgramForm, NgramLexicon, encode_ngrams, read_ngrams
from fsb_jax.encodings.pairs import encode_pairs
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer

__all__ = [
  "IGNORED",
  "NgramForm",
  "NgramLexicon",
  "asked_positions",
  "bert_tokenizer_from_characters",
  "encode_documents",
  "encode_ngrams",
  "encode_pairs",
  "load_tokenizer",
  "mask_words",
  "read_ngrams",
  "save_tokenizer",
]
