"""The training loop: steps, reports, checkpoints and evaluations, each when it is due, until the end or a signal."""

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import checkpoints
from fsb_jax.errors import Stopped, UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training import evaluate as evaluation
from fsb_jax.training.data import Loader
from fsb_jax.training.interruption import Interruption
from fsb_jax.training.measure import Window
from fsb_jax.training.reporting import MetricWriter, TrainProgress
from fsb_jax.training.scores import KIND, Scores
from fsb_jax.training.start import training_item
from fsb_jax.training.step import TrainState

# After so many bad batches in a row, skipping them is no help.
_TOO_MANY_BAD = 10
# Which steps of a run a profile shows: past the first ones, which compile.
_PROFILED = range(10, 15)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periods:
  """How often what happens, in steps.

  Attributes:
    log: a report.
    evaluate: scoring the validation split; None for only at the end.
    checkpoint: saving; None for only at the end.
    early_stop: end after so many evaluations without a better one; None for never.
  """

  log: int = 20
  evaluate: int | None = None
  checkpoint: int | None = 1000
  early_stop: int | None = None

  def __post_init__(self):
    for name, macro in (
      ("log", "LOG_PERIOD"), ("evaluate", "EVAL_PERIOD"), ("checkpoint", "CHECKPOINT_PERIOD"),
      ("early_stop", "EARLY_STOP"),
    ):
      require_count(macro, getattr(self, name), or_none=name != "log")
    if self.early_stop is not None and self.evaluate is None:
      raise UserError("EARLY_STOP counts evaluations; give EVAL_PERIOD too")


def require_count(macro: str, value: Any, or_none: bool = False) -> None:
  """UserError where a setting is not a whole number above 0."""
  if not (or_none and value is None) and (not isinstance(value, int) or value < 1):
    raise UserError(f"{macro} must be a whole number above 0{' or None' if or_none else ''}, not {value!r}")


