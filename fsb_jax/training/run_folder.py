"""What every kind of training run does with its folder, and tells before it begins."""

import contextlib
import fcntl
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax import checkpoints
from fsb_jax.errors import UserError
from fsb_jax.partitioning import multihost
from fsb_jax.training.loop import Loop
from fsb_jax.training.reporting import say
from fsb_jax.training.start import Start, training_item
from fsb_jax.training.step import TrainState

# Until a folder that was just made is seen everywhere: NFS remembers for a while what was not there.
_SEEN_SECONDS = 30
_SHARE = "let it be on a disk that all share"


def step_to_go_on_from(store: checkpoints.CheckpointStore) -> int:
  """The newest checkpoint's step, 0 where there is none; UserError where it is damaged, or the folder no run's."""
  step = store.latest_step()
  multihost.require_equal(f"checkpoints in MODEL_DIR {store.folder}", repr(step), _SHARE)
  if step is None:
    if not checkpoints.is_checkpoint(store.folder):
      checkpoints.require_empty(store.folder)
    return 0
  store.require_whole(step)
  if not store.has_progress(step):
    # A run there would delete the model in time, as the oldest of its checkpoints.
    raise UserError(
      f"MODEL_DIR {store.folder} holds a model, not a run; choose another folder, and name this one as "
      "INITIAL_CHECKPOINT_PATH to start from it"
    )
  return step


def wait_for(folder: Path) -> None:
  """Returns when the first process has made the folder; UserError where not all processes see it."""
  multihost.barrier("folder ready")
  path, deadline = folder / "metadata.json", time.monotonic() + _SEEN_SECONDS
  while not path.is_file() and time.monotonic() < deadline:
    time.sleep(0.1)
  text = path.read_text(encoding="utf-8") if path.is_file() else ""
  multihost.require_equal(f"files in MODEL_DIR {folder}", text, _SHARE)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
  """UserError where another run trains in `folder`, or it cannot be made; what it is in is made if it is missing."""
  if jax.process_index() != 0:
    yield
    return
  # Beside the folder, which must not exist before it can be filled as a whole.
  path = folder.parent / f".{folder.name}.lock"
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
  except OSError as error:
    raise UserError(f"MODEL_DIR {folder} cannot be made ({error.strerror}); choose another folder") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f"another run is training in MODEL_DIR {folder}; wait for it or choose another folder") from None
    except OSError as error:
      say(f"warning: the disk of MODEL_DIR {folder} has no locks ({error.strerror}); start no second run there")
    # The file stays: whoever has opened it and waits for the lock, and whoever makes it anew, would both get theirs.
    yield


def require_room(folder: Path, boxed: TrainState) -> None:
  """UserError where not even one checkpoint fits on the disk."""
  parts = jax.tree.leaves((boxed.model_params, training_item(boxed)))
  needed, free = sum(part.size * part.dtype.itemsize for part in parts), shutil.disk_usage(folder).free
  if free < needed:
    raise UserError(
      f"a checkpoint takes {needed / 2**30:.1f} GiB but the disk of MODEL_DIR {folder} has {free / 2**30:.1f} GiB free"
    )


def write_config(folder: Path, text: str | None, step: int | None) -> None:
  """Keeps the configuration as `config.gin`, and one that a run goes on with as `config-from-step-N.gin`."""
  first = folder / "config.gin"
  if text is None or jax.process_index() != 0 or (first.is_file() and first.read_text(encoding="utf-8") == text):
    return
  path = first if step is None else folder / f"config-from-step-{step}.gin"
  path.write_text(text, encoding="utf-8")


def require_same_order(store: checkpoints.CheckpointStore, step: int, order: Mapping[str, Any]) -> None:
  """UserError where a run would go on with other batches than it began with."""
  saved = store.progress(step)
  for name, value in order.items():
    # A checkpoint from before something was recorded is told apart by its examples.
    if saved.get(name, value) != value:
      raise UserError(
        f"MODEL_DIR {store.folder} holds a run with {name} {saved.get(name)}, this one has {value}; give the same or "
        "choose another folder"
      )


def run_to_the_end(
  loop: Loop, state: TrainState, start: Start, boxed: TrainState, first_step: int, explain: bool
) -> dict[str, float]:
  """Runs a loop from `state`, and closes what it writes to; see `Loop.run`.

  Args:
    loop: the loop.
    state: after `first_step` steps.
    start: what is trained.
    boxed: the state with logical names.
    first_step: steps that are done.
    explain: print what is split over what.
  """
  try:
    _introduce(loop, start, boxed, first_step, explain)
    last = loop.run(state)
    if first_step >= loop.train_steps:
      loop.progress.say(f"{loop.store.folder} already holds step {first_step}; nothing left to train")
    return last
  finally:
    loop.progress.close()
    loop.writer.close()
    # What is left to save is saved even after a mistake; but nobody waits for processes that are gone.
    if jax.process_count() == 1 or sys.exc_info()[0] is None:
      loop.store.close()


def _introduce(loop: Loop, start: Start, boxed: TrainState, first_step: int, explain: bool) -> None:
  """What is about to happen, before the first compilation."""
  progress, loader, partitioner = loop.progress, loop.loader, loop.partitioner
  count = sum(int(np.prod(box.shape)) for box in jax.tree.leaves(boxed.params))
  progress.say(f"{start.metadata.family} {start.metadata.head}: {count:,} parameters on mesh {partitioner.describe()}")
  if jax.process_count() > 1:
    progress.say(f"{jax.process_count()} processes, {jax.local_device_count()} devices each")
  if start.newly_initialised and first_step == 0:
    progress.say(f"newly initialised: {', '.join(start.newly_initialised)}")
  labels = f"{len(loader.label_names)} labels, " if loader.label_names else ""
  progress.say(
    f"{loader.num_examples:,} training examples, {sum(each.num_examples for each in loop.scored.values()):,} for "
    f"validation, {labels}batches of {loader.batch_size} at lengths {', '.join(map(str, loader.buckets))}"
  )
  if first_step:
    progress.say(f"going on from step {first_step}")
  if explain and jax.process_index() == 0:
    from rich.console import Console

    Console(file=sys.stderr).print(partitioner.explain(boxed.params))
