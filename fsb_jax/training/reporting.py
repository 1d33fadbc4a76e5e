"""Where a run's numbers go: a JSON-lines file, TensorBoard, and a progress line for people."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax


def say(text: str) -> None:
  """A line for the person watching, from the first process only; standard output stays for results."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


class MetricWriter:
  """Writes metrics to `FOLDER/metrics.jsonl` and to TensorBoard's event files; only the first process writes.

  Args:
    folder: the run's.
    first_step: the step it goes on from; TensorBoard forgets what it was shown of later ones.
    rows: the lines to begin with, those of a run that goes on.
  """

  def __init__(self, folder: Path, first_step: int = 0, rows: Sequence[Mapping] = ()):
    self._file = None
    if jax.process_index() != 0:
      return
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    path = folder / "metrics.jsonl"
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
    self._file = path.open("a", encoding="utf-8")
    self._events = EventFileWriter(str(folder / "tensorboard"))
    started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._events.add_event(event_pb2.Event(wall_time=time.time(), step=first_step + 1, session_log=started))

  def write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
    """Records numbers of `kind` ("train", "eval", ...) at `step`."""
    if self._file is None:
      return
    self._file.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
    self._file.flush()
    values = [self._summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in metrics.items()]
    self._events.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
    self._events.flush()

  def write_image(self, step: int, name: str, png: bytes, width: int, height: int) -> None:
    """Shows a picture, a PNG file's bytes, in TensorBoard."""
    if self._file is None:
      return
    picture = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    value = self._summary.Value(tag=name, image=picture)
    self._events.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=[value])))
    self._events.flush()

  def close(self) -> None:
    """Closes the files."""
    for file in (self._file, self._events) if self._file is not None else ():
      # What could not be written was told when it was; a full disk is no news.
      with contextlib.suppress(OSError):
        file.close()


class TrainProgress:
  """A live line on a terminal (loss, examples/s, tokens/s, step time, time left), plain lines elsewhere."""

  def __init__(self, first_step: int, last_step: int):
    self._last = last_step
    self._live = None
    if jax.process_index() == 0 and sys.stderr.isatty():
      from rich.console import Console

      # A status wraps where the terminal is narrow; a progress bar would cut the numbers off.
      self._live = Console(stderr=True, highlight=False).status(f"step {first_step}/{last_step} · compiling")
      self._live.start()

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the metrics of the steps up to `step`."""
    parts = [
      f"step {step}/{self._last}",
      f"loss {metrics['loss']:.4f}",
      f"{metrics['examples_per_second']:,.0f} examples/s",
      f"{metrics['tokens_per_second']:,.0f} tokens/s",
      f"{metrics['step_seconds'] * 1000:,.0f} ms/step",
    ]
    if "flops_utilisation" in metrics:
      parts.append(f"{metrics['flops_utilisation']:.0%} of peak FLOP/s")
    if metrics["data_wait_share"] > 0.02:
      parts.append(f"waiting for data {metrics['data_wait_share']:.0%}")
    if metrics["compile_seconds"] > 1:
      parts.append(f"compiling took {metrics['compile_seconds']:,.0f} s more")
    parts.append(f"{_duration(metrics['step_seconds'] * (self._last - step))} left")
    if self._live is not None:
      self._live.update(" · ".join(parts))
    else:
      say(" · ".join(parts))

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
