"""Training from a gin file: read everything and check it, place the state on the mesh, then the loop."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fsb_jax import checkpoints, models
from fsb_jax.encodings import save_tokenizer
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training import evaluate as evaluation
from fsb_jax.training.data import Loader
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.reporting import MetricWriter, TrainProgress, say
from fsb_jax.training.start import (
  SizedModel,
  Start,
  abstract_state,
  find_tokenizer,
  place,
  require_positions,
  resume_from,
  start_from,
)
from fsb_jax.training.step import TrainState, train_step


def train(
  *,
  model_dir: str,
  task: Any,
  train_steps: int,
  batch_size: int,
  optimizer: optax.GradientTransformation,
  learning_rate: Callable[[int], float] | None = None,
  initial_checkpoint_path: str | None = None,
  model: SizedModel | None = None,
  tokenizer: Any = None,
  feature_lengths: Mapping[str, int] = {"inputs": 128},
  dropout_rate: float | None = None,
  microbatches: int = 1,
  buckets: int | tuple[int, ...] = 4,
  eval_batch_size: int | None = None,
  eval_period: int | None = None,
  checkpoint_period: int | None = 1000,
  keep_checkpoints: int | None = 2,
  log_period: int = 20,
  run: models.Run | None = None,
  mesh: Mapping[str, int] | None = None,
  rules: Mapping[str, Any] | None = None,
  seed: int = 0,
  data_dir: str | None = None,
  explain_partitioning: bool = False,
  config_text: str | None = None,
) -> dict[str, float]:
  """Trains a classifier; a run that was interrupted goes on from its newest checkpoint.

  Args:
    model_dir: where checkpoints, metrics, the tokenizer and the gin config go.
    task: name of a task or mixture, or a task from `tasks.table_task`.
    train_steps: updates in all.
    batch_size: examples per update, over all devices.
    optimizer: an optax transformation.
    learning_rate: its schedule, for the log.
    initial_checkpoint_path: Hub folder, Hub id or folder of ours to start from.
    model: a size to train from scratch instead.
    tokenizer: a tokenizer or its folder, where it is not the checkpoint's.
    feature_lengths: {"inputs": longest text in tokens}.
    dropout_rate: replaces the config's dropout.
    microbatches: parts a batch is cut into to save memory.
    buckets: how many lengths batches may have, or the lengths.
    eval_batch_size: examples at a time when scoring; `batch_size` if not given.
    eval_period: score the validation split every so many steps; only at the end if not given.
    checkpoint_period: save every so many steps; only at the end if not given.
    keep_checkpoints: how many of the newest stay.
    log_period: report every so many steps.
    run: dtypes, scan, remat, attention.
    mesh: sizes of the mesh axes.
    rules: changes to the partitioning rules.
    seed: of data order, dropout and fresh weights.
    data_dir: where data lies; FSB_DATA_DIR if not given.
    explain_partitioning: print what is split over what.
    config_text: the gin configuration, kept as `config.gin` in the folder.

  Returns:
    The last metrics: those of the validation split where the task has one, else the training loss.
  """
  _require_counts(TRAIN_STEPS=train_steps, BATCH_SIZE=batch_size, MICROBATCHES=microbatches, LOG_PERIOD=log_period)
  _require_counts(
    or_none=True, EVAL_BATCH_SIZE=eval_batch_size, EVAL_PERIOD=eval_period, CHECKPOINT_PERIOD=checkpoint_period,
    KEEP_CHECKPOINTS=keep_checkpoints,
  )
  run = run or models.Run()
  if run.dtype == "float16":
    raise UserError("DTYPE float16 loses small gradients in training; use bfloat16")
  partitioner = Partitioner(mesh, rules)
  if batch_size % (microbatches * partitioner.batch_multiple):
    raise UserError(
      f"BATCH_SIZE {batch_size} cannot be cut into {microbatches} microbatches over {partitioner.batch_multiple} parts "
      f"(mesh {partitioner.describe()}); make it a multiple of {microbatches * partitioner.batch_multiple}"
    )
  folder = Path(str(model_dir)).expanduser()
  store = checkpoints.CheckpointStore(folder, keep_checkpoints) if checkpoints.is_checkpoint(folder) else None
  resuming = store is not None and store.latest_step() is not None
  tokenizer = find_tokenizer(tokenizer, folder if resuming else initial_checkpoint_path)
  task_name = getattr(task, "name", task)
  options = dict(
    max_length=evaluation.longest_row(feature_lengths), buckets=buckets, data_dir=data_dir,
    process_index=jax.process_index(), process_count=jax.process_count(),
  )
  say(f"reading {task_name}")
  loader = Loader(task_name, "train", tokenizer, batch_size=batch_size, shuffle=True, seed=seed, **options)
  scored = {
    name: Loader(name, "validation", tokenizer, batch_size=eval_batch_size or batch_size, shuffle=False, **options)
    for name in evaluation.task_names(task_name)
    if _has_split(name, "validation")
  }
  if len(loader.label_names) < 2:
    raise UserError(f"task {task_name} has the one label {loader.label_names[0]}; a classifier needs two")
  for each in (loader, *scored.values()):
    partitioner.validate_batch(each.batch_size, each.buckets)
  run = dataclasses.replace(run, vocab_multiple=partitioner.vocab_multiple)
  if resuming:
    start = resume_from(folder, model, tokenizer, loader.label_names, run, dropout_rate)
  else:
    start = start_from(
      checkpoint=initial_checkpoint_path, model=model, tokenizer=tokenizer, head="sequence_classification",
      label_names=loader.label_names, run=run, dropout_rate=dropout_rate,
    )
  for each in (loader, *scored.values()):
    require_positions(start.config, each.buckets[-1])
  boxed = abstract_state(start.model, optimizer)
  partitioner.validate(boxed.params)
  # What decides which examples a step sees; a run that goes on must have the same.
  order = {"task": task_name, "seed": seed, "batch_size": batch_size, "buckets": list(loader.buckets)}
  if resuming:
    _require_same_order(store, order)
    _write_config(folder, config_text, store.latest_step())
  else:
    _describe_run(folder, start, config_text)
    store = checkpoints.CheckpointStore(folder, keep_checkpoints)
  state = _first_or_saved_state(store, start, optimizer, partitioner, boxed, seed)
  first_step = int(state.step)
  step_function = partitioner.jit(
    train_step(start.model, OBJECTIVES[start.metadata.head], optimizer, seed=seed, microbatches=microbatches),
    out_shardings=(partitioner.shardings(boxed), partitioner.replicated),
    donate_argnums=0,
  )
  eval_function = evaluation.compiled_eval_step(start, partitioner)
  progress, writer = TrainProgress(first_step, train_steps), MetricWriter(folder)

  def report(step: int, metrics: dict[str, float]) -> None:
    if learning_rate is not None:
      metrics["learning_rate"] = float(learning_rate(step - 1))
    writer.write(step, "train", metrics)
    progress.update(step, metrics)
    if not np.isfinite(metrics["loss"]):
      raise UserError(f"the loss became {metrics['loss']} at or before step {step}; lower LEARNING_RATE")

  def score(step: int, params: Any) -> dict[str, float]:
    metrics = {}
    for name, eval_loader in scored.items():
      metrics = evaluation.evaluate_split(eval_loader, eval_function, params, partitioner)
      writer.write(step, f"eval/{name}" if len(scored) > 1 else "eval", metrics)
      progress.say(f"step {step}: " + evaluation.describe(f"{name} validation", metrics))
    return metrics

  try:
    _introduce(progress, start, partitioner, loader, scored, boxed, first_step, explain_partitioning)
    last: dict[str, float] = {}
    window = _Window()
    for step, batch in enumerate(_stream(loader, first_step, train_steps), start=first_step + 1):
      state, metrics = step_function(state, partitioner.shard_batch(batch))
      window.add(metrics)
      done = step == train_steps
      saving = done or _is_due(step, checkpoint_period)
      if saving or _is_due(step, log_period):
        last = window.close()
        report(step, last)
      # Saved before it is scored: whatever happens there, the steps are not lost.
      if saving:
        store.save(step, state.params, state.optimizer, order)
      if done:
        store.wait()
      if done or _is_due(step, eval_period):
        last = score(step, state.params) or last
      window.skip_time()
    if not last:
      progress.say(f"{folder} already holds step {train_steps}; nothing left to train")
    return last
  finally:
    progress.close()
    writer.close()
    store.close()


def _is_due(step: int, period: int | None) -> bool:
  return period is not None and step % period == 0


def _require_counts(or_none: bool = False, **counts: Any) -> None:
  """UserError where one of the settings is not a whole number above 0."""
  for name, value in counts.items():
    if not (or_none and value is None) and (not isinstance(value, int) or value < 1):
      raise UserError(f"{name} must be a whole number above 0{' or None' if or_none else ''}, not {value!r}")


class _Window:
  """Metrics since the last report; they stay on the device until then."""

  def __init__(self):
    self._metrics: list[dict[str, jax.Array]] = []
    self._seconds = 0.0
    self._since = time.monotonic()

  def add(self, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was just started."""
    self._metrics.append(metrics)
    self._seconds += time.monotonic() - self._since
    self.skip_time()

  def skip_time(self) -> None:
    """Leaves the time since the last step out of the rates: saving and scoring are no training."""
    self._since = time.monotonic()

  def close(self) -> dict[str, float]:
    """The means and rates of the steps taken in, once they are done; starts anew."""
    values = jax.device_get(self._metrics)
    seconds = self._seconds + time.monotonic() - self._since
    self.__init__()
    return {
      "loss": float(np.mean([v["loss"] for v in values])),
      "gradient_norm": float(np.mean([v["gradient_norm"] for v in values])),
      "examples_per_second": float(sum(v["examples"] for v in values)) / seconds,
      "tokens_per_second": float(sum(v["tokens"] for v in values)) / seconds,
      "step_seconds": seconds / len(values),
    }


