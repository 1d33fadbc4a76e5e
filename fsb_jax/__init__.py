"""Chinese foundation models in JAX/Flax, and the way to PyTorch and back.

Importing this imports neither jax, TensorFlow, torch nor transformers; each name below is loaded when first used.
"""

import importlib
from typing import TYPE_CHECKING

from fsb_jax.errors import UserError
from fsb_jax.version import __version__

if TYPE_CHECKING:
  from fsb_jax.generation import generate
  from fsb_jax.pipelines import pipeline
  from fsb_jax.pretrained import Loaded, from_pretrained

_LAZY = {
  "Loaded": "fsb_jax.pretrained",
  "from_pretrained": "fsb_jax.pretrained",
  "generate": "fsb_jax.generation",
  "pipeline": "fsb_jax.pipelines",
}

__all__ = ["Loaded", "UserError", "__version__", "from_pretrained", "generate", "pipeline"]


def __getattr__(name: str):
  if name not in _LAZY:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
