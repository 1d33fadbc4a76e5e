"""What a user may ask of a generation, under Hugging Face's names, checked before anything is compiled."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from fsb_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
  """How to generate; fields and their meaning are those of transformers' `GenerationConfig`.

  Attributes:
    max_new_tokens: most tokens to write; 64 where `max_length` is not given, either.
    max_length: most tokens in all, the prompt included.
    min_new_tokens: fewest tokens to write before the text may end.
    min_length: fewest tokens in all.
    do_sample: draw tokens, rather than take the most probable.
    num_beams: how many texts are followed at a time; 1 for no beam search.
    num_return_sequences: texts returned for every prompt.
    temperature: divides scores when sampling.
    top_k: sample from this many tokens; 0 for all.
    top_p: sample from the fewest tokens that have this probability together; 1 for all.
    min_p: sample from tokens that have this share of the most probable one's probability.
    repetition_penalty: divides (multiplies, where negative) scores of tokens that the text holds already.
    no_repeat_ngram_size: n-grams of this size stand in a text once; 0 for no such rule.
    bad_words_ids: token sequences that are not written.
    forced_bos_token_id: token to write first, where the text so far is one token.
    forced_eos_token_id: token to write last, where the text gets as long as it may.
    stop_strings: a text ends where it holds one of them; asks for a tokenizer.
    length_penalty: beams are ranked by log-probability / length ** length_penalty.
    early_stopping: when a beam search ends: True with `num_beams` finished texts, False when better ones are unlikely,
      "never" when there can be none.
    guidance_scale: how much further from a negative prompt's scores the prompt's are taken; 1 for not at all.
    eos_token_id: ids that end a text.
    pad_token_id: id that fills up finished ones; the first of `eos_token_id` if not given.
    decoder_start_token_id: id that an encoder-decoder's text begins with.
    logprobs: also return the log-probability of every token, by the model's own scores.
    cache_dtype: of keys and values; None for the activations'.
    prefill_chunk: tokens of a prompt that are read at a time.
    steps_per_call: tokens written per call of the device; None for a number that suits it.
    speculate: tokens that a draft model proposes at a time.
    seed: of the random numbers.
  """

  max_new_tokens: int | None = None
  max_length: int | None = None
  min_new_tokens: int = 0
  min_length: int = 0
  do_sample: bool = False
  num_beams: int = 1
  num_return_sequences: int = 1
  temperature: float = 1.0
  top_k: int = 50
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  no_repeat_ngram_size: int = 0
  bad_words_ids: tuple[tuple[int, ...], ...] = ()
  forced_bos_token_id: int | None = None
  forced_eos_token_id: int | None = None
  stop_strings: tuple[str, ...] = ()
  length_penalty: float = 1.0
  early_stopping: bool | Literal["never"] = False
  guidance_scale: float = 1.0
  eos_token_id: tuple[int, ...] = ()
  pad_token_id: int | None = None
  decoder_start_token_id: int | None = None
  logprobs: bool = False
  cache_dtype: str | None = None
  prefill_chunk: int = 512
  steps_per_call: int | None = None
  speculate: int = 4
  seed: int = 0

  def __post_init__(self):
    for name, (holds, rule) in _RULES.items():
      value = getattr(self, name)
      if value is not None and not holds(value):
        raise UserError(f"{name}={value!r}: it must be {rule}")
    if self.max_length is not None and self.max_new_tokens is not None:
      raise UserError("max_length and max_new_tokens both say how long the text may be; give one of them")
    if self.num_beams > 1 and self.do_sample:
      raise UserError("do_sample=True draws tokens and num_beams > 1 searches for the best; choose one of them")
    if self.num_return_sequences > 1 and not self.do_sample and self.num_return_sequences > self.num_beams:
      raise UserError(
        f"num_return_sequences={self.num_return_sequences} asks for different texts, of which {self.num_beams} "
        "beam(s) have fewer; raise num_beams, or pass do_sample=True"
      )
    if self.num_beams > 1 and self.guidance_scale != 1:
      raise UserError("guidance_scale is for greedy search and sampling; leave out num_beams")
    fewest, most = self.min_new_tokens, self.max_new_tokens
    if most is not None and fewest > most:
      raise UserError(f"min_new_tokens={fewest} is more than max_new_tokens={most}")
    if self.max_length is not None and self.min_length > self.max_length:
      raise UserError(f"min_length={self.min_length} is more than max_length={self.max_length}")
    if self.early_stopping not in (True, False, "never"):
      raise UserError(f'early_stopping={self.early_stopping!r}: it must be True, False or "never"')

  @property
  def padding(self) -> int:
    """The id that fills up finished texts."""
    if self.pad_token_id is not None:
      return self.pad_token_id
    return self.eos_token_id[0] if self.eos_token_id else 0


def _whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _at_least(least: int):
  return lambda value: _whole(value) and value >= least, f"a whole number of at least {least}"


def _within(low: float, high: float, open_low: bool = False):
  def holds(value):
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high and not (
      open_low and value == low
    )

  return holds, f"a number {'above' if open_low else 'from'} {low:g}" + (f" to {high:g}" if high < math.inf else "")


_RULES = {
  **{name: _at_least(1) for name in ("max_new_tokens", "max_length", "num_beams", "num_return_sequences")},
  **{name: _at_least(1) for name in ("prefill_chunk", "steps_per_call", "speculate")},
  **{name: _at_least(0) for name in ("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size", "seed")},
  **{name: _at_least(0) for name in ("forced_bos_token_id", "forced_eos_token_id", "pad_token_id")},
  "temperature": _within(0, math.inf, open_low=True),
  "repetition_penalty": _within(0, math.inf, open_low=True),
  "top_p": _within(0, 1, open_low=True),
  "min_p": _within(0, 1),
  "length_penalty": _within(-math.inf, math.inf),
  "guidance_scale": _within(0, math.inf),
}
_FIELDS = {field.name for field in dataclasses.fields(GenerationOptions)}
# What transformers writes and we lack: the values that ask for nothing.
_INERT = {
  "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "top_h": (), "num_beam_groups": (1,),
  "diversity_penalty": (0.0,), "penalty_alpha": (), "encoder_repetition_penalty": (1.0,),
  "encoder_no_repeat_ngram_size": (0,), "sequence_bias": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
  "exponential_decay_length_penalty": (), "constraints": (), "force_words_ids": (), "renormalize_logits": (False,),
  "watermarking_config": (), "dola_layers": (), "prompt_lookup_num_tokens": (),
}  # fmt: skip


def options_of(generation_config: Mapping[str, Any] | None, **options: Any) -> GenerationOptions:
  """Options from a folder's `generation_config.json` and a caller's own, which come first.

  Args:
    generation_config: as transformers writes it; what does not concern generation is left out.
    **options: fields of `GenerationOptions`, and tuples as lists or single ids.

  Raises:
    UserError: an option that does not exist, contradicts another, or that the folder asks for and we lack.
  """
  unknown = sorted(set(options) - _FIELDS)
  if unknown:
    raise UserError(f"there is no generation option {unknown[0]!r}; there are {', '.join(sorted(_FIELDS))}")
  read = {}
  for name, value in (generation_config or {}).items():
    if name in _INERT and value is not None and value not in _INERT[name]:
      raise UserError(f"generation_config.json asks for {name}={value!r}, which fsb_jax does not support; remove it")
    if name in _FIELDS and value is not None:
      read[name] = value
  given = {name: value for name, value in options.items() if value is not None}
  # Each says how long the text may be, and the caller's word counts.
  for one, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
    if one in given:
      read.pop(other, None)
  if {"max_length", "max_new_tokens"} <= set(read):
    read.pop("max_length")
  merged = {**read, **given}
  for name in ("eos_token_id", "stop_strings"):
    if isinstance(merged.get(name), int | str):
      merged[name] = (merged[name],)
    merged[name] = tuple(merged.get(name, ()))
  merged["bad_words_ids"] = tuple(tuple(word) for word in merged.get("bad_words_ids", ()))
  if isinstance(merged.get("forced_eos_token_id"), list):
    merged["forced_eos_token_id"] = merged["forced_eos_token_id"][0]
  return GenerationOptions(**merged)
