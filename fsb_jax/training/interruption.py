"""SIGTERM and Ctrl-C while a run is under way: it saves and ends, all its processes at the same step."""

import itertools
import os
import signal

import jax
from jax.experimental import multihost_utils

from fsb_jax.errors import Stopped


class Interruption:
  """Catches the signals inside a `with`; a second Ctrl-C ends the process at once.

  Several processes agree on where to stop: JAX's preemption service takes SIGTERM to any of them to all.
  """

  # Over all runs of a process: the number at which all stop must not be behind some of them.
  _ticks = itertools.count(1)

  def __init__(self):
    self._signal: int | None = None
    self._before: dict[int, object] = {}

  def __enter__(self):
    # With several processes SIGTERM is the preemption service's own.
    for number in (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM):
      try:
        self._before[number] = signal.signal(number, self._take)
      except ValueError:
        break  # Not the main thread: signals are its caller's business.
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _take(self, number: int, frame) -> None:
    if self._signal is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._signal = number
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def check(self) -> None:
    """Raises `Stopped` where the run is to stop; all processes must call this equally often, after the same work."""
    if jax.process_count() > 1:
      if multihost_utils.reached_preemption_sync_point(next(self._ticks)):
        raise Stopped(self._signal or signal.SIGTERM)
    elif self._signal is not None:
      raise Stopped(self._signal)
