"""One call of the engine: prompts, the compiled functions, and the loop on the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax import models
from fsb_jax.generation.beams import BeamPrograms, BeamRules, BeamState
from fsb_jax.generation.decoding import Programs, State, position_ids
from fsb_jax.generation.options import GenerationOptions
from fsb_jax.generation.processors import rules_and_numbers
from fsb_jax.generation.prompts import Prompts
from fsb_jax.generation.speculative import SpeculativePrograms, SpeculativeState
from fsb_jax.partitioning import Partitioner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
  """Texts.

  Attributes:
    sequences: int `[rows, length]`: of a decoder the prompts as they were given and what is written, of an
      encoder-decoder what is written from the start token on; `num_return_sequences` rows for each prompt.
    new_tokens: int `[rows]`, how many tokens were written, one that ends the text included.
    scores: `[rows]`, what beams are ranked by; None without beams.
    logprobs: `[rows, written]`, log-probability of every new token by the model's own scores, 0 after the end; None
      where nobody asked for it.
    acceptance: share of a draft model's tokens that were kept; None without one.
  """

  sequences: np.ndarray
  new_tokens: np.ndarray
  scores: np.ndarray | None = None
  logprobs: np.ndarray | None = None
  acceptance: float | None = None


@functools.lru_cache(maxsize=8)
def for_writing(partitioner: Partitioner) -> Partitioner:
  """The same, but that sequences stay whole: one token cannot be split."""
  return Partitioner(partitioner.mesh, {**partitioner.rules, "activation_length": None})


@functools.lru_cache(maxsize=32)
def compiled(kind: type, partitioner: Partitioner | None, *arguments: Any) -> Any:
  """The programs of `kind`, once for equal arguments."""
  return kind(*arguments, jax.jit if partitioner is None else partitioner.jit)


@functools.lru_cache(maxsize=32)
def _encode(model: nn.Module, partitioner: Partitioner | None) -> Callable:
  def encode(params, ids, mask):
    return model.apply({"params": params}, ids, mask, method="encode")

  return (jax.jit if partitioner is None else partitioner.jit)(encode)


@functools.lru_cache(maxsize=32)
def _allocate(model: nn.Module, partitioner: Partitioner | None) -> Callable:
  jit = jax.jit if partitioner is None else partitioner.jit
  return jit(model.new_cache, static_argnums=(0, 1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One call: prompts and all that says how to go on from them."""

  options: GenerationOptions
  partitioner: Partitioner | None
  prompts: Prompts
  negative: Prompts | None
  encoder_input: tuple[np.ndarray, np.ndarray] | None
  longest: int
  length: int
  tokenizer: Any
  on_tokens: Callable | None
  say: Callable | None

  def one_by_one(self, model: nn.Module, params: Any) -> Generated:
    """Greedy search, or sampling."""
    programs = compiled(Programs, self.partitioner, model, self.rules)
    state, encoded = self._begun(programs, model, params)
    self._emit(state.texts, self.prompt_end, self.prompt_end + 1)
    index, count = self.prompt_end + 1, self._steps_per_call()
    state, finished = self._stopped(state, index)
    while index < self.longest and not finished:
      state = programs.go_on(params, state, self.numbers, encoded, count)
      before, index = index, (index + 1 if count == 1 else int(state.index))
      self._emit(state.texts, before, index)
      state, finished = self._stopped(state, index)
    return self._result(state.texts, index, state=state)

  def speculate(self, large: tuple[nn.Module, Any], small: tuple[nn.Module, Any]) -> Generated:
    """The same with a draft model."""
    programs = compiled(Programs, self.partitioner, large[0], self.rules)
    state, encoded = self._begun(programs, *large)
    draft_encoded = self._encoded(*small)
    drafting = compiled(Programs, self.partitioner, small[0], self.rules)
    cache = self._read(drafting, *small, draft_encoded, all_of_it=True)
    rounds = compiled(
      SpeculativePrograms, self.partitioner, large[0], small[0], self.rules, self.options.speculate
    )
    self._emit(state.texts, self.prompt_end, self.prompt_end + 1)
    index = self.prompt_end + 1
    state, finished = self._stopped(state, index)
    state = SpeculativeState(state, cache.taken(self._repeats), jnp.int32(0), jnp.int32(0))
    while index < self.longest and not finished:
      state = rounds.round((large[1], small[1]), state, self.numbers, (encoded, draft_encoded))
      before, index = index, int(state.target.index)
      self._emit(state.target.texts, before, index)
      target, finished = self._stopped(state.target, index)
      state = state.replace(target=target)
    acceptance = int(state.accepted) / max(int(state.proposed), 1)
    return self._result(state.target.texts, index, state=state.target, acceptance=acceptance)

  def beam_search(self, model: nn.Module, params: Any) -> Generated:
    """Several texts at a time for every prompt."""
    options, batch, beams = self.options, self._padded_rows, self.options.num_beams
    beam_rules = BeamRules(beams=beams, early_stopping=options.early_stopping)
    programs = compiled(BeamPrograms, self.partitioner, model, self.rules, beam_rules)
    encoded = self._encoded(model, params)
    cache, last = self._read(programs, model, params, encoded)
    texts, real = self._texts()
    texts = texts.reshape(batch, beams, -1)
    first = np.where(np.arange(beams) == 0, 0.0, -1e9).astype(np.float32)
    dtype = jnp.promote_types(model.config.run.dtype, jnp.float32)
    state = BeamState(
      texts=jnp.asarray(texts), real=jnp.asarray(real), scores=jnp.tile(jnp.asarray(first, dtype), (batch, 1)),
      index=jnp.int32(self.prompt_end), positions=self._positions(), cache=cache, ended=jnp.array(texts),
      ended_scores=jnp.full((batch, beams), -1e9, dtype), is_ended=jnp.zeros((batch, beams), bool),
      improvable=jnp.ones(batch, bool), going=jnp.bool(True),
    )  # fmt: skip
    state = programs.begin_with_copies(params, state, self.numbers, encoded, *last, self._repeats)
    count = self._steps_per_call()
    while bool(state.going):
      state = programs.go_on(params, state, self.numbers, encoded, count)
    returned, rows = options.num_return_sequences, len(self.prompts.tokens)
    texts = np.asarray(state.ended)[:rows, :returned].reshape(rows * returned, -1)
    scores = np.asarray(state.ended_scores)[:rows, :returned].reshape(-1)
    return self._result(texts, self.longest, scores=scores)

  @property
  def prompt_end(self) -> int:
    """Where prompts end in their rows."""
    return self.prompts.tokens.shape[1]

  @functools.cached_property
  def _rules_and_numbers(self):
    return rules_and_numbers(
      self.options, first=self.prompts.first, prompt_end=self.prompt_end, longest=self.longest
    )

  @property
  def rules(self):
    """See `processors`."""
    return self._rules_and_numbers[0]

  @property
  def numbers(self):
    """See `processors`."""
    return self._rules_and_numbers[1]

  @property
  def _rows_for_each(self) -> int:
    options = self.options
    return options.num_beams if options.num_beams > 1 else options.num_return_sequences

  @property
  def _padded_rows(self) -> int:
    """Prompts, and copies of the first one, so that a mesh divides them."""
    multiple = 1 if self.partitioner is None else self.partitioner.batch_multiple
    return -(-len(self.prompts.tokens) // multiple) * multiple

  def _padded(self, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[:1], self._padded_rows - len(rows), axis=0)])

  @property
  def _repeats(self) -> jax.Array:
    """Which of the rows that were read each row that is written goes on from."""
    rows = np.repeat(np.arange(self._padded_rows), self._rows_for_each)
    return jnp.asarray(rows if self.negative is None else np.concatenate([rows, rows + self._padded_rows]))

  def _texts(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the full length that begin with the prompts, and which of their tokens are real."""
    missing = ((0, 0), (0, self.length - self.prompt_end))
    tokens = np.pad(self._padded(self.prompts.tokens), missing, constant_values=self.options.padding)
    real = np.pad(self._padded(self.prompts.mask), missing)
    return np.repeat(tokens, self._rows_for_each, axis=0), np.repeat(real, self._rows_for_each, axis=0)

  def _positions(self) -> jax.Array:
    """Position ids of the prompts' last tokens."""
    prompts = [self.prompts] if self.negative is None else [self.prompts, self.negative]
    counts = np.concatenate([self._padded(p.mask).sum(axis=1) for p in prompts])
    return jnp.asarray(counts - 1, jnp.int32)[self._repeats]

  def _begun(self, programs: Programs, model: nn.Module, params: Any) -> tuple[State, Any]:
    """The state with one token written, and the encoder's output."""
    encoded = self._encoded(model, params)
    cache, last = self._read(programs, model, params, encoded)
    texts, real = self._texts()
    state = State(
      texts=jnp.asarray(texts), index=jnp.int32(self.prompt_end), real=jnp.asarray(real), positions=self._positions(),
      cache=cache, finished=jnp.zeros(len(texts), bool), logprobs=jnp.zeros(texts.shape, jnp.float32),
      key=jax.random.key(self.options.seed),
    )  # fmt: skip
    repeats = None if self._rows_for_each == 1 else self._repeats
    begin = programs.begin if repeats is None else programs.begin_with_copies
    return begin(params, state, self.numbers, encoded, *last, repeats), encoded

  def _encoded(self, model: nn.Module, params: Any) -> Any:
    """(encoder's output, mask), or None for a model without one."""
    if self.encoder_input is None:
      return None
    ids, mask = (jnp.asarray(self._padded(x)) for x in self.encoder_input)
    return _encode(model, self.partitioner)(params, ids, mask), mask

  def _read(self, programs: Any, model: nn.Module, params: Any, encoded: Any, all_of_it: bool = False) -> Any:
    """Reads the prompts into a new cache, chunk by chunk, but for the last chunk (unless `all_of_it`).

    Returns:
      The cache, and (tokens, mask, position ids) of the last chunk; with `all_of_it` the cache alone.
    """
    prompts = [self.prompts] if self.negative is None else [self.prompts, self.negative]
    tokens, mask = (
      jnp.asarray(np.concatenate([self._padded(getattr(p, name)) for p in prompts])) for name in ("tokens", "mask")
    )
    positions = position_ids(mask)
    if self.say is not None:
      rows = len(self._repeats)
      size = models.cache_bytes(model.config.decoder_config, rows, self.length, self.options.cache_dtype)
      self.say(f"cache: {size / 1e6:,.1f} MB for {rows} texts of up to {self.length:,} tokens")
    cache = _allocate(model, self.partitioner)(len(tokens), self.length, self.options.cache_dtype)
    size = min(self.options.prefill_chunk, self.prompt_end)
    chunks = [
      tuple(x[:, start : start + size] for x in (tokens, mask, positions)) for start in range(0, self.prompt_end, size)
    ]
    for chunk in chunks if all_of_it else chunks[:-1]:
      cache = programs.read(params, cache, *chunk, encoded)
    return cache if all_of_it else (cache, chunks[-1])

  def _steps_per_call(self) -> int:
    """A host loop over donated steps is fastest on the CPU; a device that waits for its host wants more."""
    if self.options.stop_strings:
      return 1
    if self.options.steps_per_call is not None:
      return self.options.steps_per_call
    return 1 if jax.default_backend() == "cpu" or self.on_tokens else 32

  def _emit(self, texts: jax.Array, start: int, end: int) -> None:
    if self.on_tokens is not None:
      self.on_tokens(np.asarray(texts[: len(self.prompts.tokens) * self._rows_for_each, start:end]))

  def _stopped(self, state: State, index: int) -> tuple[State, bool]:
    """The state with those texts finished that hold a stop string, and whether all are."""
    finished = np.asarray(state.finished)
    if self.options.stop_strings and not finished.all():
      # A stop string that ends with the newest tokens is all there is to find, and each token is a byte of it or more.
      newest = 2 + self.options.speculate + max(len(stop.encode()) for stop in self.options.stop_strings)
      written = np.asarray(state.texts[:, max(self.prompt_end, index - newest) : index])
      now = [done or self._holds_stop(row) for done, row in zip(finished, written)]
      state, finished = state.replace(finished=jnp.asarray(now)), np.array(now)
    return state, bool(finished.all())

  def _holds_stop(self, tokens: np.ndarray) -> bool:
    text = self.tokenizer.decode(tokens.tolist())
    return any(stop in text for stop in self.options.stop_strings)

  def _result(self, texts: Any, index: int, *, scores=None, state: State | None = None, acceptance=None) -> Generated:
    """Cuts rows back to what the caller asked for; beams have no `state`."""
    options, prompts = self.options, self.prompts
    rows = len(prompts.tokens) * options.num_return_sequences
    written = np.asarray(texts)[:rows, self.prompt_end : min(index, self.longest)]
    if state is not None:
      # Tokens after the end are no real ones.
      lengths = np.asarray(state.real)[:rows, self.prompt_end : min(index, self.longest)].sum(axis=1)
    elif options.eos_token_id:
      is_end = np.isin(written, options.eos_token_id)
      lengths = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, written.shape[1])
    else:
      lengths = np.full(rows, written.shape[1])
    written = written[:, : lengths.max()]
    given = np.repeat(prompts.given, options.num_return_sequences, axis=0)
    logprobs = None
    if options.logprobs and state is not None:
      logprobs = np.asarray(state.logprobs)[:rows, self.prompt_end : self.prompt_end + written.shape[1]]
    return Generated(
      sequences=np.concatenate([given, written], axis=1), new_tokens=lengths, scores=scores, logprobs=logprobs,
      acceptance=acceptance,
    )  # fmt: skip