def _stream(loader: Loader, first_step: int, last_step: int) -> Iterator[Mapping[str, np.ndarray]]:
  """Batches from `first_step` to `last_step`, epoch after epoch."""
  epoch, step = 0, 0
  while step < last_step:
    length = loader.steps_per_epoch(epoch)
    if step + length > first_step:
      skipped = max(first_step - step, 0)
      for number, batch in enumerate(loader.batches(epoch, skipped), start=step + skipped):
        if number >= last_step:
          return
        yield batch
    step, epoch = step + length, epoch + 1


def _has_split(task_name: str, split: str) -> bool:
  import seqio

  return split in seqio.get_mixture_or_task(task_name).splits


def _describe_run(folder: Path, start: Start, config_text: str | None) -> None:
  """Makes the run's folder, whole or not at all; one that was made but has no checkpoint yet is made again."""
  if jax.process_index() != 0:
    return
  if checkpoints.is_checkpoint(folder):
    metadata, hf_config = checkpoints.read_metadata(folder)
    if (metadata.family, metadata.label_names, hf_config) != (
      start.metadata.family, start.metadata.label_names, start.hf_config
    ):
      raise UserError(f"MODEL_DIR {folder} was begun for another model or task; choose another or remove it")
    _write_config(folder, config_text, 0)
    return
  with checkpoints.new_folder(folder) as unfinished:
    save_tokenizer(start.tokenizer, unfinished)
    _write_config(unfinished, config_text, None)
    checkpoints.write_metadata(unfinished, start.metadata, start.hf_config)


