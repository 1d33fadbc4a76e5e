"""`metadata.json`: what a folder of ours holds besides `config.json` (the Hub's own) and the tokenizer's files."""

import dataclasses
import json
import platform
from importlib import metadata as importlib_metadata
from pathlib import Path

from fsb_jax.errors import UserError

FORMAT_VERSION = 1
_FILE = "metadata.json"
# The file in `checkpoints/` that says which step scored best.
BEST = "best"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
  """Facts a checkpoint folder records about itself.

  Attributes:
    family: name of the model family.
    head: name of the head, "base" for none.
    num_labels: classes of the head.
    label_names: their names in order, None where they have none.
    scan_layers: whether layers are stacked (`layers/...`) or not (`layers_{i}/...`).
    param_dtype: dtype of the parameters.
    source: where the weights came from: path or id, and sha256 of its weight files.
    versions: of Python and of the libraries that wrote the folder.
  """

  family: str
  head: str
  num_labels: int = 2
  label_names: tuple[str, ...] | None = None
  scan_layers: bool = True
  param_dtype: str = "float32"
  source: dict = dataclasses.field(default_factory=dict)
  versions: dict = dataclasses.field(default_factory=dict)
  format_version: int = FORMAT_VERSION


def installed_versions() -> dict[str, str]:
  """Versions to record beside results: Python, ours, and what computes."""
  names = ("fsb_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
  found = {"python": platform.python_version()}
  for name in names:
    try:
      found[name] = importlib_metadata.version(name)
    except importlib_metadata.PackageNotFoundError:
      continue  # not every machine that reads a checkpoint has every library
  return found


def home(folder: Path | str) -> Path:
  """The folder that a checkpoint of one step (`FOLDER/checkpoints/STEP`) belongs to; any other is its own."""
  folder = Path(folder)
  return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def step_folder(path: Path | str) -> Path:
  """`FOLDER/checkpoints/STEP` where `path` is it, or is `FOLDER/checkpoints/best` and that names it.

  Raises:
    UserError: it is neither.
  """
  path = Path(path)
  if path.name == BEST and path.is_file():
    path = path.with_name(path.read_text().strip())
  if not (path.name.isdecimal() and path.is_dir()):
    raise UserError(f"{path} is no checkpoint; {path.parent} has {sorted(_steps(path.parent))}")
  return path


def _steps(folder: Path) -> list[int]:
  return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]


def is_checkpoint(folder: Path | str) -> bool:
  """Whether `folder` is one of ours, or a step of one."""
  return (home(folder) / _FILE).is_file()


def write_metadata(folder: Path, metadata: Metadata, hf_config: dict) -> None:
  """Writes `metadata.json` and `config.json` into `folder`."""
  write_json(folder / "config.json", hf_config)
  write_json(folder / _FILE, dataclasses.asdict(metadata))


def read_metadata(folder: Path | str) -> tuple[Metadata, dict]:
  """Reads `metadata.json` and `config.json`; UserError where they are missing or of another format."""
  folder = Path(folder)
  facts = read_json(folder / _FILE)
  version = facts.get("format_version")
  if version != FORMAT_VERSION:
    raise UserError(f"{folder / _FILE} has format_version {version}; this fsb_jax reads {FORMAT_VERSION}")
  known = {field.name for field in dataclasses.fields(Metadata)}
  facts = {name: value for name, value in facts.items() if name in known}
  if facts.get("label_names") is not None:
    facts["label_names"] = tuple(facts["label_names"])
  return Metadata(**facts), read_json(folder / "config.json")


def read_json(path: Path) -> dict:
  """Reads a JSON object; UserError names the file and the line that is wrong."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{path} does not exist") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not valid JSON: {error}") from None
  if not isinstance(value, dict):
    raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object")
  return value


def write_json(path: Path, value: dict) -> None:
  """Writes a JSON object."""
  # Written whole and then renamed: a reader never sees half a file.
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  temporary.replace(path)
