"""Gin files and flags: found by relative name from any folder, mistakes told in a sentence."""

import ast
import contextlib
import difflib
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
from fsb_jax.errors import UserError

_PACKAGE = Path(__file__).parent.parent


def configured(
  function: Callable, gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = (),
  or_else: Sequence[Callable] = (),
) -> tuple[Callable[[], Any], str]:
  """Reads gin files and flags.

  Args:
    function: what they configure.
    gin_files: paths, absolute or relative to the current folder, to `search_paths`, or to the package ("gin/runs/...",
      "runs/...").
    bindings: `NAME=VALUE` as after `--gin.`; one that is no Python value is taken as a string.
    search_paths: more folders to look in.
    or_else: other functions, of which the files may configure one instead.

  Returns:
    The function with its arguments bound, and the whole configuration as a gin file.

  Raises:
    UserError: a file, name or value that does not exist, a required macro that is not set, or files that configure
      another function.
  """
  gin.clear_config()
  places = [Path.cwd(), *map(Path, search_paths), _PACKAGE, _PACKAGE / "gin"]
  for place in places:
    gin.add_config_file_search_path(str(place))
  for name in gin_files:
    _require_file(name, places)
  try:
    with _without_search_messages():
      gin.parse_config_files_and_bindings(list(gin_files), None, skip_unknown=False, finalize_config=False)
    known = _macros()
    for binding in bindings:
      gin.parse_config(_binding(binding, known))
  except UserError:
    raise
  except OSError as error:
    raise UserError(f"a gin file includes one that does not exist: {_first_line(error)}") from error
  except Exception as error:
    raise UserError(f"gin: {_first_line(error)}") from error
  found = {inspect.unwrap(each): each for each in (gin.get_configurable(name) for _, name in gin.config._CONFIG)}
  bound = next((found[each] for each in (function, *or_else) if each in found), None)
  if bound is None:
    raise UserError(f"the gin files configure no {function.__name__}; gin/runs has a file for each command")
  unset = [name for name in sorted(_macros()) if repr(gin.query_parameter(f"%{name}")) == "%gin.REQUIRED"]
  if unset:
    flags = " ".join(f"--gin.{name}=..." for name in unset)
    raise UserError(f"the gin files leave {', '.join(unset)} to you; add {flags}")

  def call(**arguments):
    try:
      return bound(**arguments)
    except UserError as error:
      # Gin appends where in the configuration the call stands; a user's mistake is told in its own words alone.
      raise UserError(str(error).split("\n  In call to configurable")[0]) from error

  return call, gin.config_str(max_line_length=100)


def _macros() -> set[str]:
  """Names of all macros set so far."""
  return {scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"}


@contextlib.contextmanager
def _without_search_messages():
  """Gin reports as errors the places where an included file is not, on the way to the one where it is."""
  silence = lambda record: record.module != "resource_reader"  # noqa: E731
  logging.getLogger().addFilter(silence)
  try:
    yield
  finally:
    logging.getLogger().removeFilter(silence)


def _binding(binding: str, known: set[str]) -> str:
  name, separator, value = binding.partition("=")
  name, value = name.strip(), value.strip()
  if not separator or not name:
    raise UserError(f"--gin.{binding}: write --gin.NAME=VALUE")
  if "." not in name and name not in known:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"they set {', '.join(sorted(known))}"
    raise UserError(f"--gin.{name}: the gin files have no {name}; {hint}")
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError):
    if value.lower() in ("true", "false", "none"):
      raise UserError(f"--gin.{name}={value}: write {value.capitalize()}") from None
    # What gin would read is left to it; anything else is a text whose quotes the shell took.
    if value and value[0] not in "@%\"'([{":
      value = repr(value)
  return f"{name} = {value}"


def _require_file(name: str, places: Sequence[Path]) -> None:
  if any((place / name).is_file() for place in places):
    return
  shipped = sorted(str(path.relative_to(_PACKAGE)) for path in (_PACKAGE / "gin").rglob("*.gin"))
  close = difflib.get_close_matches(name, [*shipped, *(s.removeprefix("gin/") for s in shipped)], n=1)
  hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(shipped)}"
  raise UserError(f"no gin file {name!r} in the current folder or in the package; {hint}")


def _first_line(error: Exception) -> str:
  text = " ".join(str(error).split())
  return text if len(text) < 400 else text[:400] + "..."
