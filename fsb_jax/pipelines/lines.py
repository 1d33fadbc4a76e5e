"""Texts from the shell and answers into files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fsb_jax.errors import UserError


def read_lines(input_file: Path | None) -> list[str]:
  """The lines of a file, none where there is no file; UserError where it cannot be read."""
  if input_file is None:
    return []
  try:
    # A line is what ends in a newline: other characters that end lines somewhere may stand in a text.
    return input_file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--input {input_file} cannot be read as UTF-8 text: {error}") from error


def json_items(lines: Iterable[str]) -> list[Any]:
  """What stands in lines of JSON, blank ones passed over; UserError where one is none."""
  items = []
  for number, line in enumerate(lines, 1):
    try:
      items += [json.loads(line)] if line.strip() else []
    except ValueError as error:
      raise UserError(f"line {number} of the items is not valid JSON: {error}") from error
  return items


def require_new_file(output_file: Path) -> None:
  """UserError where a file is there already, or cannot be."""
  if output_file.exists() or not output_file.absolute().parent.is_dir():
    raise UserError(f"--output {output_file} exists already or is in a folder that does not; choose another")


def write_json_lines(output_file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """A line for every row, Chinese as it is."""
  output_file.write_text("".join(json_line(row) for row in rows), encoding="utf-8")


def json_line(row: Mapping[str, Any]) -> str:
  """A row as a line of JSON."""
  return json.dumps(row, ensure_ascii=False) + "\n"
