"""Our generation against `transformers`' `generate` on PyTorch, on the CPU.

LLaMA of 6 layers x 768 with 39,424 words, prompts of 32 tokens and 64 new ones, one text and eight at a time; T5-small
and BART-base, four beams over four texts of 32 tokens, 32 new ones. Random weights, the same on both sides, in float32;
nothing ends early. The tokens are asserted to be equal before a number is printed. A token of one text reads every
weight once: how fast memory can be read bounds it, and that is measured in the same run.

  python benchmarks/generation.py [--case llama-1] [--rounds 10] [--json FILE]
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from typing import Any

from side_by_side import compare, prepare, quartiles, write_json


@dataclasses.dataclass(frozen=True)
class Case:
  """What is generated: a class of transformers, its config, and how."""

  architecture: str
  config: dict
  batch: int
  new: int
  options: dict


LLAMA = dict(
  vocab_size=39424, hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=2048,
  max_position_embeddings=2048,
)  # fmt: skip
T5_SMALL = dict(
  vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0
)
BART_BASE = dict(
  vocab_size=50265, d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12,
  decoder_attention_heads=12, encoder_ffn_dim=3072, decoder_ffn_dim=3072, forced_eos_token_id=None,
)  # fmt: skip
PROMPT = 32
CASES = {
  "llama-1": Case("LlamaForCausalLM", LLAMA, 1, 64, {}),
  "llama-8": Case("LlamaForCausalLM", LLAMA, 8, 64, {}),
  "t5-small-beams": Case("T5ForConditionalGeneration", T5_SMALL, 4, 32, {"num_beams": 4}),
  "bart-base-beams": Case("BartForConditionalGeneration", BART_BASE, 4, 32, {"num_beams": 4}),
}


def make_theirs(case: Case, attention: str):
  import torch
  import transformers

  torch.manual_seed(0)
  kind = getattr(transformers, case.architecture)
  model = kind._from_config(kind.config_class(**case.config), attn_implementation=attention).eval()
  # As drawn, the scores of the vocabulary are nearly alike, and rounding would choose the token.
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 2:
        parameter.mul_(2.5)
  config = model.generation_config
  config.eos_token_id, config.pad_token_id, config.max_length = None, 0, None
  return model


def make_ours(theirs):
  import convert_torch

  from fsb_jax import models
  from fsb_jax.generation import prepared

  with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    hub = convert_torch.load_hub_folder(folder, run=models.Run(scan_layers=False))
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  return prepared(model, hub.params)


def read_bandwidth() -> float:
  """Bytes a second that this process reads of memory, the median of rounds."""
  import jax
  import jax.numpy as jnp

  array = jnp.ones((2**28 // 4,), jnp.float32)
  total = jax.jit(jnp.sum)
  total(array).block_until_ready()
  seconds = []
  for _ in range(20):
    start = time.perf_counter()
    total(array).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return array.nbytes / statistics.median(seconds)


def bytes_per_token(model, params: Any) -> int:
  """Bytes of weights that writing one token reads: all but tables that are looked up, and the encoder."""
  from fsb_jax import models

  flat = models.flatten(params)
  tied = model.config.tie_embeddings
  return sum(
    x.nbytes
    for path, x in flat.items()
    if not path.startswith("encoder/") and "position_embed" not in path and (tied or not path.startswith("token_embed"))
  )


def measure(name: str, case: Case, rounds: int, bandwidth: float):
  import numpy as np
  import torch

  from fsb_jax.generation import generate

  ids = np.random.default_rng(0).integers(3, case.config["vocab_size"], (case.batch, PROMPT))
  theirs = {kind: make_theirs(case, kind) for kind in ("eager", "sdpa")}
  model, params = make_ours(theirs["eager"])
  tensor = torch.from_numpy(ids)

  def torch_generate(kind, new):
    with torch.inference_mode():
      return theirs[kind].generate(
        tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=new, do_sample=False, **case.options
      ).numpy()

  def our_generate(new):
    return generate(model, params, ids, max_new_tokens=new, **case.options)

  start = time.perf_counter()
  ours = our_generate(case.new)
  first_call = time.perf_counter() - start
  for kind in theirs:
    expected = torch_generate(kind, case.new)
    if not (ours.shape == expected.shape and (ours == expected).all()):
      raise SystemExit(f"{name}: tokens differ from torch {kind}'s; nothing measured")
  start = time.perf_counter()
  our_generate(case.new)
  print(f"{name}: tokens agree; {first_call - (time.perf_counter() - start):.1f} s of compilation")
  results = []
  for title, new in (("first token", 1), (f"{case.new} tokens", case.new)):
    rivals = {f"torch {kind}": lambda kind=kind, new=new: torch_generate(kind, new) for kind in theirs}
    trial = compare(title, rivals, baseline="torch eager", rounds=3, warmup=1)
    fastest = min(rivals, key=lambda side: statistics.median(trial.seconds[side]))
    sides = {"fsb_jax": lambda new=new: our_generate(new), fastest: rivals[fastest]}
    result = compare(
      f"{name} {title}", sides, baseline=fastest, rounds=rounds, work=case.batch * new, unit="tokens"
    )
    print(result.table() + "\n")
    results.append(result)
  if case.batch == 1:
    bound = bandwidth / bytes_per_token(model, params)
    first, whole = (quartiles(result.seconds["fsb_jax"])[1] for result in results)
    rate = (case.new - 1) / (whole - first)
    print(
      f"memory is read at {bandwidth / 1e9:.1f} GB/s, so that {bytes_per_token(model, params) / 1e6:.0f} MB of weights "
      f"allow {bound:.1f} tokens/s; after the first one, fsb_jax writes {rate:.1f}, {rate / bound:.0%} of it\n"
    )
  return results


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--case", choices=CASES, action="append")
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--json", help="write every second measured to this file")
  arguments = parser.parse_args()
  prepare(arguments.threads)
  bandwidth = read_bandwidth()
  results = []
  for name in arguments.case or CASES:
    results += measure(name, CASES[name], arguments.rounds, bandwidth)
  if arguments.json:
    write_json(arguments.json, results, read_bandwidth=bandwidth)


if __name__ == "__main__":
  main()
