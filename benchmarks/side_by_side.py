"""Callables measured side by side: in turn, round by round, on the same pinned cores of one process.

A machine's speed drifts, so only what ran in the same round is compared: a side's speed is the median over rounds of
the baseline's seconds over its own, printed with the quartiles. Call `pin_threads` before anything imports JAX, NumPy
or PyTorch.
"""

import dataclasses
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "diffusers", "datasets", "numpy")


def pin_threads(count: int) -> None:
  """Keeps this process and what it starts on `count` cores, with as many threads in every library's pool.

  XLA makes a pool of as many threads as the process has cores; the others read their number from the environment.
  """
  cores = sorted(os.sched_getaffinity(0))
  if count > len(cores):
    raise SystemExit(f"--threads {count}, but this process may run on {len(cores)} cores")
  os.sched_setaffinity(0, cores[:count])
  for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = str(count)


def prepare(threads: int) -> None:
  """`pin_threads`, PyTorch too; libraries quiet; freed memory kept, as `fsb` does, for both sides of the process."""
  pin_threads(threads)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import torch

  from fsb_jax.training.host_memory import keep_freed_memory

  torch.set_num_threads(threads)
  keep_freed_memory()
  logging.getLogger("absl").setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Seconds of every side, round by round.

  Attributes:
    title: what was measured.
    seconds: side -> seconds of each round; the round is the same in all sides.
    baseline: the side that the others are held against.
    work: what a call does, in `unit`s.
    unit: such as "examples".
  """

  title: str
  seconds: dict[str, list[float]]
  baseline: str
  work: float
  unit: str

  def ratios(self, side: str) -> list[float]:
    """How many times as fast as the baseline, round by round."""
    return [theirs / ours for theirs, ours in zip(self.seconds[self.baseline], self.seconds[side])]

  def table(self) -> str:
    """Median seconds, rate and ratio of each side, with the quartiles of seconds and ratios."""
    rows = [(self.title, "seconds", "quartiles", f"{self.unit}/s", f"speed / {self.baseline}", "quartiles")]
    for side, seconds in self.seconds.items():
      (low, middle, high), ratios = quartiles(seconds), quartiles(self.ratios(side))
      rows.append(
        (
          side, f"{middle:.4f}", f"{low:.4f}-{high:.4f}", f"{self.work / middle:.1f}",
          f"{ratios[1]:.3f}", f"{ratios[0]:.3f}-{ratios[2]:.3f}",
        )
      )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def compare(
  title: str,
  sides: Mapping[str, Callable[[], object]],
  *,
  baseline: str,
  rounds: int,
  warmup: int = 2,
  work: float = 1,
  unit: str = "calls",
) -> Comparison:
  """Calls every side once a round, every other round in the opposite order.

  Args:
    title: what is measured.
    sides: name -> a callable that returns when its work is done (not when it is queued).
    baseline: one of the names.
    rounds: measured rounds, at least 2.
    warmup: rounds before them, for compilation and caches.
    work: what a call does, in `unit`s.
    unit: such as "examples".
  """
  seconds: dict[str, list[float]] = {side: [] for side in sides}
  for round_ in range(-warmup, rounds):
    for side in sides if round_ % 2 == 0 else reversed(sides):
      start = time.perf_counter()
      sides[side]()
      elapsed = time.perf_counter() - start
      if round_ >= 0:
        seconds[side].append(elapsed)
  return Comparison(title, seconds, baseline, work, unit)


def quartiles(numbers: list[float]) -> tuple[float, float, float]:
  """The first quartile, the median and the third quartile."""
  low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
  return low, middle, high


def write_json(path: str | Path, comparisons: list[Comparison], **facts: object) -> None:
  """Writes every second measured, with the versions of the libraries and `facts`."""
  installed = {name: version for name in LIBRARIES if (version := _version(name))}
  record = {
    "python": platform.python_version(),
    "cores": len(os.sched_getaffinity(0)),
    "versions": installed,
    **facts,
    "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
  }
  Path(path).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None
