"""From prompts to texts: the one entry to greedy search, sampling, beam search and speculative decoding."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.generation.options import GenerationOptions, options_of
from fsb_jax.generation.prepare import unrolled
from fsb_jax.generation.prompts import left_filled, read_prompts, right_filled, rounded_up
from fsb_jax.generation.run import Generated, Run, for_writing
from fsb_jax.partitioning import Partitioner


def generate(model: nn.Module, params: Any, input_ids: Any, attention_mask: Any = None, **arguments: Any) -> np.ndarray:
  """The `sequences` of `generate_texts`, which says what else it takes."""
  return generate_texts(model, params, input_ids, attention_mask, **arguments).sequences


def generate_texts(
  model: nn.Module,
  params: Any,
  input_ids: Any,
  attention_mask: Any = None,
  *,
  decoder_input_ids: Any = None,
  generation_config: Mapping[str, Any] | None = None,
  partitioner: Partitioner | None = None,
  tokenizer: Any = None,
  negative_prompt_ids: Any = None,
  negative_prompt_attention_mask: Any = None,
  draft: tuple[nn.Module, Any] | None = None,
  on_tokens: Callable[[np.ndarray], None] | None = None,
  say: Callable[[str], None] | None = None,
  **options: Any,
) -> Generated:
  """Writes on from prompts.

  Args:
    model: a decoder, or an encoder-decoder, with a head that scores the vocabulary.
    params: its parameters. Those of scanned layers are unrolled first, at every call; see `prepared`.
    input_ids: int `[rows, length]`, or one row.
    attention_mask: 1 for real tokens, on either side of the row.
    decoder_input_ids: int `[rows, length]`, how the texts of an encoder-decoder begin; the start token if not given.
    generation_config: a folder's, see `options_of`.
    partitioner: whose mesh holds `params`.
    tokenizer: decodes texts, to find `stop_strings`.
    negative_prompt_ids: int `[rows, length]`, what `guidance_scale` leads away from; each prompt's last token if not
      given.
    negative_prompt_attention_mask: 1 for their real tokens.
    draft: a smaller model and its parameters, which proposes tokens: speculative decoding.
    on_tokens: called with the new tokens int `[rows, new]` of every step, padding where a text is finished.
    say: called with a line on the cache's size before it is allocated.
    **options: see `GenerationOptions`.

  Returns:
    The texts.

  Raises:
    UserError: prompts or options that cannot be, before anything is compiled.
  """
  chosen = options_of(generation_config, **options)
  _require_generator(model)
  config = model.config
  decodes_alone = config.decoder is None
  pad = chosen.padding if chosen.padding < config.vocab_size else 0
  ids, mask = read_prompts(input_ids, attention_mask, config.vocab_size, pad)
  encoder_input = None
  if not decodes_alone:
    _require_length(config, ids.shape[1], "the text to read")
    encoder_input = right_filled(ids, mask, rounded_up(ids.shape[1]), pad)
    ids, mask = _beginnings(chosen, config, decoder_input_ids, len(ids), pad)
  elif decoder_input_ids is not None:
    raise UserError("the model has no encoder; begin its text in input_ids, and leave out decoder_input_ids")
  new = _room(chosen, config.decoder_config, ids.shape[1])
  if chosen.stop_strings and tokenizer is None:
    raise UserError("stop_strings are found in decoded text; pass tokenizer=")
  if chosen.num_beams > 1 and (chosen.stop_strings or on_tokens or draft):
    raise UserError("num_beams > 1 works without stop_strings, on_tokens and a draft model; leave these out")
  if draft is not None:
    _require_draft(model, draft[0], chosen)

  guides = chosen.guidance_scale != 1
  negative = _negative(model, ids, mask, negative_prompt_ids, negative_prompt_attention_mask, pad) if guides else None
  filled = ids.shape[1] if negative is None else max(ids.shape[1], negative[0].shape[1])
  # Encoder-decoders count their own positions, so nothing may stand before their first token.
  if decodes_alone:
    filled = rounded_up(filled)
    # All chunks of one shape.
    filled = -(-filled // chosen.prefill_chunk) * chosen.prefill_chunk if filled > chosen.prefill_chunk else filled
  prompts = left_filled(ids, mask, filled, pad)
  longest = filled + new
  spare = chosen.speculate + 1 if draft is not None else 0
  run = Run(
    options=chosen, partitioner=partitioner and for_writing(partitioner), prompts=prompts,
    negative=negative and left_filled(*negative, filled, pad),
    encoder_input=encoder_input, longest=longest, length=rounded_up(longest + spare), tokenizer=tokenizer,
    on_tokens=on_tokens, say=say,
  )  # fmt: skip
  if chosen.num_beams > 1:
    return run.beam_search(*unrolled(model, params))
  if draft is not None:
    return run.speculate(unrolled(model, params), unrolled(*draft))
  return run.one_by_one(*unrolled(model, params))


def _require_generator(model: nn.Module) -> None:
  if not hasattr(model, "new_cache"):
    raise UserError("the model does not write texts: generation takes decoders and encoder-decoders")
  if "lm_positions" not in models.input_names(model):
    raise UserError(
      "the model's head does not score the vocabulary; load it with head='causal_lm' or 'conditional_generation'"
    )


def _require_length(config, length: int, what: str) -> None:
  usable = getattr(config.positions, "usable_length", None)
  if usable is not None and length > usable:
    raise UserError(f"{what} has {length} tokens, but the model's context is {usable}; shorten it")


def _room(options: GenerationOptions, config, prompt_length: int) -> int:
  """How many tokens may be written."""
  _require_length(config, prompt_length, "the prompt")
  usable = getattr(config.positions, "usable_length", None)
  if options.max_length is not None:
    new = options.max_length - prompt_length
    if new < 1:
      raise UserError(
        f"the prompt has {prompt_length} tokens and max_length={options.max_length} leaves none to write; raise it, or "
        "pass max_new_tokens"
      )
  elif options.max_new_tokens is not None:
    new = options.max_new_tokens
  else:
    new = 64 if usable is None else min(64, usable - prompt_length)
  if usable is not None and prompt_length + new > usable:
    raise UserError(
      f"a prompt of {prompt_length} tokens and {new} new ones are more than the model's context of {usable}; ask for "
      f"at most {usable - prompt_length}"
    )
  return new


def _beginnings(options: GenerationOptions, config, given: Any, rows: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
  """How an encoder-decoder's texts begin."""
  if given is not None:
    ids, mask = read_prompts(given, None, config.vocab_size, pad, "decoder_input_ids")
    if len(ids) != rows:
      raise UserError(f"decoder_input_ids has {len(ids)} rows and input_ids {rows}; give as many")
    return ids, mask
  start = options.decoder_start_token_id
  start = config.decoder.start_token_id if start is None else start
  return np.full((rows, 1), start, np.int32), np.ones((rows, 1), bool)


