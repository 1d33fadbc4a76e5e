"""What is done to scores before a token is chosen, in transformers' order.

Which rules are in force is static (`Rules`); their numbers are not (`Numbers`), so that another temperature compiles
nothing. Scores are `[rows, vocab]` in at least float32; the texts so far are `[rows, length]`, filled up to `index`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.generation.options import GenerationOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """The rules in force, by the options' names.

  Attributes:
    sample: tokens are drawn.
    top_k: 0 for no such rule.
    no_repeat_ngram_size: 0 for no such rule.
    bad_words_ids: without those that are ends of texts.
    eos_token_id: see `GenerationOptions`.
    forced_bos_token_id: None for none.
    forced_eos_token_id: None for none.
    active: names of those rules whose numbers are in `Numbers`.
    padding: id that fills up finished texts.
    logprobs: keep log-probabilities.
  """

  sample: bool
  top_k: int
  no_repeat_ngram_size: int
  bad_words_ids: tuple[tuple[int, ...], ...]
  eos_token_id: tuple[int, ...]
  forced_bos_token_id: int | None
  forced_eos_token_id: int | None
  active: frozenset[str]
  padding: int
  logprobs: bool


@struct.dataclass
class Numbers:
  """What the rules in force are told.

  Attributes:
    temperature: see `GenerationOptions`, as the next five.
    top_p: as above.
    min_p: as above.
    repetition_penalty: as above.
    guidance_scale: as above.
    length_penalty: as above.
    first: where the caller's text begins; what stands before only fills the row up.
    prompt_end: where it ends.
    shortest: up to which index, counted as the text is filled, no text may end.
    longest: index at which every text ends.
  """

  temperature: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  repetition_penalty: jax.Array
  guidance_scale: jax.Array
  length_penalty: jax.Array
  first: jax.Array
  prompt_end: jax.Array
  shortest: jax.Array
  longest: jax.Array


# Rules whose number may change freely -> the number that asks for nothing.
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "guidance_scale": 1.0}
_SAMPLING = ("temperature", "top_p", "min_p")


def rules_and_numbers(
  options: GenerationOptions, *, first: int, prompt_end: int, longest: int
) -> tuple[Rules, Numbers]:
  """The rules of some options.

  Args:
    options: what is asked for.
    first: see `Numbers`.
    prompt_end: see `Numbers`.
    longest: see `Numbers`.
  """
  active = {name for name, neutral in _NEUTRAL.items() if getattr(options, name) != neutral}
  if not options.do_sample:
    active -= {*_SAMPLING}
  shortest = max(first + options.min_length, prompt_end + options.min_new_tokens)
  if shortest > prompt_end:
    active.add("shortest")
  ends = {(token,) for token in options.eos_token_id}
  rules = Rules(
    sample=options.do_sample,
    top_k=options.top_k if options.do_sample else 0,
    no_repeat_ngram_size=options.no_repeat_ngram_size,
    bad_words_ids=tuple(word for word in options.bad_words_ids if word not in ends),
    eos_token_id=options.eos_token_id,
    forced_bos_token_id=options.forced_bos_token_id,
    forced_eos_token_id=options.forced_eos_token_id,
    active=frozenset(active),
    padding=options.padding,
    logprobs=options.logprobs,
  )
  numbers = {name: jnp.float32(getattr(options, name)) for name in (*_NEUTRAL, "length_penalty")}
  places = {"first": first, "prompt_end": prompt_end, "shortest": shortest, "longest": longest}
  return rules, Numbers(**numbers, **{name: jnp.int32(place) for name, place in places.items()})


def process(
  rules: Rules, numbers: Numbers, scores: jax.Array, texts: jax.Array, real: jax.Array, index: jax.Array
) -> jax.Array:
  """Scores of the token at `index`, by all rules but those of sampling.

  Args:
    rules: in force.
    numbers: their numbers.
    scores: `[rows, vocab]`.
    texts: int `[rows, length]`.
    real: bool `[rows, length]`, which of the texts' tokens are no padding.
    index: int scalar.
  """
  held = (jnp.arange(texts.shape[1]) < index)[None]
  if "repetition_penalty" in rules.active:
    # A token id beyond the scores marks no one.
    marked = jnp.where(held & real, texts, scores.shape[1])
    seen = jnp.zeros(scores.shape, bool).at[jnp.arange(len(texts))[:, None], marked].set(True, mode="drop")
    penalty = numbers.repetition_penalty
    scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
  if rules.no_repeat_ngram_size:
    held &= (jnp.arange(texts.shape[1]) >= numbers.first)[None]
    scores = jnp.where(_would_repeat(rules.no_repeat_ngram_size, scores, texts, held, index), -jnp.inf, scores)
  for word in rules.bad_words_ids:
    scores = _without_word(word, scores, texts, numbers.first, index)
  if "shortest" in rules.active and rules.eos_token_id:
    ends = _marked(rules.eos_token_id, scores)
    scores = jnp.where((index < numbers.shortest) & ends, -jnp.inf, scores)
  if rules.forced_bos_token_id is not None:
    scores = _forced(rules.forced_bos_token_id, index - numbers.first == 1, scores)
  if rules.forced_eos_token_id is not None:
    scores = _forced(rules.forced_eos_token_id, index == numbers.longest - 1, scores)
  return scores


def warp(rules: Rules, numbers: Numbers, scores: jax.Array) -> jax.Array:
  """Scores to sample from, `[..., vocab]`; those of tokens that are left out are -inf."""
  if "temperature" in rules.active:
    scores = scores / numbers.temperature
  if rules.top_k and rules.top_k < scores.shape[-1]:
    least = jax.lax.top_k(scores, rules.top_k)[0][..., -1:]
    scores = jnp.where(scores < least, -jnp.inf, scores)
  if "top_p" in rules.active:
    order = jnp.argsort(scores, axis=-1)
    ascending = jnp.take_along_axis(scores, order, axis=-1)
    removed = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - numbers.top_p
    removed = removed.at[..., -1].set(False)
    back = jnp.argsort(order, axis=-1)
    scores = jnp.where(jnp.take_along_axis(removed, back, axis=-1), -jnp.inf, scores)
  if "min_p" in rules.active:
    probabilities = jax.nn.softmax(scores, axis=-1)
    least = numbers.min_p * jnp.max(probabilities, axis=-1, keepdims=True)
    scores = jnp.where(probabilities < least, -jnp.inf, scores)
  return scores


def guided(numbers: Numbers, scores: jax.Array, unconditional: jax.Array) -> jax.Array:
  """Log-probabilities moved away from those without the prompt (Sanchez et al. 2023, 2306.17806, equation 7)."""
  scores, unconditional = jax.nn.log_softmax(scores), jax.nn.log_softmax(unconditional)
  result = unconditional + numbers.guidance_scale * (scores - unconditional)
  # Rows that pad the vocabulary; -inf less -inf is no number.
  return jnp.where(jnp.isneginf(scores), -jnp.inf, result)


def ends(rules: Rules, tokens: jax.Array) -> jax.Array:
  """Which of some tokens end a text."""
  return jnp.isin(tokens, jnp.array(rules.eos_token_id, jnp.int32)) if rules.eos_token_id else tokens != tokens


def _marked(tokens: tuple[int, ...], scores: jax.Array) -> jax.Array:
  return jnp.isin(jnp.arange(scores.shape[-1]), jnp.array(tokens))


def _forced(token: int, now: jax.Array, scores: jax.Array) -> jax.Array:
  alone = jnp.where(jnp.arange(scores.shape[-1]) == token, 0.0, -jnp.inf)
  return jnp.where(now, alone, scores)


def _would_repeat(size: int, scores: jax.Array, texts: jax.Array, held: jax.Array, index: jax.Array) -> jax.Array:
  """Bool `[rows, vocab]`: tokens that would complete an n-gram that a text has already."""
  rows, length = texts.shape
  # Does the window of size - 1 tokens that begins here equal the text's last ones, with a token after it?
  starts = jnp.arange(length)
  same = jnp.broadcast_to(held & (starts + size <= index), texts.shape)
  for step in range(size - 1):
    last = jnp.take(texts, jnp.maximum(index - (size - 1) + step, 0), axis=1)
    same &= jnp.roll(texts, -step, axis=1) == last[:, None]
  following = jnp.where(same, jnp.roll(texts, 1 - size, axis=1), scores.shape[1])
  return jnp.zeros(scores.shape, bool).at[jnp.arange(rows)[:, None], following].set(True, mode="drop")


def _without_word(word: tuple[int, ...], scores, texts, first, index) -> jax.Array:
  """Scores without the last token of a word whose other tokens the text ends with."""
  *before, last = word
  begun = jnp.broadcast_to(index - first >= len(before), len(texts))
  for step, token in enumerate(before):
    begun &= jnp.take(texts, jnp.maximum(index - len(before) + step, 0), axis=1) == token
  banned = begun[:, None] & (jnp.arange(scores.shape[1]) == last)
  return jnp.where(banned, -jnp.inf, scores)
