"""How texts are written: in parts, in steps, as a stream, from a distribution, with a draft model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from writers import EOS, NEW, PAD, our_texts, prompts, writer

from fsb_jax.generation import generate_texts, options_of, prepared, run
from fsb_jax.generation.processors import rules_and_numbers, warp


@pytest.fixture(scope="module")
def gpt2():
  return writer("gpt2")


def test_the_same_text_however_it_is_computed(gpt2):
  ids, mask = prompts(False, 3)
  expected = our_texts(gpt2, ids, mask, logprobs=True)
  seen = []
  for how in (
    dict(prefill_chunk=8), dict(steps_per_call=5), dict(on_tokens=seen.append), dict(cache_dtype="float64"),
  ):  # fmt: skip
    with jax.enable_x64("cache_dtype" in how):
      np.testing.assert_array_equal(our_texts(gpt2, ids, mask, **how).sequences, expected.sequences, err_msg=str(how))
  written = expected.sequences[:, ids.shape[1] :]
  np.testing.assert_array_equal(np.concatenate(seen, axis=1)[:, : written.shape[1]], written)
  # Right padding is moved to the left, and comes back where it was.
  right, right_mask = ids.copy(), mask[:, ::-1].copy()
  for row, real in zip(right, mask.astype(bool)):
    row[:] = np.concatenate([row[real], row[~real]])
  right_mask = np.stack([np.sort(row)[::-1] for row in mask])
  ours = our_texts(gpt2, right, right_mask)
  np.testing.assert_array_equal(ours.sequences[:, : ids.shape[1]], right)
  np.testing.assert_array_equal(ours.sequences[:, ids.shape[1] :], written)


def test_the_same_text_of_scanned_layers_and_of_prepared_parameters(gpt2):
  ids, mask = prompts(False, 3)
  expected = our_texts(gpt2, ids, mask).sequences
  config = gpt2.model.config.with_run(scan_layers=True)
  scanned = gpt2.model.clone(config=config, head=gpt2.model.head.clone(config=config))
  layers = [gpt2.params["decoder"][f"layers_{i}"] for i in range(config.num_layers)]
  others = {name: x for name, x in gpt2.params["decoder"].items() if not name.startswith("layers_")}
  stacked = {**gpt2.params, "decoder": {**others, "layers": jax.tree.map(lambda *xs: np.stack(xs), *layers)}}
  whole = dataclasses.replace(gpt2, model=scanned, params=stacked)
  np.testing.assert_array_equal(our_texts(whole, ids, mask).sequences, expected)
  model, params = prepared(scanned, stacked)
  assert not model.config.run.scan_layers
  assert params["decoder"]["layers_0"]["mlp"]["wi"]["kernel"].shape == (48, 32)
  ready = dataclasses.replace(gpt2, model=model, params=params)
  np.testing.assert_array_equal(our_texts(ready, ids, mask).sequences, expected)
  again, same = prepared(model, params)
  assert again is model and same["token_embed"]["embedding"] is params["token_embed"]["embedding"]


def test_logprobs_are_the_models(gpt2):
  ids, mask = prompts(False, 4)
  made = our_texts(gpt2, ids, mask, logprobs=True, repetition_penalty=1.5)
  row = int(np.argmax(mask.sum(axis=1)))
  text = made.sequences[row : row + 1]
  logits = gpt2.model.apply({"params": gpt2.params}, text).logits
  places = np.arange(ids.shape[1] - 1, text.shape[1] - 1)
  wanted = np.asarray(jax.nn.log_softmax(logits))[0, places, text[0, ids.shape[1] :]]
  count = made.new_tokens[row]
  np.testing.assert_allclose(made.logprobs[row, :count], wanted[:count], atol=1e-4)
  assert (made.logprobs[row, count:] == 0).all()


def test_lengths_ask_for_few_compilations(gpt2):
  run.compiled.cache_clear()
  for length, new in ((5, 3), (9, 7), (14, 12), (16, 16)):
    ids, mask = prompts(False, 0, length=length)
    our_texts(gpt2, ids, mask, max_new_tokens=new, temperature=0.5 + new, do_sample=True)
  options = options_of(dict(pad_token_id=PAD, eos_token_id=EOS), do_sample=True, temperature=2.0)
  rules, _ = rules_and_numbers(options, first=0, prompt_end=1, longest=2)
  programs = run.compiled(run.Programs, None, gpt2.model, rules)
  assert programs.go_on._cache_size() == 1 and programs.begin._cache_size() == 1


def exact_distribution(gpt2, prompt, options):
  """Probabilities of the first token, and of the second after each first one."""
  rules, numbers = rules_and_numbers(options, first=0, prompt_end=len(prompt), longest=len(prompt) + 2)

  def of(texts):
    logits = jax.jit(lambda ids: gpt2.model.apply({"params": gpt2.params}, ids).logits[:, -1])(jnp.asarray(texts))
    return np.asarray(jax.nn.softmax(warp(rules, numbers, logits), axis=-1), np.float64)

  first = of([prompt])[0]
  return first, of([[*prompt, token] for token in range(len(first))])


@pytest.mark.parametrize("drafted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sampling_follows_the_distribution(gpt2, drafted):
  from scipy import stats

  prompt, rows = [5, 17, 40, 8], 4000
  sampling = dict(do_sample=True, temperature=4.0, top_k=12, top_p=0.9, min_p=0.05)
  first, second = exact_distribution(gpt2, prompt, options_of(None, **sampling))
  small = writer("gpt2", seed=1)
  draft = {"draft": (small.model, small.params), "speculate": 2} if drafted else {}
  made = generate_texts(
    gpt2.model, gpt2.params, np.tile(prompt, (rows, 1)), max_new_tokens=3, seed=11, **sampling, **draft
  )
  tokens = made.sequences[:, len(prompt) :]
  assert len(set(tokens[:, 0])) > 3
  pairs = np.zeros_like(second)
  np.add.at(pairs, (tokens[:, 0], tokens[:, 1]), 1)
  expected = rows * first[:, None] * second
  assert pairs[expected == 0].sum() == 0
  # Cells with few expected texts are taken together.
  few = (expected > 0) & (expected < 5)
  observed = np.append(pairs[expected >= 5], pairs[few].sum())
  wanted = np.append(expected[expected >= 5], expected[few].sum())
  observed, wanted = observed[wanted > 0], wanted[wanted > 0]
  assert len(wanted) > 10
  assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_seeds_and_several_texts_of_a_prompt(gpt2):
  ids, mask = prompts(False, 3)
  sampling = dict(do_sample=True, temperature=3.0, num_return_sequences=3)
  one, again, other = (our_texts(gpt2, ids, mask, **sampling, seed=seed).sequences for seed in (1, 1, 2))
  assert one.shape[0] == 3 * len(ids)
  np.testing.assert_array_equal(one, again)
  assert (one != other).any() and (one[0] != one[1]).any()
  np.testing.assert_array_equal(one[:, : ids.shape[1]], np.repeat(ids, 3, axis=0))


@pytest.mark.parametrize(
  "family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow), pytest.param("bart", marks=pytest.mark.slow)]
)
def test_a_draft_model_changes_nothing_but_the_time(family):
  chosen, small = writer(family), writer(family, seed=0)
  # The same model with noise on it: it agrees often, and not always.
  random = np.random.default_rng(0)
  noisy = jax.tree.map(lambda x: x + 0.05 * x.std() * random.normal(size=x.shape).astype(x.dtype), small.params)
  accepted = []
  for batch in range(25):
    ids, mask = prompts(chosen.reads, 100 + batch, rows=8)
    expected = our_texts(chosen, ids, mask, logprobs=True)
    made = our_texts(chosen, ids, mask, draft=(small.model, noisy), speculate=3, logprobs=True)
    np.testing.assert_array_equal(made.sequences, expected.sequences)
    np.testing.assert_allclose(made.logprobs, expected.logprobs, atol=1e-4)
    accepted.append(made.acceptance)
  assert 0.2 < np.mean(accepted) < 1
  itself = our_texts(chosen, ids, mask, draft=(chosen.model, chosen.params))
  assert itself.acceptance == 1


class Letters:
  """A tokenizer whose tokens are letters."""

  def decode(self, ids, **options):
    return "".join(chr(97 + i % 26) for i in ids)


def test_stop_strings(gpt2):
  ids, mask = prompts(False, 3)
  plain = our_texts(gpt2, ids, mask, eos_token_id=())
  written = plain.sequences[:, ids.shape[1] :]
  stop = Letters().decode(written[0, 3:5].tolist())
  made = our_texts(gpt2, ids, mask, eos_token_id=(), stop_strings=[stop], tokenizer=Letters())
  for row, whole in zip(made.sequences[:, ids.shape[1] :], written):
    text = Letters().decode(whole.tolist())
    end = text.index(stop) + len(stop) if stop in text else NEW
    np.testing.assert_array_equal(row[:end], whole[: min(end, len(row))])
    assert (row[end:] == PAD).all()
