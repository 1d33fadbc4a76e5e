"""Where a run's numbers go: a JSON-lines file, TensorBoard, and a progress line for people."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax


def say(text: str) -> None:
  """A line for the person watching, from the first process only; standard output stays for results."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


class MetricWriter:
  """Appends metrics to `FOLDER/metrics.jsonl` and to TensorBoard's event files; only the first process writes."""

  def __init__(self, folder: Path):
    import tensorflow as tf

    self._file = None
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
      self._events = tf.summary.create_file_writer(str(folder / "tensorboard"))
      self._scalar = tf.summary.scalar

  def write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
    """Records numbers of `kind` ("train", "eval", ...) at `step`."""
    if self._file is None:
      return
    self._file.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
    self._file.flush()
    with self._events.as_default():
      for name, value in metrics.items():
        self._scalar(f"{kind}/{name}", value, step=step)
    self._events.flush()

  def close(self) -> None:
    """Closes the files."""
    if self._file is not None:
      self._file.close()
      self._events.close()


class TrainProgress:
  """A live line on a terminal (loss, examples/s, tokens/s, step time, time left), plain lines elsewhere."""

  def __init__(self, first_step: int, last_step: int):
    self._first, self._last = first_step, last_step
    self._start = time.monotonic()
    self._live = None
    if jax.process_index() == 0 and sys.stderr.isatty():
      from rich.console import Console

      # A status wraps where the terminal is narrow; a progress bar would cut the numbers off.
      self._live = Console(stderr=True, highlight=False).status(f"step {first_step}/{last_step} · compiling")
      self._live.start()

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the metrics of the steps up to `step`."""
    done = max(step - self._first, 1)
    left = (time.monotonic() - self._start) / done * (self._last - step)
    text = (
      f"step {step}/{self._last} · loss {metrics['loss']:.4f} · {metrics['examples_per_second']:,.0f} examples/s · "
      f"{metrics['tokens_per_second']:,.0f} tokens/s · {metrics['step_seconds'] * 1000:,.0f} ms/step · "
      f"{_duration(left)} left"
    )
    if self._live is not None:
      self._live.update(text)
    else:
      say(text)

  def say(self, text: str) -> None:
    """Prints a line without breaking the live one."""
    if self._live is not None:
      self._live.console.print(text)
    else:
      say(text)

  def close(self) -> None:
    """Ends the live line."""
    if self._live is not None:
      self._live.stop()


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
