"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.documents import encode_documents
from fsb_jax.encodings.extraction_scores import cell_scores, entity_scores, event_scores, relation_scores
from fsb_jax.encodings.masking import IGNORED, asked_positions, mask_words
from fsb_jax.encodings.ngrams import NgramForm, NgramLexicon, encode_ngrams, read_ngrams
from fsb_jax.encodings.pairs import encode_pairs
from fsb_jax.encodings.tcbert import encode_tcbert
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer
from fsb_jax.encodings.ubert import decode_ubert, encode_ubert, encode_ubert_labels
from fsb_jax.encodings.uniex import encode_uniex, encode_uniex_labels, pad_uniex
from fsb_jax.encodings.uniex_answers import choose_spans, decode_uniex, end_tokens, given_spans
from fsb_jax.encodings.unimc import answers_unimc, batch_unimc, encode_unimc, mask_unimc, only_asked_unimc

__all__ = [
  "IGNORED",
  "NgramForm",
  "NgramLexicon",
  "answers_unimc",
  "asked_positions",
  "batch_unimc",
  "bert_tokenizer_from_characters",
  "cell_scores",
  "choose_spans",
  "decode_ubert",
  "decode_uniex",
  "encode_documents",
  "encode_ngrams",
  "encode_pairs",
  "encode_tcbert",
  "encode_ubert",
  "encode_ubert_labels",
  "encode_uniex",
  "encode_uniex_labels",
  "encode_unimc",
  "end_tokens",
  "entity_scores",
  "event_scores",
  "given_spans",
  "load_tokenizer",
  "mask_unimc",
  "mask_words",
  "only_asked_unimc",
  "pad_uniex",
  "read_ngrams",
  "relation_scores",
  "save_tokenizer",
]
