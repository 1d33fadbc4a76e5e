"""Orbax checkpoints: `FOLDER/checkpoints/STEP/{params,training,progress}` and a manifest of every file's sha256.

`params` alone is a model; the rest is what a run needs to go on. Saving is asynchronous. A step is complete once its
manifest is there; what was cut off before that is no checkpoint.
"""

import concurrent.futures
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from fsb_jax.checkpoints import manifest
from fsb_jax.checkpoints.layout import fits, resize
from fsb_jax.checkpoints.metadata import BEST, Metadata, home, read_metadata, step_folder, write_metadata
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
  # How images are made into pixels.
  "preprocessor_config.json",
  "processor_config.json",
)
# What a checkpoint needs of the folder it lies in.
_SHARED_FILES = ("metadata.json", "config.json", *_TOKENIZER_FILES)
_DELETED = ".deleted"


class CheckpointStore:
  """The checkpoints of one folder.

  Args:
    folder: holds `checkpoints/`; made if need be when something is saved.
    keep: how many of the newest to keep; None keeps all.
    keep_every: also keep every step that is a multiple of this.
  """

  def __init__(self, folder: Path | str, keep: int | None = None, keep_every: int | None = None):
    for name, value in (("KEEP_CHECKPOINTS", keep), ("KEEP_EVERY", keep_every)):
      if value is not None and (not isinstance(value, int) or value < 1):
        raise UserError(f"{name} must be a whole number above 0 or None, not {value!r}")
    self.folder = Path(folder)
    self._place = self.folder.absolute() / "checkpoints"
    self._keep, self.keep_every = keep, keep_every
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(),
        training=ocp.StandardCheckpointHandler(),
        progress=ocp.JsonCheckpointHandler(),
      )
    )
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
    self._saving: tuple[int, concurrent.futures.Future] | None = None
    self._best: int | None = None

  def steps(self) -> list[int]:
    """The complete checkpoints, oldest first."""
    numbered = [path for path in self._place.glob("*") if path.name.isdecimal()]
    return sorted(int(path.name) for path in numbered if manifest.is_sealed(path))

  def latest_step(self) -> int | None:
    """The newest complete checkpoint, None where there is none."""
    return max(self.steps(), default=None)

  def clean(self) -> None:
    """Removes what interrupted saves and deletions left; for the one run that writes here."""
    for path in self._place.glob("*") if jax.process_index() == 0 else ():
      if path.name.endswith(_DELETED) or ".orbax-checkpoint-tmp" in path.name:
        # What will not go, such as a file that somebody reads on NFS, is left to the next time.
        shutil.rmtree(path, ignore_errors=True)

  def save(self, step: int, params: Any, training: Any = None, progress: Mapping | None = None) -> None:
    """Starts saving arrays (unboxed trees) and a small JSON record under `step`, once the save before is done.

    Raises:
      UserError: a file could not be written; checkpoints that were complete before still are.
    """
    self.wait()
    items = {"params": ocp.args.StandardSave(params)}
    if training is not None:
      items["training"] = ocp.args.StandardSave(training)
    if progress is not None:
      items["progress"] = ocp.args.JsonSave(dict(progress))
    with self._failures_told(step):
      # Forced: a step of this number without a manifest is what a killed process left.
      self._checkpointer.save(self._place / str(step), args=ocp.args.Composite(**items), force=True)
    self._saving = step, self._worker.submit(self._finish, step)

  def wait(self) -> None:
    """Returns when everything saved so far is complete on disk; UserError where it could not be written."""
    if self._saving is None:
      return
    step, saving = self._saving
    self._saving = None
    with self._failures_told(step):
      saving.result()
    self._prune()

  def close(self) -> None:
    """Waits, then lets go of the folder."""
    self.wait()
    self._worker.shutdown()
    self._checkpointer.close()

  def keep_best(self, step: int | None) -> None:
    """Keeps `step`, whatever its age, and writes it into `checkpoints/best`, which is removed where it is not here."""
    self._best = step
    if jax.process_index() != 0:
      return
    if step not in self.steps() and (self._saving is None or step != self._saving[0]):
      (self._place / BEST).unlink(missing_ok=True)
    else:
      self._place.mkdir(parents=True, exist_ok=True)
      temporary = self._place / f"{BEST}.tmp"
      temporary.write_text(f"{step}\n")
      temporary.replace(self._place / BEST)

  def require_whole(self, step: int, items: tuple[str, ...] = ("params", "training", "progress")) -> None:
    """UserError, naming the file, where one that belongs to `items` of `step` is not as it was written.

    The message names the newest older checkpoint that is whole. Several processes share the reading.
    """
    others = {"params", "training", "progress"} - {*items}
    problem = self._damage(step, lambda name: name.split("/")[0] not in others)
    if problem is None:
      return
    older = next((each for each in reversed(self.steps()) if each < step and not self._damage(each)), None)
    if older is not None:
      advice = f"move {self._place / str(step)} away to use the newest whole one, step {older}"
    else:
      advice = (
        "no older checkpoint here is whole, so restore the file from a copy (or, if you changed it yourself, call "
        f"fsb_jax.checkpoints.reseal({str(self.folder)!r}))"
      )
    raise UserError(f"checkpoint of step {step} is damaged: {problem}; {advice}")

  def has_progress(self, step: int) -> bool:
    """Whether `step` is one of a training run; a converted model's has no such record."""
    return (self._place / str(step) / "progress").is_dir()

  def progress(self, step: int) -> dict:
    """The JSON record of `step`."""
    return self._read(step, progress=ocp.args.JsonRestore())["progress"]

  def restore(self, step: int, item: str, boxed: Any, shardings: Any) -> Any:
    """Restores "params" or "training" onto `shardings`.

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
    saved = _shapes(self._metadata(step, item))
    names = {path: getattr(leaf, "names", ()) for path, leaf in _leaves(boxed, boxed=True)}
    problems = [f"- {path} {leaf.shape}: missing" for path, leaf in _leaves(wanted) if path not in saved]
    problems += [f"+ {path} {shape}: unknown" for path, shape in saved.items() if path not in dict(_leaves(wanted))]
    for path, leaf in _leaves(wanted):
      if path in saved and not fits(saved[path], leaf.shape, names[path]):
        problems.append(f"- {path}: has shape {saved[path]}, the model wants {tuple(leaf.shape)}")
    if problems:
      differs = "OPTIMIZER, EMA_DECAY and PARAMETER_RATES as the run was begun, or choose another MODEL_DIR"
      advice = "" if item == "params" else f"; give {differs}"
      raise UserError(
        f"checkpoint {self.folder} step {step} does not fit the model ({item}){advice}:\n" + "\n".join(problems)
      )

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
    restored = self._read(step, **{item: ocp.args.StandardRestore(abstract)})[item]

    def fitted(array, leaf, sharding):
      if array.shape == leaf.shape:
        return array
      return jax.jit(lambda x: resize(x, leaf.shape), out_shardings=sharding)(array)

    return jax.tree.map(fitted, restored, wanted, shardings)

  def restore_params_to_host(self, step: int) -> Any:
    """The parameters of `step` as saved, as a nested dict of numpy arrays."""
    metadata = self._metadata(step, "params")
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), _tree(metadata))
    return self._read(step, params=ocp.args.StandardRestore(abstract))["params"]

  def _metadata(self, step: int, item: str) -> Any:
    # Not the whole step's, which needs the files of all its items.
    return ocp.StandardCheckpointHandler().metadata(epath.Path(self._place) / str(step) / item)

  def _read(self, step: int, **items: Any) -> Any:
    return self._checkpointer.restore(self._place / str(step), args=ocp.args.Composite(**items))

  def _finish(self, step: int) -> None:
    """Waits for Orbax and seals what it wrote; runs beside the training."""
    self._checkpointer.wait_until_finished()
    if jax.process_index() == 0:
      self.seal(step)

  def seal(self, step: int) -> None:
    """Takes the files of `step` for good as they are now."""
    shared = (self.folder.absolute() / name for name in _SHARED_FILES)
    manifest.seal(self._place / str(step), [path for path in shared if path.is_file()])

  def _prune(self) -> None:
    """Deletes the checkpoints that no rule keeps."""
    if self._keep is None or jax.process_index() != 0:
      return
    for step in self.steps()[: -self._keep]:
      if step == self._best or (self.keep_every is not None and step % self.keep_every == 0):
        continue
      # Renamed first: a half deleted folder is never taken for a checkpoint.
      path = self._place / str(step)
      with contextlib.suppress(OSError):  # no run ends for want of tidiness: see `clean`
        shutil.rmtree(path.rename(path.with_name(path.name + _DELETED)), ignore_errors=True)

  def _damage(self, step: int, wanted=lambda name: True) -> str | None:
    """What is wrong with `step`, the same in every process."""
    share = slice(jax.process_index(), None, jax.process_count())
    problem = manifest.damage(self._place / str(step), wanted, share)
    if jax.process_count() == 1:
      return problem
    found = multihost_utils.process_allgather(np.bool_(problem is not None))
    if problem is None and found.any():
      return f"process {found.argmax()} says which file of {self._place / str(step)}"
    return problem

  @contextlib.contextmanager
  def _failures_told(self, step: int) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      if fault := _fault_of_the_runtime(error):
        raise fault from None
      reason = " ".join(str(error).split())[:300] or type(error).__name__
      unfinished = [*self._place.glob(f"{step}.orbax-checkpoint-tmp*"), self._place / str(step)]
      _remove([path for path in unfinished if not manifest.is_sealed(path)])
      kept = f"the checkpoints of steps {self.steps()} are whole" if self.steps() else "there is no checkpoint yet"
      raise UserError(
        f"the checkpoint of step {step} could not be written to {self._place} ({reason}); make room or choose another "
        f"MODEL_DIR, then give the same command: {kept}"
      ) from error


def save_folder(
  folder: Path | str, params: Any, metadata: Metadata, hf_config: dict, tokenizer_from: Path | str | None = None
) -> None:
  """Writes a model as a folder of ours; UserError where `folder` already holds something."""
  with new_folder(folder) as unfinished:
    # The arrays last: their manifest covers the other files too.
    copy_tokenizer(tokenizer_from, unfinished)
    write_metadata(unfinished, metadata, hf_config)
    store = CheckpointStore(unfinished)
    store.save(0, params)
    store.close()


def load_folder(folder: Path | str, step: int | None = None) -> tuple[Any, Metadata, dict]:
  """Reads a folder of ours.

  Args:
    folder: the folder; or one of its steps, `FOLDER/checkpoints/400` or `FOLDER/checkpoints/best`.
    step: which step; the newest, or that of `folder`, if not given.

  Returns:
    Parameters (nested dict of numpy arrays), metadata, Hub config.

  Raises:
    UserError: there is no such step, or a file that belongs to it is not as it was written.
  """
  if home(folder) != Path(folder):
    folder, step = home(folder), int(step_folder(folder).name)
  store = CheckpointStore(folder)
  step = existing_step(store, step)
  store.require_whole(step, ("params",))
  metadata, hf_config = read_metadata(folder)
  params = store.restore_params_to_host(step)
  store.close()
  return params, metadata, hf_config


def reseal(folder: Path | str) -> None:
  """Takes all complete checkpoints of a folder for good as they are, after a file was changed on purpose."""
  store = CheckpointStore(folder)
  for step in store.steps():
    store.seal(step)


def existing_step(store: CheckpointStore, step: int | None = None) -> int:
  """`step`, or the newest one; UserError where it does not exist."""
  steps = store.steps()
  if not steps:
    raise UserError(f"{store.folder} holds no complete checkpoint (each has a manifest.sha256)")
  if step is not None and step not in steps:
    raise UserError(f"{store.folder} has no checkpoint of step {step}; it has {steps}")
  return steps[-1] if step is None else step


@contextlib.contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
  """A folder to fill that becomes `folder` when all went well, and vanishes otherwise.

  Raises:
    UserError: `folder` already holds something.
  """
  require_empty(folder)
  # Where a link leads: a folder cannot take the place of a link, nor move to another disk as a whole.
  folder = Path(folder).resolve()
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
    unfinished = Path(temporary) / folder.name
    unfinished.mkdir()
    yield unfinished
    unfinished.replace(folder)


def require_empty(folder: Path | str) -> None:
  """UserError where `folder` exists and is not an empty folder, or is the root of a disk, which nothing can replace."""
  folder = Path(folder)
  if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
    raise UserError(f"{folder} already exists and is not empty; choose another place or move it away")
  if folder.is_mount():
    raise UserError(f"{folder} is where a disk is mounted; name a folder in it")


def copy_tokenizer(source: Path | str | None, folder: Path) -> None:
  """Copies the tokenizer's files, as they are, from `source` where it has any."""
  for name in _TOKENIZER_FILES if source is not None else ():
    path = home(source) / name
    if path.is_file() and path.resolve() != (folder / name).resolve():
      shutil.copyfile(path, folder / name)


def _remove(folders: list[Path]) -> None:
  """Deletes folders that Orbax's other writers, which learn of a failure each for itself, may be filling still."""
  quiet, deadline = 0, time.monotonic() + 10
  while quiet < 3 and time.monotonic() < deadline:
    quiet = 0 if any(folder.exists() for folder in folders) else quiet + 1
    for folder in folders:
      shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.1)


def _fault_of_the_runtime(error: BaseException | None) -> jax.errors.JaxRuntimeError | None:
  """What the machine or another process did, not the disk, that led to `error`; None where there is nothing such."""
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError):
      return error
    if "Gloo" in str(error):  # a collective's failure may arrive as a plain exception
      return jax.errors.JaxRuntimeError(str(error))
    error = error.__cause__ or error.__context__
  return None


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
