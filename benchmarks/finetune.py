"""Fine-tuning end to end, ours against the usual PyTorch loop: TNEWS, BERT 6 x 768, batches of 32, dropout on.

Both start from the same weights, read the 53,360 training rows with the same tokenizer, and train with AdamW after
clipping under the same schedule of learning rates. Ours is what `fsb train` runs (its loader, its update); theirs is a
DataLoader with shuffling and dynamic padding, `BertForSequenceClassification` and `torch.optim.AdamW(fused=True)`.
A round is a few steps of each, data included. Needs TNEWS under $FSB_DATA_DIR (default: ../shared/data beside the
repository).

  python benchmarks/finetune.py [--rounds 12] [--steps 6] [--threads 2] [--json FILE]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from side_by_side import compare, prepare, write_json
from usual_torch import adamw, batches

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
BATCH, MAX_LENGTH, VOCABULARY, LAYERS, WIDTH, HEADS, MLP = 32, 128, 21128, 6, 768, 12, 3072
DROPOUT, LEARNING_RATE, WEIGHT_DECAY, MAX_NORM, TRAIN_STEPS, WARMUP = 0.1, 5e-5, 0.01, 1.0, 5000, 50


class Theirs:
  """The loop of the library's own examples, without a trainer around it."""

  def __init__(self, examples, labels, tokenizer):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
      vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
      intermediate_size=MLP, hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT, num_labels=labels,
      attn_implementation="sdpa",
    )  # fmt: skip
    self.model = transformers.BertForSequenceClassification(config)
    self.losses, self.real, self.positions = [], 0, 0
    self._loader = batches(examples, tokenizer, MAX_LENGTH, BATCH, shuffle=True)
    self._batches = iter(self._loader)

  def prepare(self):
    """Makes the optimizer, once the weights have been handed on."""
    import transformers

    self.optimizer = adamw(self.model, LEARNING_RATE, WEIGHT_DECAY)
    self.rate = transformers.get_linear_schedule_with_warmup(self.optimizer, WARMUP, TRAIN_STEPS)
    self.model.train()

  def steps(self, count):
    import torch

    for _ in range(count):
      batch = next(self._batches, None)
      if batch is None:
        self._batches = iter(self._loader)
        batch = next(self._batches)
      self.real += int(batch["attention_mask"].sum())
      self.positions += batch["attention_mask"].numel()
      loss = self.model(**batch).loss
      self.optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
      self.optimizer.step()
      self.rate.step()
      self.losses.append(loss.item())


class Ours:
  """What `fsb train` runs, from the other side's weights."""

  def __init__(self, theirs, loader):
    import convert_torch

    from fsb_jax import models
    from fsb_jax.partitioning import Partitioner
    from fsb_jax.training import optimizers
    from fsb_jax.training.losses import OBJECTIVES
    from fsb_jax.training.measure import Compilations
    from fsb_jax.training.step import Update

    with tempfile.TemporaryDirectory() as folder:
      theirs.model.save_pretrained(folder)
      hub = convert_torch.load_hub_folder(folder, run=models.Run())
    model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
    rate = optimizers.schedule(learning_rate=LEARNING_RATE, train_steps=TRAIN_STEPS, warmup_steps=WARMUP)
    optimizer = optimizers.adamw(learning_rate=rate, weight_decay=WEIGHT_DECAY, max_gradient_norm=MAX_NORM)
    update = Update(model, OBJECTIVES[hub.head], optimizer)
    self.partitioner = Partitioner({"data": 1})
    self.state = self.partitioner.jit(update.first_state)(hub.params)
    self.update = self.partitioner.jit(update, donate_argnums=0)
    self.loader, self.compilations = loader, Compilations()
    self.losses, self.real, self.positions, self.seconds = [], 0, 0, 0.0
    self._stream = loader.stream(0, TRAIN_STEPS)

  def compile_every_shape(self):
    """Runs one step of each bucket on a copy of the state."""
    import jax
    import jax.numpy as jnp

    left = set(self.loader.buckets)
    for batch in self.loader.stream(0, TRAIN_STEPS):
      if batch["input_ids"].shape[1] in left:
        left.remove(batch["input_ids"].shape[1])
        jax.block_until_ready(self.update(jax.tree.map(jnp.copy, self.state), self.partitioner.shard_batch(batch)))
      if not left:
        return

  def steps(self, count):
    import jax

    start, metrics = time.perf_counter(), []
    for _ in range(count):
      batch = next(self._stream)
      self.real += int(batch["attention_mask"].sum())
      self.positions += batch["attention_mask"].size
      self.state, step = self.update(self.state, self.partitioner.shard_batch(batch))
      metrics.append(step)
    self.losses += [float(step["loss"]) for step in jax.device_get(metrics)]
    jax.block_until_ready(self.state)
    self.seconds += time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=12)
  parser.add_argument("--steps", type=int, default=6, help="training steps of each side in a round")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--json", help="write every second measured to this file")
  arguments = parser.parse_args()
  prepare(arguments.threads)
  import numpy as np

  from fsb_jax.encodings import bert_tokenizer_from_characters
  from fsb_jax.tasks import registry
  from fsb_jax.tasks.text_task import load_split
  from fsb_jax.training.data import Loader

  examples = load_split(registry.known_tasks()["tnews"], "train", DATA_DIR).examples
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = bert_tokenizer_from_characters(
      sorted({c for each in examples for c in each["text"].lower() if not c.isspace()}), folder
    )
  loader = Loader("tnews", "train", tokenizer, MAX_LENGTH, BATCH, shuffle=True, data_dir=str(DATA_DIR))
  theirs = Theirs(examples, len(loader.label_names), tokenizer)
  ours = Ours(theirs, loader)
  theirs.prepare()
  ours.compile_every_shape()
  compiled, waited = ours.compilations.count, loader.waited
  steps = arguments.steps
  result = compare(
    "TNEWS, BERT 6x768, batch 32, dropout 0.1",
    {"fsb_jax": lambda: ours.steps(steps), "torch": lambda: theirs.steps(steps)},
    baseline="torch", rounds=arguments.rounds, warmup=1, work=steps * BATCH, unit="examples",
  )
  print(result.table())
  every = {"fsb_jax": ours, "torch": theirs}
  print("\nreal tokens among positions: " + ", ".join(f"{n} {s.real / s.positions:.1%}" for n, s in every.items()))
  print(f"ours: lengths {loader.buckets}, {ours.compilations.count - compiled} compilations after the first of each, ")
  print(f"      waiting for data {(loader.waited - waited) / ours.seconds:.2%} of the time")
  third = len(ours.losses) // 3
  for name, part in (("first", slice(0, third)), ("last", slice(-third, None))):
    means = (
      f"{n} {np.mean(s.losses[part]):.3f} ± {np.std(s.losses[part], ddof=1) / third**0.5:.3f}" for n, s in every.items()
    )
    print(f"mean loss of the {name} {third} steps: {', '.join(means)}")
  if arguments.json:
    write_json(arguments.json, [result], losses={name: side.losses for name, side in every.items()})


if __name__ == "__main__":
  main()
