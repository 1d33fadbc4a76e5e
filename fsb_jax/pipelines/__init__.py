"""From text to answer: one file per task that users know by name."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsb_jax.errors import UserError

_PIPELINES = {
  "text_classification": "TextClassification",
  "text_generation": "TextGeneration",
  "zero_shot": "ZeroShot",
}


def pipeline(task: str, model: str | Path, **options: Any):
  """A callable that answers for `task` ("text_classification", "text_generation", "zero_shot") with a model.

  Args:
    task: name of the pipeline.
    model: a training run's folder, a converted folder, or a Hub folder or id.
    **options: of the pipeline's class.

  Raises:
    UserError: an unknown task, or a model that is none.
  """
  return _class(task)(model, **options)


def predict_lines(
  task: str,
  model: str,
  texts: Sequence[str],
  input_file: Path | None,
  output_file: Path | None,
  choice: Sequence[str] = (),
  question: str = "",
) -> None:
  """Answers for texts and for the lines of a file, as JSON lines on standard output or in a file.

  Args:
    task: name of the pipeline.
    model: see `pipeline`.
    texts: what to answer for.
    input_file: more of it, one a line; items as JSON where the pipeline is asked items.
    output_file: where answers go instead; must not exist yet.
    choice: options, for pipelines that choose between some.
    question: what is asked, for the same.
  """
  chosen = _class(task)
  if not texts and input_file is None:
    raise UserError("nothing to predict: give --text or --input FILE")
  if output_file is not None and (output_file.exists() or not output_file.absolute().parent.is_dir()):
    raise UserError(f"--output {output_file} exists already or is in a folder that does not; choose another")
  lines = []
  if input_file is not None:
    try:
      # A line is what ends in a newline: other characters that end lines somewhere may stand in a text.
      lines = input_file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f"--input {input_file} cannot be read as UTF-8 text: {error}") from error
  if hasattr(chosen, "items"):
    asked = chosen.items(texts, lines, choice, question)
  elif choice or question:
    raise UserError(f"--choice and --question are for zero_shot, not for {task}")
  else:
    asked = [*texts, *lines]
  answers = chosen(model)(asked)
  shown = (item if isinstance(item, Mapping) else {"text": item} for item in asked)
  lines = "".join(json.dumps({**item, **answer}, ensure_ascii=False) + "\n" for item, answer in zip(shown, answers))
  if output_file is None:
    sys.stdout.write(lines)
  else:
    output_file.write_text(lines, encoding="utf-8")


def _class(task: str) -> type:
  if task not in _PIPELINES:
    raise UserError(f"unknown pipeline {task!r}; there are {', '.join(_PIPELINES)}")
  return getattr(importlib.import_module(f"fsb_jax.pipelines.{task}"), _PIPELINES[task])


__all__ = ["pipeline", "predict_lines"]
