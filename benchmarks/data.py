"""Our loader against `datasets.map` and a PyTorch DataLoader: TNEWS from its file to padded batches of arrays.

Both sides read the 53,360 training rows, tokenise them with the same Rust tokenizer (a BERT vocabulary of the rows'
own characters), shuffle, and make every batch of one epoch: batches of 32, padded to a bucket (ours) or to the batch's
longest row (theirs, DataCollatorWithPadding). That both serve the same tokens and labels is asserted before a number is
printed. Then: how long a training step waits for its batch, with a device that is kept busy on the same cores.

Needs `datasets` and `torch`, and TNEWS under $FSB_DATA_DIR (default: ../shared/data beside the repository).

  python benchmarks/data.py [--rounds 7] [--threads 2] [--json FILE]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from side_by_side import compare, pin_threads, quartiles, write_json

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
BATCH, MAX_LENGTH = 32, 128
STEPS_WAITED = 60


def our_loader(tokenizer):
  from fsb_jax.tasks.text_task import load_split
  from fsb_jax.training.data import Loader

  load_split.cache_clear()  # a process reads a split once, and each round shall read
  return Loader("tnews", "train", tokenizer, MAX_LENGTH, BATCH, shuffle=True, data_dir=str(DATA_DIR))


def their_rows(path, tokenizer, label_ids):
  import datasets

  def encode(rows):
    encoded = tokenizer(rows["sentence"], truncation=True, max_length=MAX_LENGTH)
    return {**encoded, "labels": [label_ids[label] for label in rows["label"]]}

  # Read and written anew in each round, as in the first run of a script.
  with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
    return rows.map(encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True)


def their_batches(rows, tokenizer, workers):
  from torch.utils.data import DataLoader
  from transformers import DataCollatorWithPadding

  loader = DataLoader(
    rows, batch_size=BATCH, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer), num_workers=workers
  )
  for batch in loader:
    yield {name: tensor.numpy() for name, tensor in batch.items()}


def count(batches):
  return sum(len(batch["labels"]) for batch in batches)


def served(batches):
  """Every example's tokens, types and label, sorted."""
  rows = []
  for batch in batches:
    for row in range(len(batch["labels"])):
      length = int(batch["attention_mask"][row].sum())
      if batch.get("weights", [1] * BATCH)[row]:
        tokens = (batch[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        rows.append((*tokens, int(batch["labels"][row])))
  return sorted(rows)


def waiting(loader):
  """Milliseconds that a step waits for its batch over the end of an epoch, and milliseconds of a step."""
  import jax
  import jax.numpy as jnp

  # A fraction of a second on all cores, as training is.
  step = jax.jit(lambda x: jax.lax.fori_loop(0, 12, lambda _, y: jnp.tanh(y @ x), x))
  x = jnp.full((1024, 1024), 1e-3)
  step(x).block_until_ready()
  first = max(loader.steps_per_epoch() - STEPS_WAITED // 2, 0)
  stream = loader.stream(first, first + STEPS_WAITED)
  next(stream)  # the first batch of a run has nothing to hide behind
  waits, start = [], time.perf_counter()
  before = loader.waited
  for _ in stream:
    waits.append(loader.waited - before)
    step(x).block_until_ready()
    before = loader.waited
  return [1000 * wait for wait in waits], 1000 * (time.perf_counter() - start) / len(waits)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--json", help="also write every measured second there")
  options = parser.parse_args()
  pin_threads(options.threads)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    import datasets
    import torch
  except ImportError as error:
    raise SystemExit(f"the other side of this comparison needs {error.name}: pip install datasets torch") from error
  import logging

  from fsb_jax import tasks
  from fsb_jax.encodings import bert_tokenizer_from_characters
  from fsb_jax.tasks.files import find, read_json_lines

  # SeqIO counts rows as they are, and says so.
  logging.getLogger("absl").setLevel(logging.ERROR)
  torch.set_num_threads(options.threads)
  datasets.disable_caching()
  datasets.disable_progress_bars()
  archive = find(DATA_DIR, "tnews", "train.json")
  if archive is None:
    raise SystemExit(f"TNEWS is not under {DATA_DIR}; set FSB_DATA_DIR")
  rows = [fields for _, fields in read_json_lines(archive)]
  names = {fields["label"]: fields["label_desc"] for fields in rows}
  label_ids = {label: tasks.info("tnews").label_names.index(name) for label, name in names.items()}
  characters = sorted({c for fields in rows for c in fields["sentence"].lower() if not c.isspace()})

  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "train.json"  # theirs reads a plain file, ours the archive
    path.write_text("".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in rows), "utf-8")
    tokenizer = bert_tokenizer_from_characters(characters, folder)
    loader, encoded = our_loader(tokenizer), their_rows(path, tokenizer, label_ids)
    if served(loader.batches(0)) != served(their_batches(encoded, tokenizer, 0)):
      raise SystemExit("the two sides do not serve the same tokens and labels")
    share = loader.real_token_share()
    print(f"{len(rows):,} rows, {share:.1%} of our positions are real tokens, buckets {loader.buckets}")

    epochs = iter(range(1, 10**6))
    common = {"baseline": "datasets", "rounds": options.rounds, "warmup": 1, "work": len(rows), "unit": "examples"}
    comparisons = [
      compare(
        "read, tokenise, batch: one epoch",
        {
          "fsb_jax": lambda: count(our_loader(tokenizer).batches(0)),
          "datasets": lambda: count(their_batches(their_rows(path, tokenizer, label_ids), tokenizer, 0)),
        },
        **common,
      ),
      compare(
        "batch: every further epoch",
        {
          "fsb_jax": lambda: count(loader.batches(next(epochs))),
          "datasets": lambda: count(their_batches(encoded, tokenizer, 0)),
          f"datasets, {options.threads} workers": lambda: count(their_batches(encoded, tokenizer, options.threads)),
        },
        **common,
      ),
    ]
  for comparison in comparisons:
    print("\n" + comparison.table())
  waits, step = waiting(loader)
  low, middle, high = quartiles(waits)
  share = sum(waits) / len(waits) / step
  print(
    f"\nwaiting for a batch: {middle:.3f} ms a step, quartiles {low:.3f}-{high:.3f}, at most {max(waits):.3f}; "
    f"{share:.2%} of steps of {step:.0f} ms, {sum(waits) / len(waits) / 1000:.3%} of steps of 1 s"
  )
  if options.json:
    write_json(options.json, comparisons, waits_ms=waits, step_ms=step)


if __name__ == "__main__":
  main()
