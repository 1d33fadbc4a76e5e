"""`manifest.sha256`: the hash of every file of a checkpoint, in the form that `sha256sum --check` reads.

It is written last, so a checkpoint that has one is complete. Its own last line guards the lines above it.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fsb_jax.errors import UserError

_FILE = "manifest.sha256"
_CLOSING = "# sha256 of the lines above: "


def is_sealed(folder: Path) -> bool:
  """Whether `folder` has a manifest, that is, was written to its end."""
  return (folder / _FILE).is_file()


def seal(folder: Path, beside: Sequence[Path] = ()) -> None:
  """Writes the manifest of a checkpoint.

  Args:
    folder: the checkpoint; every file in it is listed.
    beside: files outside it that it needs, listed by their path relative to it.
  """
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _FILE)
  names = [os.path.relpath(path, folder) for path in (*files, *beside)]
  lines = "".join(f"{digest}  {name}\n" for digest, name in zip(_hashes(folder, names), names))
  text = lines + _CLOSING + _sha256(lines.encode()) + "\n"
  temporary = folder / (_FILE + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(folder / _FILE)


def damage(
  folder: Path, wanted: Callable[[str], bool] = lambda name: True, share: slice = slice(None)
) -> str | None:
  """Compares a checkpoint with its manifest.

  Args:
    folder: the checkpoint.
    wanted: which of the listed files to look at, by name.
    share: which of those this process reads, where several share the work.

  Returns:
    What is wrong with which file, in words; None where nothing is.
  """
  try:
    listed = _read(folder / _FILE)
  except UserError as error:
    return str(error)
  names = sorted(filter(wanted, listed))[share]
  for name, digest in zip(names, _hashes(folder, names)):
    if digest is None:
      return f"{_plain(folder, name)} cannot be read or is gone"
    if digest != listed[name]:
      return f"{_plain(folder, name)} is not as it was written (its sha256 differs)"
  return None


def _read(path: Path) -> dict[str, str]:
  """Name -> hash; UserError where the manifest itself is damaged."""
  try:
    # Bytes, not text: no byte may differ, not even in how lines end.
    lines, closing, digest = path.read_bytes().partition(_CLOSING.encode())
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error
  if not closing or digest != _sha256(lines).encode() + b"\n":
    raise UserError(f"{path} is not as it was written")
  return {name: digest for digest, name in (line.split("  ", 1) for line in lines.decode().splitlines())}


def _hashes(folder: Path, names: Sequence[str]) -> list[str | None]:
  """sha256 of files, several at a time (hashing leaves other threads free to run); None for an unreadable one."""

  def one(name):
    try:
      with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
      return None

  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return list(pool.map(one, names))


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _plain(folder: Path, name: str) -> str:
  return os.path.normpath(folder / name)
