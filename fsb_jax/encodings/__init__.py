"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.documents import encode_documents
from fsb_jax.encodings.extraction_scores import cell_scores, entity_scores, event_scores, relation_scores
from fsb_jax.encodings.masking import IGNORED, asked_positions, mask_words
from fsb_jax.encodings.pairs import encode_pairs
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer
from fsb_jax.encodings.ubert import decode_ubert, encode_ubert, encode_ubert_labels
from fsb_jax.encodings.uniex import encode_uniex, encode_uniex_labels, pad_uniex
from fsb_jax.encodings.uniex_answers import choose_spans, decode_uniex, end_tokens, given_spans

__all__ = [
  "IGNORED",
  "asked_positions",
  "bert_tokenizer_from_characters",
  "cell_scores",
  "choose_spans",
  "decode_ubert",
  "decode_uniex",
  "encode_documents",
  "encode_pairs",
  "encode_ubert",
  "encode_ubert_labels",
  "encode_uniex",
  "encode_uniex_labels",
  "end_tokens",
  "entity_scores",
  "event_scores",
  "given_spans",
  "load_tokenizer",
  "mask_words",
  "pad_uniex",
  "relation_scores",
  "save_tokenizer",
]
