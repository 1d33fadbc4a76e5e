"""Saving and restoring: Orbax arrays, and what a folder records about itself."""

from fsb_jax.checkpoints.layout import fit, fits, resize, to_layout
from fsb_jax.checkpoints.metadata import (
  Metadata,
  home,
  installed_versions,
  is_checkpoint,
  read_json,
  read_metadata,
  step_folder,
  write_json,
  write_metadata,
)
from fsb_jax.checkpoints.store import (
  CheckpointStore,
  copy_tokenizer,
  existing_step,
  load_folder,
  new_folder,
  require_empty,
  reseal,
  save_folder,
)

__all__ = [
  "CheckpointStore",
  "Metadata",
  "copy_tokenizer",
  "existing_step",
  "fit",
  "fits",
  "home",
  "is_checkpoint",
  "installed_versions",
  "load_folder",
  "new_folder",
  "read_json",
  "read_metadata",
  "require_empty",
  "reseal",
  "resize",
  "save_folder",
  "step_folder",
  "to_layout",
  "write_json",
  "write_metadata",
]
