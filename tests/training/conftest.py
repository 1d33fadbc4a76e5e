"""The tiny task of `tiny_run`, made once a module."""

import dataclasses

import lives
import pytest
from tiny_run import make_inputs

from fsb_jax import encodings, models, tasks


@pytest.fixture(scope="module", autouse=True)
def smaller_bert():
  """A size of the tests' own: their tasks take no more to be learned, and its steps are three times as fast."""
  sizes = models.family("bert").sizes
  sizes["smaller"] = dataclasses.replace(sizes["tiny"], embed_dim=64, num_heads=2, mlp_dim=128)
  yield
  del sizes["smaller"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """The folder with the tokenizer and the tables."""
  folder = tmp_path_factory.mktemp("inputs")
  make_inputs(folder)
  return folder


@pytest.fixture(scope="module")
def tokenizer(inputs):
  return encodings.load_tokenizer(inputs / "tokenizer")


@pytest.fixture(scope="module")
def table(inputs):
  files = {split: inputs / f"{split}.csv" for split in ("train", "validation", "test")}
  return tasks.table_task("reviews", files, "text")


@pytest.fixture(autouse=True)
def _no_life_goes_on():
  """A test that failed leaves no process behind."""
  yield
  for process in lives.started:
    process.kill()
    process.wait()
  lives.started.clear()


@pytest.fixture
def folder(inputs, tmp_path):
  """A folder for runs in processes of their own: links, so that all share what is compiled."""
  (inputs / "compilations").mkdir(exist_ok=True)
  for path in inputs.iterdir():
    (tmp_path / path.name).symlink_to(path)
  return tmp_path
