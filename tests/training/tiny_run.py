"""A run of a tiny model on a task that can be learned: texts whose class is the kind of their one telling character."""

from pathlib import Path

import jax
import numpy as np

from fsb_jax import encodings
from fsb_jax.partitioning import make_mesh
from fsb_jax.training.loop import Periods
from fsb_jax.training.optimizers import adamw, schedule
from fsb_jax.training.start import SizedModel
from fsb_jax.training.train import train

GOOD, BAD, OTHER = "好棒美善喜", "坏差丑恶怒", "天地人你我他"


def make_inputs(folder: Path) -> dict[str, Path]:
  """Writes the tokenizer and the tables; the tables' paths by split."""
  encodings.bert_tokenizer_from_characters(GOOD + BAD + OTHER, folder / "tokenizer")
  random = np.random.default_rng(0)
  files = {}
  for split, rows in (("train", 230), ("validation", 45), ("test", 33)):
    lines = ["text,label"]
    for i in range(rows):
      filler = "".join(random.choice(list(OTHER), random.integers(1, 12)))
      telling = random.choice(list(GOOD if i % 3 else BAD))
      lines.append(f"{filler}{telling},{'positive' if i % 3 else 'negative'}")
    files[split] = folder / f"{split}.csv"
    files[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
  return files


def one_device():
  """A mesh of one device, for what is no matter of meshes: eight on one machine wait for each other."""
  return make_mesh(devices=jax.devices()[:1])


def run(folder, table, tokenizer, steps, **changes):
  """Trains; `changes` replace arguments of `train`."""
  rate = schedule(learning_rate=3e-3, train_steps=60, warmup_ratio=0.1)
  arguments = dict(
    model_dir=str(folder), task=table, train_steps=steps, batch_size=32, optimizer=adamw(learning_rate=rate),
    learning_rate=rate, model=SizedModel("bert", "smaller"), tokenizer=tokenizer, feature_lengths={"inputs": 16},
    buckets=(16,), eval_batch_size=16, periods=Periods(log=10), mesh={"data": 2, "fsdp": 2, "tensor": 2},
  )
  return train(**{**arguments, **changes})
