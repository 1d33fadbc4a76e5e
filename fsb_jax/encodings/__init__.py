"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.character_windows import encode_character_windows, entities_of_windows
from fsb_jax.encodings.clue_answers import clue_answers
from fsb_jax.encodings.clue_forms import CLUE_FORMS, clue_items, text_to_text
from fsb_jax.encodings.clue_reading import cmrc_answers, cmrc_items
from fsb_jax.encodings.conversations import (
  TEMPLATES,
  Prompt,
  Template,
  conversation_prompt,
  own_conversation_prompt,
  split_stops,
)
from fsb_jax.encodings.documents import cut_documents, encode_documents, number_words
from fsb_jax.encodings.extraction_scores import cell_scores, entity_scores, event_scores, relation_scores
from fsb_jax.encodings.images import ImageForm, encode_images, image_form, load_image, load_mask
from fsb_jax.encodings.masking import IGNORED, asked_positions, mask_words
from fsb_jax.encodings.ngrams import NgramForm, NgramLexicon, encode_ngrams, read_ngrams
from fsb_jax.encodings.pairs import cut_pairs, encode_bare, encode_pairs
from fsb_jax.encodings.shifting import shift_right
from fsb_jax.encodings.spans import (
  NO_ANSWER,
  SPAN_HEADS,
  WINDOW_STRIDE,
  Answer,
  answer_positions,
  best_answers,
  encode_windows,
  no_answer_score,
  rated_answers,
)
from fsb_jax.encodings.streaming import StreamingDetokenizer
from fsb_jax.encodings.taggers import TAGGERS, Tagger
from fsb_jax.encodings.tagging import (
  MAX_WIDTH,
  Entity,
  encode_characters,
  entities_of_chunks,
  entities_of_pairs,
  entities_of_spans,
  entities_of_surest,
  entities_of_tags,
  label_names,
  pair_labels,
  span_labels,
  tag_labels,
  tags_of_entities,
  to_characters,
  to_tokens,
)
from fsb_jax.encodings.tcbert import encode_tcbert
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer
from fsb_jax.encodings.ubert import decode_ubert, encode_ubert, encode_ubert_labels
from fsb_jax.encodings.uniex import encode_uniex, encode_uniex_labels, pad_uniex
from fsb_jax.encodings.uniex_answers import choose_spans, decode_uniex, end_tokens, given_spans
from fsb_jax.encodings.unimc import (
  answers_unimc,
  batch_unimc,
  encode_unimc,
  mask_unimc,
  only_asked_unimc,
  require_unimc,
)

__all__ = [
  "CLUE_FORMS",
  "IGNORED",
  "MAX_WIDTH",
  "NO_ANSWER",
  "SPAN_HEADS",
  "TAGGERS",
  "TEMPLATES",
  "WINDOW_STRIDE",
  "Answer",
  "Entity",
  "ImageForm",
  "NgramForm",
  "NgramLexicon",
  "Prompt",
  "StreamingDetokenizer",
  "Tagger",
  "Template",
  "answer_positions",
  "answers_unimc",
  "asked_positions",
  "batch_unimc",
  "bert_tokenizer_from_characters",
  "best_answers",
  "cell_scores",
  "choose_spans",
  "clue_answers",
  "clue_items",
  "cmrc_answers",
  "cmrc_items",
  "conversation_prompt",
  "cut_documents",
  "cut_pairs",
  "decode_ubert",
  "decode_uniex",
  "encode_bare",
  "encode_character_windows",
  "encode_characters",
  "encode_documents",
  "encode_images",
  "encode_ngrams",
  "encode_pairs",
  "encode_tcbert",
  "encode_ubert",
  "encode_ubert_labels",
  "encode_uniex",
  "encode_uniex_labels",
  "encode_unimc",
  "encode_windows",
  "end_tokens",
  "entities_of_chunks",
  "entities_of_pairs",
  "entities_of_spans",
  "entities_of_surest",
  "entities_of_tags",
  "entities_of_windows",
  "entity_scores",
  "event_scores",
  "given_spans",
  "image_form",
  "label_names",
  "load_image",
  "load_mask",
  "load_tokenizer",
  "mask_unimc",
  "mask_words",
  "no_answer_score",
  "number_words",
  "only_asked_unimc",
  "own_conversation_prompt",
  "pad_uniex",
  "pair_labels",
  "rated_answers",
  "read_ngrams",
  "relation_scores",
  "require_unimc",
  "save_tokenizer",
  "shift_right",
  "span_labels",
  "split_stops",
  "tag_labels",
  "tags_of_entities",
  "text_to_text",
  "to_characters",
  "to_tokens",
]
