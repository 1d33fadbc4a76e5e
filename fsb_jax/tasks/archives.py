"""Archives that data is published in: zip, and tar with any of its compressions."""

import functools
import lzma
import tarfile
import zipfile
from contextlib import ExitStack
from io import BufferedIOBase, BytesIO
from pathlib import Path

from fsb_jax.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_KEPT_BYTES = 32 * 2**20  # of a tar whose files are kept in memory
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError)


def is_archive(path: Path) -> bool:
  """Whether `path` is a file with an archive's name."""
  return path.name.lower().endswith(SUFFIXES) and path.is_file()


def members(archive: Path) -> tuple[str, ...]:
  """Names of an archive's files; UserError where it is damaged."""
  return _members(*_version(archive))


def open_member(archive: Path, member: str, stack: ExitStack) -> BufferedIOBase:
  """Opens a file of an archive for reading bytes; `stack` closes both."""
  if zipfile.is_zipfile(archive):
    return stack.enter_context(stack.enter_context(zipfile.ZipFile(archive)).open(member))
  if archive.stat().st_size <= _KEPT_BYTES:
    return BytesIO(_files(*_version(archive))[member])
  return stack.enter_context(stack.enter_context(tarfile.open(archive)).extractfile(member))


def _version(archive: Path) -> tuple[Path, int, int]:
  """The archive, and what tells it from another one that comes to have its name."""
  status = archive.stat()
  return archive, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=1)  # to reach one file of a compressed tar, all before it must be read
def _files(archive: Path, modified: int, size: int) -> dict[str, bytes]:
  del modified, size
  with tarfile.open(archive) as opened:
    return {member.name: opened.extractfile(member).read() for member in opened if member.isfile()}


@functools.lru_cache(maxsize=64)  # listing a compressed tar reads all of it
def _members(archive: Path, modified: int, size: int) -> tuple[str, ...]:
  del modified, size
  try:
    if archive.name.lower().endswith(".zip"):
      with zipfile.ZipFile(archive) as opened:
        return tuple(name for name in opened.namelist() if not name.endswith("/"))
    with tarfile.open(archive) as opened:
      return tuple(member.name for member in opened if member.isfile())
  except DAMAGED as error:
    kind = "zip" if archive.name.lower().endswith(".zip") else "tar"
    raise UserError(f"{archive} is not a {kind} archive ({' '.join(str(error).split())}); fetch it again.") from error
