"""What a model answers to every example of a split, in the split's order, and as benchmarks publish answers."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fsb_jax import tasks
from fsb_jax.encodings import CLUE_FORMS, clue_answers
from fsb_jax.partitioning import Partitioner
from fsb_jax.tasks.submissions import SUBMISSIONS
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import scored_batches
from fsb_jax.training.passages import Passages
from fsb_jax.training.questions import choices_in_order, predictions_of_choices


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a model chose.

  Attributes:
    loader: the split.
    probabilities: of each example's answers, float64 `[examples, answers]`; a row sums to 1, and is 0 beyond the
      example's own answers.
    labels: the place of the right answer, int64 `[examples]`; negative in a split without labels.
    seconds: how long it took, compilation included.
  """

  loader: Loader
  probabilities: np.ndarray
  labels: np.ndarray
  seconds: float

  @functools.cached_property
  def places(self) -> np.ndarray:
    """The place of the likeliest answer, int64 `[examples]`."""
    return self.probabilities.argmax(axis=-1)

  @property
  def labelled(self) -> bool:
    """Whether the right answers are known."""
    return bool((self.labels >= 0).all())

  def rows(self) -> list[dict[str, Any]]:
    """Every example's fields as published, with its `prediction` in words and how likely that is, `score`."""
    found = predictions_of_choices(self.probabilities, self.loader.options)
    return [{**self.loader.raw(i), **prediction} for i, prediction in enumerate(found)]

  def published(self, task: str) -> list[int | str]:
    """The answers as the benchmark of a task takes them, by its own rules: see `encodings.clue_answers`.

    Args:
      task: the loader's task.
    """
    items = self.loader.items
    if items is not None and task in CLUE_FORMS:
      answered = [
        {**item, "id": i, "label": int(place), "score": dict(zip(item["choice"], row.tolist()))}
        for i, (item, place, row) in enumerate(zip(items, self.places, self.probabilities))
      ]
      found = clue_answers(task, answered)
      return [found[i] for i in range(len(items))]
    names = tasks.info(task).label_names
    labels = SUBMISSIONS[task].labels if task in SUBMISSIONS else None
    return [(labels or names)[place] for place in self.places]


@dataclasses.dataclass(frozen=True)
class Spans:
  """What a model answered with words of a passage.

  Attributes:
    loader: the split.
    predictions: the question's.
    seconds: how long it took, compilation included.
  """

  loader: Loader
  predictions: list[dict[str, Any]]
  seconds: float

  @property
  def labelled(self) -> bool:
    """Whether the right answers are known."""
    return self.loader.question.answered

  def rows(self) -> list[dict[str, Any]]:
    """Every example's fields as published, with its prediction."""
    return [{**self.loader.raw(i), **prediction} for i, prediction in enumerate(self.predictions)]

  def published(self, task: str) -> list[str]:
    """The answers as the benchmark of a task takes them: as they are."""
    del task
    return [prediction["prediction"] for prediction in self.predictions]


def answer_split(loader: Loader, step: Callable, params: Any, partitioner: Partitioner) -> Answers | Spans:
  """Asks a model about every example of a split, each once, whatever the padding and the mesh.

  Args:
    loader: the split.
    step: compiled eval step.
    params: on the mesh.
    partitioner: splits the batches.
  """
  since = time.monotonic()
  results = list(scored_batches(loader, step, params, partitioner))
  if isinstance(loader.question, Passages):
    return Spans(loader, loader.question.predictions(results), seconds=time.monotonic() - since)
  probabilities, labels = choices_in_order(results, loader.label_slice, loader.num_examples)
  return Answers(loader, probabilities, labels, seconds=time.monotonic() - since)


def json_lines(rows: Iterable[Mapping]) -> str:
  """Rows as JSON, one to a line."""
  return "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows)


def _plain(value: Any) -> Any:
  """Fields of a foreign SeqIO task are arrays and bytes."""
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value).tolist()