def _negative(model, ids, mask, given, given_mask, pad) -> tuple[np.ndarray, np.ndarray]:
  """What guidance leads away from."""
  if model.config.decoder is not None:
    raise UserError("guidance_scale is for decoders; leave it out for a model with an encoder")
  if given is None:
    last = [row[np.flatnonzero(real)[-1]] for row, real in zip(ids, mask)]
    return np.array(last, np.int32)[:, None], np.ones((len(ids), 1), bool)
  negative, negative_mask = read_prompts(given, given_mask, model.config.vocab_size, pad, "negative_prompt_ids")
  if len(negative) != len(ids):
    raise UserError(f"negative_prompt_ids has {len(negative)} rows and input_ids {len(ids)}; give as many")
  return negative, negative_mask


def _require_draft(model: nn.Module, draft: nn.Module, options: GenerationOptions) -> None:
  _require_generator(draft)
  sizes = model.config.vocab_size, draft.config.vocab_size
  if sizes[0] != sizes[1]:
    raise UserError(
      f"the draft model knows {sizes[1]} tokens and the model {sizes[0]}: they must share a tokenizer to speak of the "
      "same tokens"
    )
  if (model.config.decoder is None) != (draft.config.decoder is None):
    raise UserError("the draft model must be of the model's kind: both with an encoder, or both without")
  if options.guidance_scale != 1:
    raise UserError("guidance_scale and a draft model do not go together; leave one out")
