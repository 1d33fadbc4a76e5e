"""Scoring a split: every example counts once, whatever the padding and the mesh."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import models, tasks
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training.data import Loader
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.reporting import say
from fsb_jax.training.start import Start, find_tokenizer, require_positions, start_from
from fsb_jax.training.step import eval_step


def compiled_eval_step(start: Start, partitioner: Partitioner) -> Callable:
  """The eval step of a model, its results whole on every host."""
  step = eval_step(start.model, OBJECTIVES[start.metadata.head])
  return partitioner.jit(step, out_shardings=partitioner.replicated)


def scored_batches(
  loader: Loader, step: Callable, params: Any, partitioner: Partitioner
) -> Iterator[Mapping[str, np.ndarray]]:
  """The eval step's results for every batch of a split, as host arrays, filling rows left out of the row-wise ones."""
  for batch in loader.batches(0):
    result = jax.device_get(step(params, partitioner.shard_batch(batch)))
    real = result["weights"] > 0
    yield {
      name: value[real] if name in ("logits", "labels", "example_ids") else value for name, value in result.items()
    }


def evaluate_split(loader: Loader, step: Callable, params: Any, partitioner: Partitioner) -> dict[str, float]:
  """Loss, accuracy, and what always answering the most common label would get."""
  sums: dict[str, float] = {}
  weights: dict[str, float] = {}
  targets, predictions = [], []
  for result in scored_batches(loader, step, params, partitioner):
    for name, value in result["sums"].items():
      sums[name] = sums.get(name, 0.0) + float(value)
      weights[name] = weights.get(name, 0.0) + float(result["term_weights"][name])
    if (result["labels"] < 0).any():
      raise UserError("this split is published without labels, so it cannot be scored; fsb infer writes predictions")
    targets.append(result["labels"])
    predictions.append(tasks.predicted_labels(result["logits"], loader.label_slice))
  targets, predictions = np.concatenate(targets), np.concatenate(predictions)
  loss = sum(value / max(weights[name], 1) for name, value in sums.items())
  if not np.isfinite(loss):
    raise UserError(f"the loss of this split is {loss}: the model's parameters or its inputs are broken")
  return {
    "loss": loss,
    **tasks.accuracy(targets, predictions),
    "majority_baseline": float(np.bincount(targets).max() / len(targets)),
    "examples": len(targets),
  }


def longest_row(feature_lengths: Mapping[str, int]) -> int:
  """The length asked for by TASK_FEATURE_LENGTHS; UserError where it is of another form."""
  length = feature_lengths.get("inputs") if isinstance(feature_lengths, Mapping) else None
  if not isinstance(length, int) or length < 1:
    raise UserError(f"TASK_FEATURE_LENGTHS must be {{'inputs': longest text in tokens}}, not {feature_lengths!r}")
  return length


def require_new_file(path: str | Path) -> Path:
  """`path` as a file that can be written; UserError where it exists or its folder does not."""
  path = Path(str(path)).expanduser()
  if path.exists():
    raise UserError(f"OUTPUT_FILE {path} already exists; choose another name or move it away")
  if not path.parent.is_dir():
    raise UserError(f"OUTPUT_FILE {path}: there is no folder {path.parent}")
  return path


def task_names(task: str) -> tuple[str, ...]:
  """The tasks to score one by one: a mixture's members, or the task itself."""
  return (tasks.info(task).members or (task,)) if task in tasks.names() else (task,)


def load_for_use(model: str | Path, partitioner: Partitioner, dtype: str, tokenizer: Any) -> tuple[Start, Any]:
  """A trained classifier and its parameters on the mesh."""
  run = models.Run(dtype=dtype, vocab_multiple=partitioner.vocab_multiple)
  start = start_from(
    checkpoint=model, model=None, tokenizer=find_tokenizer(tokenizer, model), head=None, label_names=None, run=run
  )
  if start.metadata.head != "sequence_classification":
    raise UserError(f"{model} has a {start.metadata.head} head; fsb eval and infer score classifiers, train one first")
  boxed = models.abstract_params(start.model)
  partitioner.validate(boxed)
  return start, jax.tree.map(jax.device_put, start.params, partitioner.shardings(boxed))


def task_loader(task: str, split: str, start: Start, partitioner: Partitioner, **options) -> Loader:
  """A loader for scoring `start` on a split; UserError where model and task have different labels."""
  say(f"reading {task}")
  loader = Loader(
    task, split, start.tokenizer, shuffle=False,
    process_index=jax.process_index(), process_count=jax.process_count(), **options,
  )
  partitioner.validate_batch(loader.batch_size, loader.buckets)
  require_positions(start.config, loader.buckets[-1])
  if len(loader.label_names) != start.metadata.num_labels:
    raise UserError(
      f"the model knows {start.metadata.num_labels} labels but task {task} has {len(loader.label_names)}; "
      "was it trained on another task?"
    )
  if start.metadata.label_names not in (None, loader.label_names):
    first = next(i for i, pair in enumerate(zip(start.metadata.label_names, loader.label_names)) if len({*pair}) > 1)
    raise UserError(
      f"the model's label {first} is {start.metadata.label_names[first]!r} but task {task} calls it "
      f"{loader.label_names[first]!r}; was it trained on another task?"
    )
  return loader


def evaluate(
  *,
  model: str,
  task: Any,
  split: str = "validation",
  feature_lengths: Mapping[str, int] = {"inputs": 128},
  batch_size: int = 64,
  buckets: int | tuple[int, ...] = 4,
  mesh: Mapping[str, int] | None = None,
  rules: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  tokenizer: Any = None,
  data_dir: str | None = None,
  output_file: str | None = None,
) -> dict[str, dict[str, float]]:
  """Scores a trained classifier on a split; prints a line per task and returns the numbers.

  Args:
    model: a training run's folder, a converted folder, or a Hub folder or id.
    task: name of a task or mixture, or a task from `tasks.table_task`.
    split: which split.
    feature_lengths: {"inputs": longest text in tokens}.
    batch_size: examples at a time.
    buckets: see `Loader`.
    mesh: sizes of the mesh axes.
    rules: changes to the partitioning rules.
    dtype: of activations.
    tokenizer: folder of the tokenizer, where it is not the model's.
    data_dir: where data lies; FSB_DATA_DIR if not given.
    output_file: also write the numbers there, as JSON; must not exist yet.

  Returns:
    {task: {"loss", "accuracy", "majority_baseline", "examples"}}.
  """
  target = require_new_file(output_file) if output_file else None
  length = longest_row(feature_lengths)
  partitioner = Partitioner(mesh, rules)
  start, params = load_for_use(model, partitioner, dtype, tokenizer)
  step = compiled_eval_step(start, partitioner)
  name = getattr(task, "name", task)
  results = {}
  for member in task_names(name):
    loader = task_loader(
      member, split, start, partitioner,
      max_length=length, batch_size=batch_size, buckets=buckets, data_dir=data_dir,
    )
    metrics = evaluate_split(loader, step, params, partitioner)
    results[member] = metrics
    if jax.process_index() == 0:
      print(describe(f"{member} {split}", metrics), flush=True)
  if target and jax.process_index() == 0:
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say(f"written to {target}")
  return results


def describe(what: str, metrics: Mapping[str, float]) -> str:
  """One line for people."""
  return (
    f"{what}: accuracy {metrics['accuracy']:.4f} (always the most common label: {metrics['majority_baseline']:.4f}), "
    f"loss {metrics['loss']:.4f}, {int(metrics['examples']):,} examples"
  )
