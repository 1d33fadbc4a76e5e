"""From text to answer: one file per task that users know by name."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsb_jax.errors import UserError
from fsb_jax.pipelines.lines import json_line, read_texts, require_new_file, write_json_lines

_PIPELINES = {
  "text_classification": "TextClassification",
  "text_generation": "TextGeneration",
  "text_to_image": "TextToImage",
  "zero_shot_image_classification": "ZeroShotImageClassification",
}


def pipeline(task: str, model: str | Path, **options: Any):
  """A callable that answers for a task with a model.

  Args:
    task: "text_classification", "text_generation", "text_to_image" or "zero_shot_image_classification".
    model: a training run's folder, a converted folder, or a Hub folder or id.
    **options: of the pipeline's class.

  Raises:
    UserError: an unknown task, or a model that is none.
  """
  if task not in _PIPELINES:
    raise UserError(f"unknown pipeline {task!r}; there are {', '.join(_PIPELINES)}")
  return getattr(importlib.import_module(f"fsb_jax.pipelines.{task}"), _PIPELINES[task])(model, **options)


def predict_lines(
  task: str, model: str, texts: Sequence[str], input_file: Path | None, output_file: Path | None, **options: Any
) -> None:
  """Answers for texts (or paths of images) and for the lines of a file, as JSON lines on standard output or in a file.

  `options` are those of the pipeline.
  """
  texts = read_texts(texts, input_file, "nothing to predict: give --text or --input FILE")
  if output_file is not None:
    require_new_file(output_file)
  try:
    answer = pipeline(task, model, **options)
  except TypeError as error:
    if "unexpected keyword argument" not in str(error):
      raise
    name = str(error).rpartition(" ")[2]
    raise UserError(f"{task} has no option {name}; see the documentation of its class") from error
  rows = [{"text": text, **found} for text, found in zip(texts, answer(texts))]
  if output_file is None:
    sys.stdout.writelines(map(json_line, rows))
  else:
    write_json_lines(output_file, rows)


__all__ = ["pipeline", "predict_lines"]
