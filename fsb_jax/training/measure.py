"""What a run costs: step times, compilations, memory, share of the chip's peak."""

import resource
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fsb_jax.training.flops import peak_per_second

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
  """Counts this thread's XLA compilations (read from the cache or not) and their seconds, until `close`."""

  def __init__(self):
    self.count, self.seconds = 0, 0.0
    self._thread = threading.get_ident()
    jax.monitoring.register_event_duration_secs_listener(self._take)

  def _take(self, event: str, seconds: float, **_: Any) -> None:
    # Saving compiles in threads of its own.
    if event == _COMPILED and threading.get_ident() == self._thread:
      self.count += 1
      self.seconds += seconds

  def close(self) -> None:
    """Stops counting."""
    jax.monitoring.unregister_event_duration_listener(self._take)


class Window:
  """Metrics since the last report; they stay on the device until it is closed.

  Args:
    flops: batch length -> operations of one step at that length, None where they are not known.
  """

  def __init__(self, flops: Mapping[int, int] | None = None):
    self._flops = flops or {}
    self._compilations = Compilations()
    self._clear()

  def _clear(self) -> None:
    self._steps: list[dict[str, jax.Array]] = []
    self._operations = self._count = 0
    self._seconds = self._compile_seconds = self._waited = 0.0
    self.skip_time()

  def __len__(self) -> int:
    return len(self._steps)

  def add(self, metrics: dict[str, jax.Array], length: int, waited: float) -> None:
    """Takes in a step that was just started: its metrics, its batch's length, seconds spent waiting for the batch."""
    self._steps.append(metrics)
    self._operations += self._flops.get(length, 0)
    self._waited += waited
    self._take_time()

  def skip_time(self) -> None:
    """Leaves the time since the last step out of the rates: saving and scoring are no training."""
    self._since = time.monotonic(), self._compilations.count, self._compilations.seconds

  def _take_time(self) -> None:
    since, count, compile_seconds = self._since
    self.skip_time()
    self._count += self._since[1] - count
    self._compile_seconds += self._since[2] - compile_seconds
    self._seconds += self._since[0] - since - (self._since[2] - compile_seconds)

  def finish(self) -> None:
    """Stops counting compilations."""
    self._compilations.close()

  def close(self) -> tuple[list[dict[str, np.ndarray]], dict[str, float]]:
    """Waits for the steps taken in and starts anew.

    Returns:
      The metrics of each step, and of all together: means of `loss` and `gradient_norm` over the steps
      that count, rates, what was compiled meanwhile (not part of the rates), peak memory in bytes.
    """
    steps = jax.device_get(self._steps)
    self._take_time()
    seconds = self._seconds
    good = [step for step in steps if not step["bad"]] or steps
    metrics = {name: float(np.mean([step[name] for step in good])) for name in _MEANS}
    metrics |= {
      "skipped": float(sum(step["bad"] for step in steps)),
      "examples_per_second": float(sum(step["examples"] for step in steps)) / seconds,
      "tokens_per_second": float(sum(step["tokens"] for step in steps)) / seconds,
      "step_seconds": seconds / len(steps),
      "data_wait_share": self._waited / seconds,
      "compilations": self._count,
      "compile_seconds": self._compile_seconds,
      "peak_memory_bytes": peak_memory(),
    }
    peak = peak_per_second(jax.devices()[0])
    if self._operations and peak:
      metrics["flops_utilisation"] = self._operations / seconds / (peak * jax.device_count())
    self._clear()
    return steps, metrics


_MEANS = ("loss", "gradient_norm")


def peak_memory() -> int:
  """Most bytes in use so far: on the fullest of this process's devices, or of the process where those are CPUs."""
  statistics = [device.memory_stats() or {} for device in jax.local_devices()]
  if all("peak_bytes_in_use" in each for each in statistics):
    return max(each["peak_bytes_in_use"] for each in statistics)
  # In bytes on macOS, in KiB elsewhere.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
