"""One life of a training run in a process of its own; tests start it, kill it, and start it again.

Usage: python lived_run.py FOLDER '{"steps": 60, ...}'. FOLDER/run is the run, beside what
`tiny_run.make_inputs` makes. With `processes` and `index` it is one of several processes.
"""

import json
import os
import sys
from pathlib import Path


def live(folder: Path, options: dict) -> dict[str, float]:
  """Trains until the end, or until it is killed."""
  from tiny_run import run

  from fsb_jax import tasks
  from fsb_jax.training import evaluate
  from fsb_jax.training.levers import Levers
  from fsb_jax.training.loop import Periods
  from fsb_jax.training.optimizers import adamw, schedule
  from fsb_jax.training.start import SizedModel

  note_phases(folder, options.get("index", 0), evaluate)
  table = tasks.table_task("reviews", {split: folder / f"{split}.csv" for split in ("train", "validation")}, "text")
  rate = schedule(learning_rate=1e-3, train_steps=options["rate_steps"], warmup_ratio=0.1)
  return run(
    folder / options.get("name", "run"), table, str(folder / "tokenizer"), options["steps"],
    model=SizedModel("bert", "tiny"), batch_size=16, optimizer=adamw(learning_rate=rate), learning_rate=rate, buckets=2,
    periods=Periods(**options.get("periods", {})), levers=Levers(**options.get("levers", {})),
    mesh=options.get("mesh"), keep_checkpoints=options.get("keep", 2), config_text="# one\n",
  )


def note_phases(folder: Path, index: int, evaluate) -> None:
  """Keeps FOLDER/phase-INDEX saying what the run is doing, so that a test knows where a kill has hit."""
  from fsb_jax import checkpoints

  state = {"save": 0, "seal": 0, "eval": 0}
  file = os.open(folder / f"phase-{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

  def noted(function, phase):
    def call(*arguments, **more):
      state[phase] += 1
      os.pwrite(file, json.dumps(state).ljust(64).encode(), 0)
      try:
        return function(*arguments, **more)
      finally:
        state[phase] -= 1
        os.pwrite(file, json.dumps(state).ljust(64).encode(), 0)

    return call

  store = checkpoints.CheckpointStore
  store.save, store._finish = noted(store.save, "save"), noted(store._finish, "seal")
  evaluate.evaluate_split = noted(evaluate.evaluate_split, "eval")


def main() -> None:
  folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
  # Compiled as all tests are, on as many devices as asked for: of a flag given twice the last counts.
  devices = f"--xla_force_host_platform_device_count={options.get('devices', 1)}"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import jax

  jax.config.update("jax_compilation_cache_dir", str(folder / "compilations"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  if "processes" in options:
    from fsb_jax.partitioning import multihost

    multihost.initialise(options["coordinator"], options["processes"], options["index"])
  import logging

  logging.getLogger("absl").setLevel(logging.CRITICAL)
  print(json.dumps(live(folder, options)))


if __name__ == "__main__":
  from fsb_jax import cli

  # As the command line ends: mistakes and signals as sentences and exit statuses.
  cli.ended_well(main)
