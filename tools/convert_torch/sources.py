"""What weights can be read from: a Hub folder, one of tensor-parallel parts, or a GGUF file."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from convert_torch import io
from convert_torch.gguf_file import GgufFile
from convert_torch.gguf_tokenizer import gguf_tokenizer
from convert_torch.parts import PartFiles, part_folders
from convert_torch.weights import Table
from fsb_jax import encodings


def is_gguf(path: Path) -> bool:
  """Whether a path is a GGUF file, by its name."""
  return path.suffix.lower() == ".gguf" and path.is_file()


def beside(path: Path | str) -> Path:
  """The folder whose other files belong to a source."""
  path = Path(path)
  return path.parent if is_gguf(path) else path


def load_gguf_tokenizer(path: Path) -> Any:
  """The tokenizer of a GGUF file: of the files beside it, else its own; None where there is neither."""
  found = encodings.load_tokenizer(beside(path))
  return gguf_tokenizer(GgufFile(path)) if found is None else found


@contextlib.contextmanager
def tokenizer_folder(path: Path) -> Iterator[Path]:
  """A folder with the tokenizer's files of a source; of a GGUF file that has none beside it they are written first."""
  if not is_gguf(path) or encodings.load_tokenizer(beside(path)) is not None:
    yield beside(path)
    return
  tokenizer = gguf_tokenizer(GgufFile(path))
  with tempfile.TemporaryDirectory() as made:
    if tokenizer is not None:
      encodings.save_tokenizer(tokenizer, made)
    yield Path(made)


def open_source(
  path: Path, variant: str | None = None
) -> tuple[dict, Callable[[Table], io.WeightFiles | PartFiles | GgufFile]]:
  """What config.json says or would say, and what opens the weights, given their family's table.

  Args:
    path: the source.
    variant: of a Hub folder's files, see `io.WeightFiles`.
  """
  if is_gguf(path):
    file = GgufFile(path)
    return file.config, lambda table: file
  if not part_folders(path):
    return io.read_config(path), lambda table: io.WeightFiles(path, variant=variant)
  # It is in every part, and need not be beside them.
  config = path if (path / "config.json").is_file() else path / "part_0"
  return io.read_config(config), lambda table: PartFiles(path, table)
