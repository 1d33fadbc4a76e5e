"""From text to answer: one file per task that users know by name."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsb_jax.errors import UserError
from fsb_jax.pipelines.lines import json_line, read_lines, require_new_file, write_json_lines

_PIPELINES = {
  "question_answering": "QuestionAnswering",
  "text_classification": "TextClassification",
  "text_generation": "TextGeneration",
  "text_to_image": "TextToImage",
  "token_classification": "TokenClassification",
  "zero_shot": "ZeroShot",
  "zero_shot_image_classification": "ZeroShotImageClassification",
}


def pipeline(task: str, model: str | Path, **options: Any):
  """A callable that answers for a task with a model.

  Args:
    task: "question_answering", "text_classification", "text_generation", "text_to_image",
      "token_classification", "zero_shot" or "zero_shot_image_classification".
    model: a training run's folder, a converted folder, or a Hub folder or id.
    **options: of the pipeline's class.

  Raises:
    UserError: an unknown task, or a model that is none.
  """
  return _class(task)(model, **options)


def predict_lines(
  task: str, model: str, texts: Sequence[str], input_file: Path | None, output_file: Path | None, *,
  choices: Sequence[str] = (), question: str = "", options: Mapping[str, Any] = {},
) -> None:  # fmt: skip
  """Answers for texts (or paths of images) and for the lines of a file, as JSON lines on standard output or in a file.

  Args:
    task: name of the pipeline.
    model: see `pipeline`.
    texts: what to answer for.
    input_file: more of it, one a line; items as JSON where the pipeline is asked items.
    output_file: where answers go instead; must not exist yet.
    choices: what to choose from, for pipelines that are asked items.
    question: what is asked, for the same.
    options: of the pipeline.
  """
  chosen = _class(task)
  if not texts and input_file is None:
    raise UserError("nothing to predict: give --text or --input FILE")
  if output_file is not None:
    require_new_file(output_file)
  lines = read_lines(input_file)
  if hasattr(chosen, "items"):
    asked = chosen.items(texts, lines, choices, question)
  elif choices or question:
    raise UserError(f"--choice is for zero_shot and --question for it and question_answering, not for {task}")
  else:
    asked = [*texts, *lines]
  try:
    answer = chosen(model, **options)
  except TypeError as error:
    if "unexpected keyword argument" not in str(error):
      raise
    name = str(error).rpartition(" ")[2]
    raise UserError(f"{task} has no option {name}; see the documentation of its class") from error
  shown = (item if isinstance(item, Mapping) else {"text": item} for item in asked)
  rows = [{**item, **found} for item, found in zip(shown, answer(asked))]
  if output_file is None:
    sys.stdout.writelines(map(json_line, rows))
  else:
    write_json_lines(output_file, rows)


def _class(task: str) -> type:
  if task not in _PIPELINES:
    raise UserError(f"unknown pipeline {task!r}; there are {', '.join(_PIPELINES)}")
  return getattr(importlib.import_module(f"fsb_jax.pipelines.{task}"), _PIPELINES[task])


__all__ = ["pipeline", "predict_lines"]
