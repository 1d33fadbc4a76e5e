"""Texts token by token as `transformers` writes them: greedy and by beams, batches with padding, every rule."""

import numpy as np
import pytest
from writers import (
  DECODERS,
  EOS,
  NEW,
  WRITERS,
  after_the_end_alike,
  is_close_call,
  our_texts,
  prompts,
  torch_texts,
  writer,
)

GREEDY = {
  "plain": {},
  "rules": dict(
    repetition_penalty=1.5, no_repeat_ngram_size=2, min_new_tokens=5, bad_words_ids=[[5], [7, 9], [11, 12, 13]]
  ),
  "forced": dict(min_length=8, forced_eos_token_id=1, no_repeat_ngram_size=3, max_new_tokens=7),
}
BEAMS = {
  "beams": dict(num_beams=3),
  "early": dict(num_beams=4, length_penalty=2.0, early_stopping=True, num_return_sequences=2),
  "never": dict(num_beams=3, early_stopping="never", length_penalty=0.5, no_repeat_ngram_size=2),
  "short": dict(num_beams=2, length_penalty=-1.0, repetition_penalty=1.3, num_return_sequences=2),
}


def check(family, options, seed):
  """One batch of prompts, drawn again where rounding decides."""
  chosen = writer(family)
  # Again and again would mean that something else than rounding decides.
  for again in range(4):
    ids, mask = prompts(chosen.reads, seed + 1000 * again)
    if not is_close_call(chosen, ids, mask, **options):
      break
  else:
    pytest.fail("four batches in a row are decided by rounding")
  theirs, their_scores = torch_texts(chosen, ids, mask, **options)
  ours = our_texts(chosen, ids, mask, **options)
  start = 1 if chosen.reads else ids.shape[1]
  np.testing.assert_array_equal(ours.sequences, after_the_end_alike(theirs, start, options.get("eos_token_id", EOS)))
  if "num_beams" in options:
    np.testing.assert_allclose(ours.scores, their_scores, rtol=1e-4, atol=1e-4)
  return ours


# Each of the two kinds meets every other family.
@pytest.mark.parametrize(
  "family,kind",
  [
    # Those that write as another family does are slow.
    pytest.param(name, ("rules", "early")[i % 2], marks=pytest.mark.slow if name in ("mt5", "pegasus") else [])
    for i, name in enumerate(WRITERS)
  ],
)
def test_every_family(family, kind):
  for seed in range(2):
    check(family, {**GREEDY, **BEAMS}[kind], seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("kind", [*GREEDY, *BEAMS])
def test_sixty_four_texts_of_every_family_and_kind(family, kind):
  # Many tokens that end a text, or few would end before they must.
  options = {**GREEDY, **BEAMS}[kind] | {"eos_token_id": [EOS, *range(30, 60)]}
  ended = np.concatenate([check(family, options, seed).new_tokens for seed in range(2, 18)])
  # T5's writer hardly ever does; the forced ends come last, and what is read counts as length of a decoder alone.
  assert kind == "forced" or family in ("t5", "mt5") or (ended < NEW).any()


@pytest.mark.parametrize("family", DECODERS)
def test_guidance(family):
  import torch

  chosen = writer(family)
  ids, mask = prompts(False, 5)
  options = dict(guidance_scale=1.7, max_new_tokens=8)
  negative = ids[:, -4:].clip(4)
  theirs, _ = torch_texts(
    chosen, ids, mask, **options, negative_prompt_ids=torch.from_numpy(negative),
    negative_prompt_attention_mask=torch.ones(negative.shape, dtype=torch.long),
  )  # fmt: skip
  ours = our_texts(chosen, ids, mask, **options, negative_prompt_ids=negative)
  np.testing.assert_array_equal(ours.sequences, theirs)
