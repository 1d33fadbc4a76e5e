"""Scoring a split: every example counts once, whatever the padding and the mesh."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import checkpoints, models, pretrained, tasks
from fsb_jax.encodings import SPAN_HEADS, TAGGERS
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner, multihost
from fsb_jax.tasks.new_files import require_new, write_new
from fsb_jax.training.data import Loader
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.reporting import say
from fsb_jax.training.start import Start, find_tokenizer, require_positions, start_from
from fsb_jax.training.step import eval_step


def compiled_eval_step(start: Start, partitioner: Partitioner, objective: str) -> Callable:
  """The eval step of a model by an objective, its results whole on every host."""
  step = eval_step(start.model, OBJECTIVES[objective])
  return partitioner.jit(step, out_shardings=partitioner.replicated)


def scored_batches(
  loader: Loader, step: Callable, params: Any, partitioner: Partitioner, check: Callable[[], None] = lambda: None
) -> Iterator[Mapping[str, np.ndarray]]:
  """The eval step's results for every batch of a split, as host arrays, filling rows left out of the row-wise ones.

  Args:
    loader: the split.
    step: compiled eval step.
    params: on the mesh.
    partitioner: splits the batches.
    check: called after each batch; may raise to stop.
  """
  for batch in loader.batches(0):
    result = jax.device_get(step(params, partitioner.shard_batch(batch)))
    real = result["weights"] > 0
    yield {name: value if isinstance(value, dict) else value[real] for name, value in result.items()}
    check()


def evaluate_split(
  loader: Loader, step: Callable, params: Any, partitioner: Partitioner, check: Callable[[], None] = lambda: None
) -> dict[str, float]:
  """The scores of a split, every example counted once: `loss`, those of its question, and `examples`, their number.

  Raises:
    UserError: the right answers are not known, or the loss is no number.
  """
  if not loader.question.answered:
    raise UserError("this split is published without labels, so it cannot be scored; fsb infer writes predictions")
  sums: dict[str, float] = {}
  weights: dict[str, float] = {}
  results = []
  for result in scored_batches(loader, step, params, partitioner, check):
    for name, value in result["sums"].items():
      sums[name] = sums.get(name, 0.0) + float(value)
      weights[name] = weights.get(name, 0.0) + float(result["term_weights"][name])
    results.append(result)
  loss = sum(value / max(weights[name], 1) for name, value in sums.items())
  if not np.isfinite(loss):
    raise UserError(f"the loss of this split is {loss}: the model's parameters or its inputs are broken")
  return {"loss": loss, "examples": loader.num_examples, **loader.question.scores(results, loss)}


def longest_row(feature_lengths: Mapping[str, int]) -> int:
  """The length asked for by TASK_FEATURE_LENGTHS; UserError where it is of another form."""
  length = feature_lengths.get("inputs") if isinstance(feature_lengths, Mapping) else None
  if not isinstance(length, int) or length < 1:
    raise UserError(f"TASK_FEATURE_LENGTHS must be {{'inputs': longest text in tokens}}, not {feature_lengths!r}")
  return length


def require_new_file(path: str | Path) -> Path:
  """`path` as a file that can be written; UserError where it exists or its folder does not."""
  path = Path(str(path)).expanduser()
  require_new(path)
  return path


def task_names(task: str) -> tuple[str, ...]:
  """The tasks to score one by one: a mixture's members, or the task itself."""
  return (tasks.info(task).members or (task,)) if task in tasks.names() else (task,)


def load_for_use(model: str | Path, partitioner: Partitioner, dtype: str, tokenizer: Any) -> tuple[Start, Any]:
  """A trained model and its parameters on the mesh."""
  run = models.Run(dtype=dtype, vocab_multiple=partitioner.vocab_multiple)
  start = start_from(
    checkpoint=model, model=None, tokenizer=find_tokenizer(tokenizer, model), head=None, label_names=None, run=run
  )
  boxed = models.abstract_params(start.model)
  partitioner.validate(boxed)
  return start, partitioner.put(start.params, partitioner.shardings(boxed))


