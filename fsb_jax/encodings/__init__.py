"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.documents import encode_documents
from fsb_jax.encodings.masking import IGNORED, asked_positions, mask_words
from fsb_jax.encodings.pairs import encode_pairs
from fsb_jax.encodings.spans import Answer, answer_positions, best_answers, encode_windows, no_answer_score
from fsb_jax.encodings.tagging import (
  Entity,
  encode_characters,
  entities_of_pairs,
  entities_of_spans,
  entities_of_tags,
  label_names,
  pair_labels,
  span_labels,
  tag_labels,
  tags_of_entities,
  to_characters,
  to_tokens,
)
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer

__all__ = [
  "IGNORED",
  "Answer",
  "Entity",
  "answer_positions",
  "asked_positions",
  "bert_tokenizer_from_characters",
  "best_answers",
  "encode_characters",
  "encode_documents",
  "encode_pairs",
  "encode_windows",
  "entities_of_pairs",
  "entities_of_spans",
  "entities_of_tags",
  "label_names",
  "load_tokenizer",
  "mask_words",
  "no_answer_score",
  "pair_labels",
  "save_tokenizer",
  "span_labels",
  "tag_labels",
  "tags_of_entities",
  "to_characters",
  "to_tokens",
]
