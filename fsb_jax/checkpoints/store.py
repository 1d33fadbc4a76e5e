"""Orbax checkpoints: `FOLDER/checkpoints/STEP/{params,optimizer,progress}`.

`params` alone is a model; the rest is what a run needs to go on. Saving is asynchronous and atomic: a step's folder
appears whole or not at all.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

from fsb_jax.checkpoints.layout import fits, resize
from fsb_jax.checkpoints.metadata import Metadata, read_metadata, write_metadata
from fsb_jax.errors import UserError

_TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.txt",
  "vocab.json",
  "merges.txt",
  "special_tokens_map.json",
  "added_tokens.json",
  "spiece.model",
  "tokenizer.model",
  "sentencepiece.bpe.model",
  "spm.model",
  "chat_template.jinja",
)


class CheckpointStore:
  """The checkpoints of one folder.

  Args:
    folder: holds `checkpoints/`; made if need be when something is saved.
    keep: how many of the newest to keep; None keeps all.
  """

  def __init__(self, folder: Path | str, keep: int | None = None):
    if keep is not None and (not isinstance(keep, int) or keep < 1):
      raise UserError(f"KEEP_CHECKPOINTS must be a whole number above 0, or None for all, not {keep!r}")
    self._manager = ocp.CheckpointManager(
      Path(folder).absolute() / "checkpoints",
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
      item_handlers={
        "params": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
      },
    )
    self.folder = Path(folder)

  def latest_step(self) -> int | None:
    """The newest complete checkpoint, None where there is none."""
    return self._manager.latest_step()

  def save(self, step: int, params: Any, optimizer: Any = None, progress: Mapping | None = None) -> None:
    """Starts saving arrays (unboxed trees) and a small JSON record under `step`."""
    items = {"params": ocp.args.StandardSave(params)}
    if optimizer is not None:
      items["optimizer"] = ocp.args.StandardSave(optimizer)
    if progress is not None:
      items["progress"] = ocp.args.JsonSave(dict(progress))
    self._manager.save(step, args=ocp.args.Composite(**items))

  def wait(self) -> None:
    """Returns when everything saved so far is on disk; raises what went wrong on the way."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of the folder."""
    self._manager.close()

  def progress(self, step: int) -> dict:
    """The JSON record of `step`."""
    return self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]

  def restore(self, step: int, item: str, boxed: Any, shardings: Any) -> Any:
    """Restores "params" or "optimizer" onto `shardings`.

    Args:
      step: a saved step.
      item: which part of it.
      boxed: what is wanted: shapes and dtypes, with logical names where they have them.
      shardings: one per array, in the unboxed structure.

    Returns:
      The unboxed tree; padded vocabularies are fitted to the shapes wanted.

    Raises:
      UserError: names every parameter that is missing, unknown or of another shape.
    """
    wanted = nn.meta.unbox(boxed)
    saved = _shapes(self._manager.item_metadata(step)[item])
    names = {path: getattr(leaf, "names", ()) for path, leaf in _leaves(boxed, boxed=True)}
    problems = [f"- {path} {leaf.shape}: missing" for path, leaf in _leaves(wanted) if path not in saved]
    problems += [f"+ {path} {shape}: unknown" for path, shape in saved.items() if path not in dict(_leaves(wanted))]
    for path, leaf in _leaves(wanted):
      if path in saved and not fits(saved[path], leaf.shape, names[path]):
        problems.append(f"- {path}: has shape {saved[path]}, the model wants {tuple(leaf.shape)}")
    if problems:
      raise UserError(f"checkpoint {self.folder} step {step} does not fit the model ({item}):\n" + "\n".join(problems))

    def template(path, leaf, sharding):
      return jax.ShapeDtypeStruct(saved[_keystr(path)], leaf.dtype, sharding=sharding)

    replicated = jax.tree.map(
      lambda leaf, sharding: sharding if isinstance(sharding, jax.sharding.SingleDeviceSharding)
      else jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()),
      wanted, shardings,
    )
    placed = jax.tree_util.tree_map_with_path(
      lambda path, leaf, sharding, whole: sharding if saved[_keystr(path)] == tuple(leaf.shape) else whole,
      wanted, shardings, replicated,
    )
    abstract = jax.tree_util.tree_map_with_path(template, wanted, placed)
    restored = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]
    return jax.tree.map(
      lambda array, leaf, sharding: jax.device_put(resize(array, leaf.shape), sharding),
      restored, wanted, shardings,
    )

  def restore_params_to_host(self, step: int) -> Any:
    """The parameters of `step` as saved, as a nested dict of numpy arrays."""
    metadata = self._manager.item_metadata(step)["params"]
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), _tree(metadata))
    return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))["params"]


def save_folder(
  folder: Path | str, params: Any, metadata: Metadata, hf_config: dict, tokenizer_from: Path | str | None = None
) -> None:
  """Writes a model as a folder of ours; UserError where `folder` already holds something."""
  with new_folder(folder) as unfinished:
    store = CheckpointStore(unfinished)
    store.save(0, params)
    store.close()
    copy_tokenizer(tokenizer_from, unfinished)
    write_metadata(unfinished, metadata, hf_config)


def load_folder(folder: Path | str, step: int | None = None) -> tuple[Any, Metadata, dict]:
  """Reads a folder of ours: parameters (nested dict of numpy arrays), metadata, Hub config."""
  metadata, hf_config = read_metadata(folder)
  store = CheckpointStore(folder)
  step = existing_step(store, step)
  params = store.restore_params_to_host(step)
  store.close()
  return params, metadata, hf_config


def existing_step(store: CheckpointStore, step: int | None = None) -> int:
  """`step`, or the newest one; UserError where it does not exist."""
  latest = store.latest_step()
  if latest is None:
    raise UserError(f"{store.folder} holds no complete checkpoint")
  if step is not None and step not in store._manager.all_steps():
    raise UserError(f"{store.folder} has no checkpoint of step {step}; it has {sorted(store._manager.all_steps())}")
  return latest if step is None else step


@contextlib.contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
  """A folder to fill that becomes `folder` when all went well, and vanishes otherwise.

  Raises:
    UserError: `folder` already holds something.
  """
  folder = Path(folder)
  require_empty(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
    unfinished = Path(temporary) / folder.name
    unfinished.mkdir()
    yield unfinished
    unfinished.replace(folder)


def require_empty(folder: Path | str) -> None:
  """UserError where `folder` exists and is not an empty folder."""
  folder = Path(folder)
  if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
    raise UserError(f"{folder} already exists and is not empty; choose another place or move it away")


def copy_tokenizer(source: Path | str | None, folder: Path) -> None:
  """Copies the tokenizer's files, as they are, from `source` where it has any."""
  for name in _TOKENIZER_FILES if source is not None else ():
    path = Path(source) / name
    if path.is_file() and path.resolve() != (folder / name).resolve():
      shutil.copyfile(path, folder / name)


def _keystr(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaves(tree: Any, boxed: bool = False) -> list[tuple[str, Any]]:
  is_leaf = (lambda x: isinstance(x, nn.LogicallyPartitioned)) if boxed else None
  return [(_keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]


def _tree(metadata: Any) -> Any:
  # Orbax wraps an item's tree of array facts in an object of its own.
  return getattr(metadata, "tree", metadata)


def _shapes(metadata: Any) -> dict[str, tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in _leaves(_tree(metadata))}