def _write_config(folder: Path, text: str | None, step: int | None) -> None:
  """Keeps the configuration as `config.gin`, and one that a run goes on with as `config-from-step-N.gin`."""
  first = folder / "config.gin"
  if text is None or jax.process_index() != 0 or (first.is_file() and first.read_text(encoding="utf-8") == text):
    return
  path = first if step is None else folder / f"config-from-step-{step}.gin"
  path.write_text(text, encoding="utf-8")


def _require_same_order(store: checkpoints.CheckpointStore, order: Mapping[str, Any]) -> None:
  """UserError where a run would go on with other batches than it began with."""
  saved = store.progress(store.latest_step())
  for name, value in order.items():
    if saved.get(name) != value:
      raise UserError(
        f"MODEL_DIR {store.folder} holds a run with {name} {saved.get(name)}, this one has {value}; give the same or "
        "choose another folder"
      )


def _first_or_saved_state(store, start, optimizer, partitioner, boxed: TrainState, seed: int) -> TrainState:
  saved = store.latest_step()
  if saved is None:
    return place(start, optimizer, partitioner, seed)
  shardings = partitioner.shardings(boxed)
  return TrainState(
    step=jax.device_put(np.int32(saved), partitioner.replicated),
    params=store.restore(saved, "params", boxed.params, shardings.params),
    optimizer=store.restore(saved, "optimizer", boxed.optimizer, shardings.optimizer),
  )


def _introduce(progress, start, partitioner, loader, scored, boxed, first_step, explain) -> None:
  """What is about to happen, before the first compilation."""
  count = sum(int(np.prod(box.shape)) for box in jax.tree.leaves(boxed.params))
  progress.say(f"{start.metadata.family} {start.metadata.head}: {count:,} parameters on mesh {partitioner.describe()}")
  if start.newly_initialised and first_step == 0:
    progress.say(f"newly initialised: {', '.join(start.newly_initialised)}")
  progress.say(
    f"{loader.num_examples:,} training examples, {sum(each.num_examples for each in scored.values()):,} for "
    f"validation, {len(loader.label_names)} labels, batches of {loader.batch_size} at lengths "
    + ", ".join(map(str, loader.buckets))
  )
  if first_step:
    progress.say(f"going on from step {first_step}")
  if explain and jax.process_index() == 0:
    from rich.console import Console

    Console(file=sys.stderr).print(partitioner.explain(boxed.params))
