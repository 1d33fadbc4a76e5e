"""A real result: ChnSentiCorp (reviews, positive or negative) with ours and with the usual PyTorch loop.

A tiny encoder is pretrained from scratch as a masked language model on Chinese text (CLUECorpusSmall's sample and the
reviews of the training split, without their labels), exported, and fine-tuned from the exported weights by both sides
with the same settings under several seeds. Printed: every test accuracy, means with 95 % intervals, and whether the
sides differ. Needs raw_text and chnsenticorp under $FSB_DATA_DIR (default: ../shared/data beside the repository).

  python benchmarks/chnsenticorp.py [--seeds 5] [--pretrain-steps 2000] [--json FILE]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from side_by_side import prepare
from usual_torch import adamw, batches

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
TEXT = "raw_text/CLUECorpusSmall_sampled.txt.gz"
LENGTH, BATCH, EPOCHS, LEARNING_RATE, WEIGHT_DECAY, DROPOUT, MAX_NORM = 128, 32, 3, 3e-4, 0.01, 0.1, 1.0


def reviews(split):
  """The rows of a split as `text` and `label`."""
  from fsb_jax.tasks import registry
  from fsb_jax.tasks.text_task import load_split

  return load_split(registry.known_tasks()["chnsenticorp"], split, DATA_DIR).examples


def pretrain(folder, steps):
  """Trains the encoder and its tokenizer; returns the run's folder and its last scores."""
  import gzip

  from fsb_jax.encodings import bert_tokenizer_from_characters
  from fsb_jax.tasks.plain_text import plain_text_task
  from fsb_jax.training import optimizers
  from fsb_jax.training.loop import Periods
  from fsb_jax.training.start import SizedModel
  from fsb_jax.training.train import train

  with gzip.open(DATA_DIR / TEXT, "rt", encoding="utf-8") as lines:
    documents = [line.strip() for line in lines if line.strip()]
  texts = [example["text"] for example in reviews("train")]
  files = {"train": folder / "train.txt", "validation": folder / "validation.txt"}
  files["train"].write_text("\n".join([*documents[100:], *texts]) + "\n", "utf-8")
  files["validation"].write_text("\n".join(documents[:100]) + "\n", "utf-8")
  characters = sorted({c for text in (*documents, *texts) for c in text.lower() if not c.isspace()})
  tokenizer = bert_tokenizer_from_characters(characters, folder / "tokenizer")
  rate = optimizers.schedule(learning_rate=1e-3, train_steps=steps)
  metrics = train(
    model_dir=str(folder / "pretrained"), task=plain_text_task("text", files), train_steps=steps, batch_size=32,
    optimizer=optimizers.adamw(learning_rate=rate), learning_rate=rate,
    model=SizedModel("bert", "tiny"), tokenizer=tokenizer,
    feature_lengths={"inputs": LENGTH}, buckets=2, dropout_rate=0.1, periods=Periods(log=100, checkpoint=None),
  )
  return folder / "pretrained", metrics


def fine_tune_ours(start, folder, seed, steps):
  from fsb_jax.training import optimizers
  from fsb_jax.training.evaluate import evaluate
  from fsb_jax.training.loop import Periods
  from fsb_jax.training.train import train

  rate = optimizers.schedule(learning_rate=LEARNING_RATE, train_steps=steps)
  train(
    model_dir=str(folder), task="chnsenticorp", train_steps=steps, batch_size=BATCH, learning_rate=rate,
    optimizer=optimizers.adamw(learning_rate=rate, weight_decay=WEIGHT_DECAY, max_gradient_norm=MAX_NORM),
    initial_checkpoint_path=str(start), feature_lengths={"inputs": LENGTH}, dropout_rate=DROPOUT, seed=seed,
    periods=Periods(log=300, checkpoint=None), data_dir=str(DATA_DIR),
  )
  scores = evaluate(
    model=str(folder), task="chnsenticorp", split="test", feature_lengths={"inputs": LENGTH}, data_dir=str(DATA_DIR)
  )
  return scores["chnsenticorp"]["accuracy"]


def fine_tune_theirs(start, seed, steps, tokenizer):
  import torch
  import transformers

  transformers.set_seed(seed)
  model = transformers.BertForSequenceClassification.from_pretrained(
    start, num_labels=2, hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT
  )

  def of(split, **options):
    return batches(reviews(split), tokenizer, LENGTH, BATCH, **options)

  optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY)
  rate = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
  model.train()
  for _ in range(EPOCHS):
    for batch in of("train", shuffle=True):
      optimizer.zero_grad()
      model(**batch).loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
      optimizer.step()
      rate.step()
  model.eval()
  right = total = 0
  with torch.inference_mode():
    for batch in of("test"):
      labels = batch.pop("labels")
      right += int((model(**batch).logits.argmax(-1) == labels).sum())
      total += len(labels)
  return right / total


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--pretrain-steps", type=int, default=2000)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--json", help="also write every accuracy there")
  arguments = parser.parse_args()
  prepare(arguments.threads)
  import numpy as np
  from convert_torch import cli
  from scipy import stats

  from fsb_jax.encodings import load_tokenizer

  steps = EPOCHS * -(-len(reviews("train")) // BATCH)
  found = {"fsb_jax": [], "torch": []}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    began = time.perf_counter()
    pretrained, metrics = pretrain(folder, arguments.pretrain_steps)
    print(
      f"pretrained for {time.perf_counter() - began:.0f} s: {metrics['accuracy']:.1%} of the hidden words of unseen "
      f"documents are found, perplexity {metrics['perplexity']:.0f}"
    )
    cli.export_checkpoint(pretrained, folder / "hub")
    tokenizer = load_tokenizer(folder / "hub")
    for seed in range(arguments.seeds):
      found["fsb_jax"].append(fine_tune_ours(folder / "hub", folder / f"run-{seed}", seed, steps))
      found["torch"].append(fine_tune_theirs(folder / "hub", seed, steps, tokenizer))
      print(f"seed {seed}: " + ", ".join(f"{side} {values[-1]:.4f}" for side, values in found.items()), flush=True)
  rows = len(reviews("test"))
  for side, values in found.items():
    mean, error = np.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error)
    one = stats.binomtest(round(values[0] * rows), rows).proportion_ci(method="wilson")
    print(
      f"{side}: test accuracy {mean:.4f}, 95 % interval of the mean over {len(values)} seeds {low:.4f}-{high:.4f}; of "
      f"the first run over {rows} reviews {one.low:.4f}-{one.high:.4f}"
    )
  test = stats.ttest_ind(found["fsb_jax"], found["torch"], equal_var=False)
  low, high = test.confidence_interval()
  print(f"difference {np.mean(found['fsb_jax']) - np.mean(found['torch']):+.4f} (95 % {low:+.4f} to {high:+.4f}), ")
  print(f"p = {test.pvalue:.2f}: {'no significant difference' if test.pvalue > 0.05 else 'they DIFFER'}")
  if arguments.json:
    Path(arguments.json).write_text(json.dumps({"pretraining": metrics, "test_accuracy": found}, indent=2) + "\n")


if __name__ == "__main__":
  main()
