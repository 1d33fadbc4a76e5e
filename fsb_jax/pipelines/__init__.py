"""From text to answer: one file per task that users know by name."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsb_jax.errors import UserError

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
  if not texts and input_file is None:
    raise UserError("nothing to predict: give --text or --input FILE")
  if output_file is not None and (output_file.exists() or not output_file.absolute().parent.is_dir()):
    raise UserError(f"--output {output_file} exists already or is in a folder that does not; choose another")
  texts = list(texts)
  if input_file is not None:
    try:
      # A line is what ends in a newline: other characters that end lines somewhere may stand in a text.
      texts += input_file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f"--input {input_file} cannot be read as UTF-8 text: {error}") from error
  try:
    answer = pipeline(task, model, **options)
  except TypeError as error:
    if "unexpected keyword argument" not in str(error):
      raise
    raise UserError(f"{task} has no option {str(error).rpartition(' ')[2]}; see the documentation of its class") from error
  answers = answer(texts)
  lines = "".join(
    json.dumps({"text": text, **found}, ensure_ascii=False) + "\n" for text, found in zip(texts, answers)
  )
  if output_file is None:
    sys.stdout.write(lines)
  else:
    output_file.write_text(lines, encoding="utf-8")


__all__ = ["pipeline", "predict_lines"]
