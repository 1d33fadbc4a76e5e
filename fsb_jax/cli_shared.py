"""What the commands share."""

import contextlib
import os
import sys
from typing import Annotated

import typer

from fsb_jax.errors import UserError

GinPaths = Annotated[list[str] | None, typer.Option("--gin_search_paths", help="More folders with gin files.")]
DataDirectory = Annotated[str | None, typer.Option("--data_dir", help="Where data lies; FSB_DATA_DIR if not given.")]
GIN = {"allow_extra_args": True, "ignore_unknown_options": True}


def bindings_of(arguments: list[str]) -> list[str]:
  """NAME=VALUE of every --gin.NAME=VALUE."""
  for argument in arguments:
    if not argument.startswith("--gin."):
      raise UserError(f"unknown option {argument}; configuration is given as --gin.NAME=VALUE")
  return [argument.removeprefix("--gin.") for argument in arguments]


def quiet() -> None:
  """Keeps the libraries' start-up chatter from the terminal."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextlib.contextmanager
def silent_import():
  """TensorFlow writes to the terminal while it is imported, before it can be told not to."""
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
