"""Flax linen modules: one transformer core, no family name in it.

Shapes are written `[batch, length, embed]`. Single letters stand only inside einsums:

  b batch · q query position · k key position · h heads · d head_dim · e embed · v vocabulary

Nothing here reads files or imports torch, transformers or TensorFlow.
"""

# What decoders keep of the tokens they have read.
from fsb_jax.models.cache import Cache, cache_bytes, new_cache

# Texts and images.
from fsb_jax.models.clip import ClipConfig, ClipModel, ClipTextConfig, ClipTextModel

# Configuration.
from fsb_jax.models.config import DecoderSpec, Dropout, HeadSizes, Run, TransformerConfig

# Tags as a sequence.
from fsb_jax.models.crf import crf_decode, crf_decode_n_best, crf_log_likelihood

# Models and what they return.
from fsb_jax.models.decoder import DecoderModel
from fsb_jax.models.encoder import EncoderModel
from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.heads import HEADS
from fsb_jax.models.initialise import (
  abstract_params,
  dummy_ids,
  flatten,
  fresh_values,
  input_names,
  may_be_fresh,
  resize_vocabulary,
  unflatten,
)
from fsb_jax.models.masks import Mask
from fsb_jax.models.outputs import (
  BaseOutput,
  BiaffineOutput,
  ClipOutput,
  CrfOutput,
  MaskedLMOutput,
  MultipleChoiceOutput,
  NextSentenceOutput,
  PretrainingOutput,
  QuestionAnsweringOutput,
  SequenceClassificationOutput,
  SpanTaggingOutput,
  TCBertOutput,
  TokenClassificationOutput,
)
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.models.readouts import cosine_similarity, option_logits, option_probabilities, pool

# Families.
from fsb_jax.models.registry import Family, all_families, build, family, family_of_hub_config, sized, updated
from fsb_jax.models.tag_readouts import said_by_tagger
from fsb_jax.models.vision import VisionConfig, VisionModel

__all__ = [
  "HEADS",
  "BaseOutput",
  "BiaffineOutput",
  "Cache",
  "ClipConfig",
  "ClipModel",
  "ClipOutput",
  "ClipTextConfig",
  "ClipTextModel",
  "CrfOutput",
  "DecoderModel",
  "DecoderSpec",
  "Dropout",
  "EncoderDecoderModel",
  "EncoderModel",
  "Family",
  "HeadSizes",
  "LearnedPositions",
  "Mask",
  "MaskedLMOutput",
  "MultipleChoiceOutput",
  "NextSentenceOutput",
  "PretrainingOutput",
  "QuestionAnsweringOutput",
  "Run",
  "SequenceClassificationOutput",
  "SpanTaggingOutput",
  "TCBertOutput",
  "TokenClassificationOutput",
  "TransformerConfig",
  "VisionConfig",
  "VisionModel",
  "abstract_params",
  "all_families",
  "build",
  "cache_bytes",
  "cosine_similarity",
  "crf_decode",
  "crf_decode_n_best",
  "crf_log_likelihood",
  "dummy_ids",
  "family",
  "family_of_hub_config",
  "flatten",
  "fresh_values",
  "input_names",
  "may_be_fresh",
  "new_cache",
  "option_logits",
  "option_probabilities",
  "pool",
  "resize_vocabulary",
  "said_by_tagger",
  "sized",
  "unflatten",
  "updated",
]