@dataclasses.dataclass(kw_only=True)
class Loop:
  """What a run consists of once everything is read, checked and placed.

  Attributes:
    update: the compiled step, (state, batch) -> (state, metrics); takes the state over.
    score: the compiled eval step.
    norm: the compiled norm of all parameters.
    loader: the training split.
    scored: the splits to score, by task.
    order: what decides which examples a step sees, kept with every checkpoint.
    flops: batch length -> operations of a step.
    skip_bad_batches: go on after a batch that broke the loss.
    profile: a folder to write a trace into.
  """

  train_steps: int
  periods: Periods
  update: Callable
  score: Callable
  norm: Callable
  loader: Loader
  scored: Mapping[str, Loader]
  partitioner: Partitioner
  store: checkpoints.CheckpointStore
  writer: MetricWriter
  progress: TrainProgress
  scores: Scores
  order: Mapping[str, Any]
  learning_rate: Callable[[int], float] | None = None
  flops: Mapping[int, int] | None = None
  skip_bad_batches: bool = False
  profile: Path | None = None

  def run(self, state: TrainState) -> dict[str, float]:
    """Trains from `state` to the end.

    Returns:
      The last scores, or the last report's metrics where there is nothing to score.

    Raises:
      Stopped: a signal asked to stop; everything done is saved.
      UserError: a batch broke the loss, a checkpoint could not be written, another process is gone.
    """
    self._state = state
    self._step = self._saved = int(state.step)
    self._first_step, self._bad_in_a_row, self._last = self._step, 0, {}
    self._window = Window(self.flops)
    self._traced = None
    try:
      with _explained(self), Interruption() as self._interruption:
        try:
          self._train()
        except Stopped:
          self._finish()
          raise
        self._finish()
      return self.scores.at(self._step) or self._last
    finally:
      self._window.finish()
      self._end_trace()

  def _train(self) -> None:
    # Of a run that was killed between saving and scoring.
    if self._step and self._is_due(self.periods.evaluate) and self.scores.at(self._step) is None:
      self._evaluate()
    batches = self.loader.stream(self._step, self.train_steps)
    while self._step < self.train_steps and not self._stops_early():
      waited = self.loader.waited
      batch = next(batches)
      with self._trace():
        self._state, metrics = self.update(self._state, self.partitioner.shard_batch(batch))
      self._step += 1
      self._window.add(metrics, batch["input_ids"].shape[1], self.loader.waited - waited)
      saving = self._is_due(self.periods.checkpoint) or self._is_due(self.store.keep_every)
      if saving or self._is_due(self.periods.log):
        self._report()
      # Saved before it is scored: whatever happens there, the steps are not lost.
      if saving:
        self._save()
      if self._is_due(self.periods.evaluate):
        self._evaluate()
      self._interruption.check()
      self._window.skip_time()

  def _finish(self) -> None:
    """Saves what is not saved yet, and waits until it is on disk."""
    if self._step > self._saved:
      self._save()
    self.store.wait()

  def _is_due(self, period: int | None) -> bool:
    return self._step == self.train_steps or (period is not None and self._step % period == 0)

  def _stops_early(self) -> bool:
    patience = self.periods.early_stop
    if patience is None or self.scores.without_progress() < patience:
      return False
    best = self.scores.best_step()
    self.progress.say(f"stopped early at step {self._step}: nothing better than step {best} in {patience} evaluations")
    return True

  def _save(self) -> None:
    self._report()
    epoch, step = divmod(self._step, self.loader.steps_per_epoch())
    progress = {**self.order, "epoch": epoch, "step_of_epoch": step}
    self.store.save(self._step, self._state.model_params, training_item(self._state), progress)
    self._saved = self._step

  def _report(self) -> None:
    """Reports on the steps since the last time; UserError where one of them broke."""
    if not self._window:
      return
    steps, metrics = self._window.close()
    metrics["parameter_norm"] = float(self.norm(self._state.params))
    for step, values in enumerate(steps, start=self._step - len(steps) + 1):
      self._bad_in_a_row = self._bad_in_a_row + 1 if values["bad"] else 0
      if values["bad"]:
        self._tell_bad(step, values)
    if self.learning_rate is not None:
      # The optimizer counts the updates that were made.
      metrics["learning_rate"] = float(self.learning_rate(max(int(self._state.good_steps) - 1, 0)))
    self.writer.write(self._step, "train", metrics)
    self.progress.update(self._step, metrics)
    self._last = metrics

  def _tell_bad(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    epoch, step_of_epoch = divmod(step - 1, self.loader.steps_per_epoch())
    examples = [int(i) for i in self.loader.example_ids(epoch, step_of_epoch) if i >= 0]
    what = f"step {step}: loss {float(values['loss']):.4g}, gradient norm {float(values['gradient_norm']):.4g}"
    which = f"training examples {', '.join(map(str, examples))}"
    if self.skip_bad_batches and self._bad_in_a_row < _TOO_MANY_BAD:
      self.progress.say(f"skipped the batch of {what}; {which}")
      return
    self.store.wait()
    good = self.store.latest_step()
    raise UserError(
      f"training broke at {what}; {which}; "
      + (f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet")
      + "; lower LEARNING_RATE, look at these examples"
      + (" (too many to skip)" if self.skip_bad_batches else ", or set SKIP_BAD_BATCHES")
    )

  def _evaluate(self) -> None:
    """Scores the state; saves it where it is the best so far."""
    if not self.scored:
      return
    self._report()  # which tells what is wrong of a step that broke, and the scores would not
    every = []
    for name, loader in self.scored.items():
      metrics = evaluation.evaluate_split(
        loader, self.score, self._state.model_params, self.partitioner, self._interruption.check
      )
      every.append(metrics)
      if len(self.scored) > 1:
        self.writer.write(self._step, f"{KIND}/{name}", metrics)
      self.progress.say(f"step {self._step}: " + evaluation.describe(f"{name} validation", metrics))
    mean = {name: float(np.mean([each[name] for each in every])) for name in every[0]}
    self.scores.add(self._step, mean)
    self.writer.write(self._step, KIND, mean)
    if self.scores.best_step() == self._step and self._saved != self._step:
      self._save()
    self.store.keep_best(self.scores.best_step())

  @contextlib.contextmanager
  def _trace(self):
    """Marks the step for a profile, and writes the profile once its steps are done."""
    number = self._step - self._first_step
    if self.profile is None or number not in _PROFILED:
      yield
      return
    if number == _PROFILED[0]:
      jax.profiler.start_trace(self.profile)
      self._traced = False
    with jax.profiler.StepTraceAnnotation("train", step_num=self._step + 1):
      yield
    if number == _PROFILED[-1]:
      self._report()  # waits for the steps
      self._end_trace()

  def _end_trace(self) -> None:
    """Writes the profile that was begun, and tells where there is none."""
    if self.profile is None or self._traced:
      return
    if self._traced is None:
      first, last = _PROFILED[0] + 1, _PROFILED[-1] + 1
      self.progress.say(f"no profile was written: it is of steps {first} to {last} after the start, which never came")
      return
    jax.profiler.stop_trace()
    self._traced = True
    self.progress.say(f"profile written; tensorboard --logdir {self.profile} shows it")


@contextlib.contextmanager
def _explained(loop: Loop):
  """Turns what the machine does to a run into a sentence."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = " ".join(str(error).split())[:300]
    if "RESOURCE_EXHAUSTED" in reason:
      raise UserError(
        f"out of memory at step {loop._step + 1}: raise MICROBATCHES, lower BATCH_SIZE or set REMAT ({reason})"
      ) from error
    if jax.process_count() > 1:
      raise UserError(
        f"process {jax.process_index()} ends at step {loop._step + 1}: another process of the run is gone ({reason}); "
        "start all of them again with the same command, they go on from the newest checkpoint"
      ) from error
    raise
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
      raise
    raise UserError(
      f"{loop.store.folder} cannot be written to at step {loop._step} ({error.strerror}); make room, then give the "
      "same command"
    ) from error
