"""What a user may ask, and what one sentence refuses, before anything is compiled."""

import dataclasses

import numpy as np
import pytest
from writers import our_texts, prompts, writer

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.generation import GenerationOptions, generate, options_of


@pytest.mark.parametrize(
  "options,message",
  [
    (dict(max_new_tokens=0), "max_new_tokens=0: it must be a whole number of at least 1"),
    (dict(temperature=0.0), "temperature=0.0: it must be a number above 0"),
    (dict(temperature=float("nan")), "temperature=nan"),
    (dict(top_p=1.5), "top_p=1.5: it must be a number above 0 to 1"),
    (dict(num_beams=True), "num_beams=True"),
    (dict(max_new_tokens=3, max_length=9), "max_length and max_new_tokens both"),
    (dict(num_beams=2, do_sample=True), "do_sample=True draws tokens and num_beams > 1"),
    (dict(num_return_sequences=3), "num_return_sequences=3 asks for different texts"),
    (dict(num_return_sequences=3, num_beams=2), "of which 2 beam"),
    (dict(min_new_tokens=5, max_new_tokens=4), "min_new_tokens=5 is more than max_new_tokens=4"),
    (dict(min_length=9, max_length=4), "min_length=9 is more than max_length=4"),
    (dict(early_stopping="sometimes"), "early_stopping='sometimes'"),
    (dict(guidance_scale=2.0, num_beams=2), "guidance_scale is for greedy search"),
    (dict(tempreature=1.0), "no generation option 'tempreature'"),
  ],
)
def test_contradictions_are_one_sentence(options, message):
  with pytest.raises(UserError, match=message):
    options_of(None, **options)


def test_a_folders_options_give_way_to_the_callers():
  folder = {"max_length": 30, "eos_token_id": 7, "num_beams": 4, "transformers_version": "5", "typical_p": 1.0}
  options = options_of(folder, max_new_tokens=5, num_beams=1)
  assert (options.max_length, options.max_new_tokens, options.num_beams) == (None, 5, 1)
  assert options.eos_token_id == (7,) and options.padding == 7
  assert options_of({"eos_token_id": [3, 4], "pad_token_id": 0}).eos_token_id == (3, 4)
  assert options_of({**folder, "max_new_tokens": 9}).max_length is None
  with pytest.raises(UserError, match="asks for typical_p=0.3, which fsb_jax does not support"):
    options_of({"typical_p": 0.3})
  assert options_of(None) == GenerationOptions()


@pytest.mark.parametrize(
  "ids,options,message",
  [
    ([[]], {}, "a prompt is empty"),
    ([[5, 6], [7, 8]], dict(attention_mask=[[1, 1], [0, 0]]), "a prompt is empty"),
    ([[5, 101]], {}, r"input_ids\[0, 1\] is 101, but the model knows ids from 0 to 100 only"),
    ([[5, -1]], {}, r"input_ids\[0, 1\] is -1"),
    ([[5, 6], [7]], {}, "rows of input_ids differ in length"),
    ([[5.5, 6.5]], {}, "must be token ids"),
    ([[5, 6]], dict(attention_mask=[[1, 1, 1]]), "attention_mask has shape"),
    ([[5] * 65], {}, "the prompt has 65 tokens, but the model's context is 64"),
    ([[5] * 60], dict(max_new_tokens=5), "more than the model's context of 64; ask for at most 4"),
    ([[5] * 6], dict(max_length=6), "max_length=6 leaves none to write"),
    ([[5, 6]], dict(stop_strings="好"), "pass tokenizer="),
    ([[5, 6]], dict(decoder_input_ids=[[3]]), "the model has no encoder"),
    ([[5, 6]], dict(num_beams=2, on_tokens=print), "num_beams > 1 works without"),
  ],
)
def test_prompts_that_cannot_be(ids, options, message):
  chosen = writer("gpt2")
  with pytest.raises(UserError, match=message):
    generate(chosen.model, chosen.params, ids, **options)


def test_models_that_do_not_write():
  chosen = writer("gpt2")
  bert = models.build("bert", models.sized("bert", "tiny"), "masked_lm")
  with pytest.raises(UserError, match="does not write texts"):
    generate(bert, {}, [[5]])
  classifier = models.build("gpt2", chosen.model.config, "sequence_classification")
  with pytest.raises(UserError, match="head='causal_lm'"):
    generate(classifier, chosen.params, [[5]])
  other = dataclasses.replace(chosen.model.config, vocab_size=90)
  draft = models.build("gpt2", other, "causal_lm"), {}
  with pytest.raises(UserError, match="the draft model knows 90 tokens and the model 101"):
    generate(chosen.model, chosen.params, [[5]], draft=draft)


def test_the_default_stops_where_the_context_ends():
  chosen = writer("gpt2")
  made = generate(chosen.model, chosen.params, [[5] * 60])
  assert made.shape == (1, 64)


def test_an_encoders_text_too_long():
  chosen = writer("bart")
  with pytest.raises(UserError, match="the text to read has 65 tokens, but the model's context is 64"):
    generate(chosen.model, chosen.params, [[5] * 65])
  with pytest.raises(UserError, match="decoder_input_ids has 2 rows and input_ids 1"):
    generate(chosen.model, chosen.params, [[5, 6]], decoder_input_ids=[[3], [3]])
  with pytest.raises(UserError, match="guidance_scale is for decoders"):
    generate(chosen.model, chosen.params, [[5, 6]], guidance_scale=2.0)


def test_the_caches_size_is_said_before_it_is_there():
  chosen, said = writer("llama"), []
  ids, mask = prompts(False, 3)
  our_texts(chosen, ids, mask, say=said.append)
  # 2 (keys, values) x 3 layers x 2 heads of 8 numbers x 4 bytes x 4 texts x 32 tokens.
  assert said == ["cache: 0.0 MB for 4 texts of up to 32 tokens"]
  assert models.cache_bytes(chosen.model.config, 4, 32) == 2 * 3 * 2 * 8 * 4 * 4 * 32
  assert np.isfinite(chosen.model.new_cache(4, 32).layers[0].attention.key).all()
