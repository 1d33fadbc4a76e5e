"""Items of the original's extraction code, and the tokenizers it encoded them with."""

import os
from pathlib import Path

import numpy as np
import pytest

from fsb_jax.encodings import load_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDENS = Path(os.environ.get("FSB_GOLDENS_DIR", SHARED / "goldens"))
VOCABULARY = Path(os.environ.get("FSB_DATA_DIR", SHARED / "data")) / "tokenizers" / "bert_base_chinese_vocab.txt"
needs_goldens = pytest.mark.skipif(
  not (GOLDENS.is_dir() and VOCABULARY.is_file()),
  reason=f"no goldens at {GOLDENS} or no {VOCABULARY}; set FSB_GOLDENS_DIR and FSB_DATA_DIR",
)


def bert_base_chinese(folder):
  (folder / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
  return load_tokenizer(folder)


def dense(sparse):
  """An array of `shape`, `default` but for `entries` of [*index, value]."""
  array = np.full(sparse["shape"], sparse["default"], np.float64)
  for *index, value in sparse["entries"]:
    array[tuple(index)] = value
  return array