def warnings_of(model: str | Path, task: str, split: str) -> list[str]:
  """What is known of rows of a split that a training run has seen; none for models from elsewhere."""
  folder = pretrained.find_folder(model)
  if not checkpoints.is_checkpoint(folder):
    return []
  store = checkpoints.CheckpointStore(checkpoints.home(folder))
  step = store.latest_step()
  if step is None or not store.has_progress(step):
    return []
  trained = store.progress(step)
  store.close()
  # Runs from before the split was recorded were trained on this one, unless told otherwise.
  trained_split = trained.get("split", "train")
  return [
    f"{model}: {overlap}"
    for each in task_names(trained["task"])
    for overlap in tasks.overlaps(each, trained_split, (task, split))
  ]


def load_split(task: str, split: str, tokenizer: Any, partitioner: Partitioner, batch_size: int, **options) -> Loader:
  """A loader of this process's rows; UserError where the mesh cannot split its batches."""
  # Rows of a batch that cannot be split are told below, in words.
  rows = partitioner.host_rows(batch_size) if batch_size % partitioner.batch_multiple == 0 else None
  loader = Loader(task, split, tokenizer, batch_size=batch_size, rows=rows, **options)
  partitioner.validate_batch(loader.batch_size, loader.buckets)
  return loader


def task_loader(task: str, split: str, start: Start, partitioner: Partitioner, **options) -> Loader:
  """A loader for scoring `start` on a split; UserError where model and task have different labels."""
  say(f"reading {task} {split}")
  # Of a kind of task that has several heads, the model's.
  head = start.metadata.head if start.metadata.head in (*TAGGERS, *SPAN_HEADS) else None
  loader = load_split(task, split, start.tokenizer, partitioner, shuffle=False, head=head, **options)
  multihost.require_equal(f"examples of {task} {split}", loader.digest)
  require_positions(start.config, loader.buckets[-1])
  if loader.head != start.metadata.head:
    also = "; VIEW='unimc' asks classes of a masked_lm" if start.metadata.head == "masked_lm" else ""
    raise UserError(f"the model has a {start.metadata.head} head, but task {task} is for {loader.head}{also}")
  if not loader.label_names:
    return loader
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
  cache_dir: str | None = None,
  view: str | None = None,
  output_file: str | None = None,
) -> dict[str, dict[str, float]]:
  """Scores a trained model on a split; prints a line per task and returns the numbers.

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
    cache_dir: read the tokens from there, where `fsb data cache` put them.
    view: "unimc" asks a classification or multiple choice as a question with options, of a model that learned to answer
      such; None as it is.
    output_file: also write the numbers there, as JSON; must not exist yet.

  Returns:
    {task: scores}, see `evaluate_split`.
  """
  target = require_new_file(output_file) if output_file else None
  length = longest_row(feature_lengths)
  partitioner = Partitioner(mesh, rules)
  start, params = load_for_use(model, partitioner, dtype, tokenizer)
  name = getattr(task, "name", task)
  step, results = None, {}
  for member in task_names(name):
    loader = task_loader(
      member, split, start, partitioner,
      max_length=length, batch_size=batch_size, buckets=buckets, data_dir=data_dir,
      cache_dir=cache_dir, view=view,
    )
    step = step or compiled_eval_step(start, partitioner, loader.objective)
    for warning in warnings_of(model, member, split):
      say(f"warning: {warning}")
    metrics = evaluate_split(loader, step, params, partitioner)
    results[member] = metrics
    if jax.process_index() == 0:
      print(describe(f"{member} {split}", metrics), flush=True)
  if target and jax.process_index() == 0:
    write_new(target, json.dumps(results, indent=2) + "\n")
    say(f"written to {target}")
  return results


def describe(what: str, metrics: Mapping[str, float]) -> str:
  """One line for people."""
  if "perplexity" in metrics:
    beside = f"perplexity {metrics['perplexity']:.2f}, {int(metrics['masked_tokens']):,} masked tokens"
  elif "exact_match" in metrics:
    beside = f"exact match {metrics['exact_match']:.4f}"
  elif "precision" in metrics:
    beside = f"precision {metrics['precision']:.4f}, recall {metrics['recall']:.4f}"
  else:
    beside = f"always the most common label: {metrics['majority_baseline']:.4f}"
  score = "accuracy" if "accuracy" in metrics else "f1"
  return (
    f"{what}: {score} {metrics[score]:.4f} ({beside}), loss {metrics['loss']:.4f}, "
    f"{int(metrics['examples']):,} examples"
  )
