"""Training from a gin file: read everything and check it, place the state on the mesh, then the loop."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fsb_jax import checkpoints, models, tasks
from fsb_jax.encodings import save_tokenizer
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner, multihost
from fsb_jax.training import evaluate as evaluation
from fsb_jax.training.data import Loader
from fsb_jax.training.flops import matmul_flops, peak_per_second
from fsb_jax.training.levers import Levers
from fsb_jax.training.loop import Loop, Periods, require_count
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.reporting import MetricWriter, TrainProgress, say
from fsb_jax.training.run_folder import (
  only_run_in,
  require_room,
  require_same_order,
  run_to_the_end,
  step_to_go_on_from,
  wait_for,
  write_config,
)
from fsb_jax.training.scores import KIND, Scores, read_metrics
from fsb_jax.training.seeds import require_seed, train_seeds
from fsb_jax.training.start import (
  SizedModel,
  Start,
  find_tokenizer,
  place,
  require_positions,
  restore,
  resume_from,
  start_from,
)
from fsb_jax.training.step import Update, abstract_state, global_norm


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
  head: str | None = None,
  feature_lengths: Mapping[str, int] = {"inputs": 128},
  dropout_rate: float | None = None,
  microbatches: int = 1,
  buckets: int | tuple[int, ...] = 4,
  eval_batch_size: int | None = None,
  periods: Periods | None = None,
  keep_checkpoints: int | None = 2,
  keep_every: int | None = None,
  best_metric: str | None = None,
  levers: Levers | None = None,
  run: models.Run | None = None,
  mesh: Mapping[str, int] | None = None,
  rules: Mapping[str, Any] | None = None,
  seed: int | Sequence[int] = 0,
  data_dir: str | None = None,
  cache_dir: str | None = None,
  train_split: str = "train",
  validation_split: str = "validation",
  mixture_rate: Callable[..., float] | None = None,
  view: str | None = None,
  explain_partitioning: bool = False,
  profile: bool = False,
  config_text: str | None = None,
) -> dict[str, float]:
  """Trains a model on a task; a run that was interrupted goes on from its newest checkpoint.

  Args:
    model_dir: where checkpoints, metrics, the tokenizer and the gin config go. Processes that train together share it.
    task: name of a task or mixture, or a task from `tasks.table_task`; it decides the head, but
      for `head`.
    train_steps: updates in all.
    batch_size: examples per update, over all devices.
    optimizer: an optax transformation.
    learning_rate: its schedule, for the log.
    initial_checkpoint_path: Hub folder, Hub id or folder of ours to start from.
    model: a size to train from scratch instead.
    tokenizer: a tokenizer or its folder, where it is not the checkpoint's.
    head: to train, where the task may be for several: "token_classification" (the usual one), "crf", "span" or
      "biaffine" of named entities.
    feature_lengths: {"inputs": longest text in tokens}.
    dropout_rate: replaces the config's dropout.
    microbatches: parts a batch is cut into to save memory.
    buckets: how many lengths batches may have, or the lengths.
    eval_batch_size: examples at a time when scoring; `batch_size` if not given.
    periods: how often to report, score and save.
    keep_checkpoints: how many of the newest stay; the best one always does.
    keep_every: also save and keep every so many steps.
    best_metric: what of the validation scores makes a step the best; accuracy, the f1 of a tagger, or the loss of a
      language model, if not given.
    levers: what differs from a plain update.
    run: dtypes, scan, remat, attention.
    mesh: sizes of the mesh axes.
    rules: changes to the partitioning rules.
    seed: of data order, dropout and fresh weights. Several make one run each, in folders `seed-N` of `model_dir`.
    data_dir: where data lies; FSB_DATA_DIR if not given.
    cache_dir: read the tokens from there, where `fsb data cache` put them.
    train_split: the split to train on.
    validation_split: the split to score on, where the task has it.
    mixture_rate: the rate at which a mixture's task is taken, see `Loader`; the mixture's own if not given.
    view: "unimc" makes a classification a question with options, which a masked language model learns to answer; None
      leaves it one.
    explain_partitioning: print what is split over what.
    profile: write a trace of a few steps for TensorBoard.
    config_text: the gin configuration, kept as `config.gin` in the folder.

  Returns:
    The last metrics: those of the validation split where the task has one, else of the last report. With several
    seeds their means.

  Raises:
    UserError: a mistake, told before the work starts; or a run that cannot go on.
    Stopped: SIGTERM or Ctrl-C; everything done is saved.
  """
  if not isinstance(seed, int):
    return train_seeds(train, seed, dict(locals()))
  require_seed(seed)
  for macro, value in (("TRAIN_STEPS", train_steps), ("BATCH_SIZE", batch_size), ("MICROBATCHES", microbatches)):
    require_count(macro, value)
  require_count("EVAL_BATCH_SIZE", eval_batch_size, or_none=True)
  periods, levers, run = periods or Periods(), levers or Levers(), run or models.Run()
  if run.dtype == "float16":
    raise UserError("DTYPE float16 loses small gradients in training; use bfloat16")
  partitioner = Partitioner(mesh, rules)
  if batch_size % (microbatches * partitioner.batch_multiple):
    raise UserError(
      f"BATCH_SIZE {batch_size} cannot be cut into {microbatches} microbatches over {partitioner.batch_multiple} parts "
      f"(mesh {partitioner.describe()}); make it a multiple of {microbatches * partitioner.batch_multiple}"
    )
  folder = Path(str(model_dir)).expanduser()
  store = checkpoints.CheckpointStore(folder, keep_checkpoints, keep_every)
  first_step = step_to_go_on_from(store)
  tokenizer = find_tokenizer(tokenizer, folder if first_step else initial_checkpoint_path)
  loader, scored = _loaders(
    task, tokenizer, partitioner, batch_size, eval_batch_size or batch_size, seed=seed, buckets=buckets,
    max_length=evaluation.longest_row(feature_lengths), data_dir=data_dir, cache_dir=cache_dir,
    train_split=train_split, validation_split=validation_split, mixture_rate=mixture_rate, view=view, head=head,
  )
  if not scored and (periods.early_stop or best_metric):
    raise UserError(
      f"EARLY_STOP and BEST_METRIC need scores, but {getattr(task, 'name', task)} has no split {validation_split!r}; "
      "name one as VALIDATION_SPLIT, or set both to None"
    )
  known = "loss", *loader.question.score_names
  if best_metric is not None and best_metric not in known:
    raise UserError(f"BEST_METRIC {best_metric!r} is no score of this task; it has {', '.join(known)}")
  run = dataclasses.replace(run, vocab_multiple=partitioner.vocab_multiple)
  what = dict(model=model, tokenizer=tokenizer, head=loader.head, label_names=loader.label_names or None, run=run)
  if first_step:
    start = resume_from(folder, **what, dropout_rate=dropout_rate)
  else:
    start = start_from(checkpoint=initial_checkpoint_path, **what, dropout_rate=dropout_rate)
  for each in (loader, *scored.values()):
    require_positions(start.config, each.buckets[-1])
  update = Update(start.model, OBJECTIVES[loader.objective], optimizer, microbatches=microbatches, levers=levers)
  boxed = abstract_state(update)
  partitioner.validate(boxed.params)
  # What decides which examples a step sees; a run that goes on must have the same.
  order = {
    "task": getattr(task, "name", task), "split": train_split, "seed": seed, "batch_size": batch_size,
    "buckets": list(loader.buckets), "training examples (sha256)": loader.digest,
  }
  multihost.require_equal("training or validation examples", repr([each.digest for each in (loader, *scored.values())]))
  multihost.require_equal("settings", repr((config_text, order, train_steps, partitioner.describe(), periods, levers)))
  with only_run_in(folder):
    if first_step:
      require_same_order(store, first_step, order)
      write_config(folder, config_text, first_step)
    else:
      _describe_run(folder, start, config_text)
    wait_for(folder)
    require_room(folder, boxed)
    rows = read_metrics(folder / "metrics.jsonl", first_step)
    scores = Scores(
      best_metric or loader.question.best_in,
      [_scores_of(row) for row in rows if row["kind"] == KIND],
    )
    multihost.barrier("metrics read")
    store.clean()
    store.keep_best(scores.best_step())
    state = restore(store, first_step, update, partitioner) if first_step else place(start, update, partitioner, seed)
    progress, writer = TrainProgress(first_step, train_steps), MetricWriter(folder, first_step, rows)
    loop = Loop(
      train_steps=train_steps, periods=periods, loader=loader, scored=scored, partitioner=partitioner, store=store,
      writer=writer, progress=progress, scores=scores, order=order, learning_rate=learning_rate,
      update=partitioner.jit(
        update, out_shardings=(partitioner.shardings(boxed), partitioner.replicated), donate_argnums=0
      ),
      score=evaluation.compiled_eval_step(start, partitioner, loader.objective),
      norm=partitioner.jit(global_norm, out_shardings=partitioner.replicated),
      flops=_flops(start, loader),
      skip_bad_batches=levers.skip_bad_batches,
      profile=folder / "tensorboard" if profile else None,
    )
    return run_to_the_end(loop, state, start, boxed, first_step, explain_partitioning)


def _loaders(
  task: Any, tokenizer: Any, partitioner: Partitioner, batch_size: int, eval_batch_size: int, *,
  seed: int, train_split: str, validation_split: str, mixture_rate: Callable[..., float] | None, **options,
) -> tuple[Loader, dict[str, Loader]]:
  """The loader of the training split, and of every validation split by task."""
  name = getattr(task, "name", task)
  say(f"reading {name}")
  loader = evaluation.load_split(
    name, train_split, tokenizer, partitioner, batch_size, shuffle=True, seed=seed, mixture_rate=mixture_rate, **options
  )
  for overlap in (found for each in evaluation.task_names(name) for found in tasks.overlaps(each, train_split)):
    say(f"warning: {overlap}")
  scored = {
    each: evaluation.load_split(
      each, validation_split, tokenizer, partitioner, eval_batch_size, shuffle=False, **options
    )
    for each in evaluation.task_names(name)
    if _has_split(each, validation_split)
  }
  if not loader.question.answered:
    raise UserError(f"{name}'s split {train_split!r} is published without labels, so there is nothing to learn of it")
  for each, other in scored.items():
    if not other.question.answered:
      raise UserError(
        f"{each}'s split {validation_split!r} is published without labels, so it cannot be scored; name another as "
        "VALIDATION_SPLIT"
      )
  if len(loader.label_names) == 1:
    raise UserError(f"task {name} has the one label {loader.label_names[0]}; a classifier needs two")
  return loader, scored


def _has_split(task_name: str, split: str) -> bool:
  import seqio

  return split in seqio.get_mixture_or_task(task_name).splits


def _flops(start: Start, loader: Loader) -> dict[int, int] | None:
  """Operations of a step by batch length: three times those of the forward pass; None where the peak is unknown."""
  if peak_per_second(jax.devices()[0]) is None:
    return None

  def forward(params, inputs):
    return start.model.apply({"params": params}, **inputs)

  params = models.abstract_params(start.model)
  names, operations = models.input_names(start.model), {}
  for length in loader.buckets:
    shapes = {name: shape for name, shape in loader.shapes(length).items() if name in names}
    inputs = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    operations[length] = 3 * matmul_flops(forward, params, inputs)
  return operations


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
    # Nothing was learned yet: the tokenizer and the source are those of the run that begins now.
    save_tokenizer(start.tokenizer, folder)
    checkpoints.write_metadata(folder, start.metadata, start.hf_config)
    write_config(folder, config_text, 0)
    return
  with checkpoints.new_folder(folder) as unfinished:
    save_tokenizer(start.tokenizer, unfinished)
    write_config(unfinished, config_text, None)
    checkpoints.write_metadata(unfinished, start.metadata, start.hf_config)


def _scores_of(row: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in row.items() if name != "kind"}
