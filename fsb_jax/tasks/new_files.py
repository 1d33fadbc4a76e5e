"""Files that must not be there yet, written whole or not at all."""

from pathlib import Path

from fsb_jax.errors import UserError


def require_new(path: Path) -> None:
  """UserError where `path` exists or its folder does not."""
  if path.exists():
    raise UserError(f"{path} already exists; choose another name or move it away.")
  if not path.parent.is_dir():
    raise UserError(f"{path} cannot be written: there is no folder {path.parent}.")


def write_new(path: Path, content: str | bytes) -> Path:
  """Writes a file under a name that is free; text is UTF-8 as it stands.

  Raises:
    UserError: `path` exists, or its folder does not.
  """
  require_new(path)
  unfinished = path.with_name(path.name + ".tmp")
  unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
  unfinished.replace(path)
  return path
