"""Tiny models that write, in PyTorch and as ours, and the texts that both make of the same prompts."""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
import torch
from convert_torch import load_hub_folder
from tiny_hub import LM, torch_model

from fsb_jax import models
from fsb_jax.generation import generate_texts

PAD, EOS, NEW = 2, 1, 12
ROWS, LENGTH = 4, 9
SPECIAL = dict(pad_token_id=PAD, eos_token_id=EOS, bos_token_id=3, forced_eos_token_id=None)
DECODERS = ("gpt2", "llama")
ENCODER_DECODERS = ("t5", "mt5", "bart", "pegasus")
WRITERS = DECODERS + ENCODER_DECODERS


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
  """A torch model and ours with the same weights."""

  theirs: torch.nn.Module
  model: nn.Module
  params: Any

  @property
  def reads(self) -> bool:
    """Whether there is an encoder."""
    return self.model.config.decoder is not None


@functools.cache
def writer(family: str, seed: int = 0, **changes: Any) -> Writer:
  """One of a family; their scores are spread out, so that no two tokens are nearly alike."""
  # transformers makes T5's cache with as many layers as its encoder has.
  alike = {"num_decoder_layers": 2} if family in ("t5", "mt5") else {}
  fields = {**SPECIAL, "max_position_embeddings": 64, **alike, **changes}
  theirs = torch_model(family, LM[family], seed=seed, **fields)
  theirs.generation_config.max_length = None
  with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    hub = load_hub_folder(folder, run=models.Run(scan_layers=False))
  return Writer(theirs, models.build(hub.family, hub.config, hub.head, hub.num_labels), hub.params)


def prompts(reads: bool, seed: int, rows: int = ROWS, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask; padding at the left, or at the right of what an encoder reads."""
  random = np.random.default_rng(seed)
  real = random.integers(1, length + 1, rows)
  real[0] = length
  mask = np.arange(length) < real[:, None]
  mask = mask if reads else mask[:, ::-1]
  return np.where(mask, random.integers(4, 101, (rows, length)), PAD), mask.astype(np.int64)


def torch_texts(chosen: Writer, ids, mask, **options) -> tuple[np.ndarray, np.ndarray | None]:
  """Sequences and beams' scores."""
  options = {"max_new_tokens": NEW, "do_sample": False, **options}
  with torch.no_grad():
    result = chosen.theirs.generate(
      torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), return_dict_in_generate=True, output_scores=True,
      **options,
    )  # fmt: skip
  scores = getattr(result, "sequences_scores", None)
  return result.sequences.numpy(), None if scores is None else scores.numpy()


def our_texts(chosen: Writer, ids, mask, **options):
  """What `generate_texts` makes of them."""
  config = {name: value for name, value in SPECIAL.items() if value is not None}
  options = {"max_new_tokens": NEW, **options}
  return generate_texts(chosen.model, chosen.params, ids, mask, generation_config=config, **options)


def is_close_call(chosen: Writer, ids, mask, **options) -> bool:
  """Whether rounding decides: PyTorch itself writes another text in float64."""
  wide = dataclasses.replace(chosen, theirs=_in_float64(chosen))
  one, other = (torch_texts(each, ids, mask, **options)[0] for each in (chosen, wide))
  return one.shape != other.shape or (one != other).any()


@functools.cache
def _in_float64(chosen: Writer) -> torch.nn.Module:
  wide = type(chosen.theirs)(chosen.theirs.config).double().eval()
  if chosen.theirs.config.model_type == "llama":
    # Its own softmax is in float32, where float64's mask is infinite and rows of padding are no numbers.
    wide.set_attn_implementation("sdpa")
  wide.load_state_dict(chosen.theirs.state_dict())
  wide.generation_config = chosen.theirs.generation_config
  return wide


def after_the_end_alike(sequences: np.ndarray, start: int, ends: Sequence[int] = (EOS,)) -> np.ndarray:
  """Sequences with padding after the first end from `start` on: transformers 5 fills beams up with ends."""
  sequences = sequences.copy()
  is_end = np.isin(sequences[:, start:], ends)
  ended = np.cumsum(is_end, axis=1) - is_end > 0
  sequences[:, start:][ended] = PAD
  return sequences
