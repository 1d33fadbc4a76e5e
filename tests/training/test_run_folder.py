"""What is told of a run's folder before a run begins in it."""

import errno
import fcntl
import json

import jax
import numpy as np
import pytest
from tiny_run import one_device, run

from fsb_jax import checkpoints
from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.partitioning import multihost
from fsb_jax.training import run_folder
from fsb_jax.training import train as training

METADATA = checkpoints.Metadata(family="bert", head="masked_lm")


def test_a_model_is_not_taken_for_a_run(tmp_path):
  """Going on in a converted model's folder would in time delete the model."""
  checkpoints.save_folder(tmp_path / "model", {"kernel": np.ones((2, 3))}, METADATA, {"model_type": "bert"})
  with pytest.raises(UserError, match=r"model holds a model, not a run; .* INITIAL_CHECKPOINT_PATH"):
    run_folder.step_to_go_on_from(checkpoints.CheckpointStore(tmp_path / "model"))


def test_what_else_a_folder_holds_is_told_before_the_data_is_read(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="already exists and is not empty; choose another place"):
    run_folder.step_to_go_on_from(checkpoints.CheckpointStore(tmp_path))


def test_a_run_that_never_saved_is_begun_anew(table, tokenizer, tmp_path, monkeypatch):
  class Killed(Exception):
    pass

  def kill(*_):
    raise Killed

  monkeypatch.setattr(training, "place", kill)
  words = list(tokenizer.get_vocab())[::-1]
  other = bert_tokenizer_from_characters([word for word in words if len(word) == 1], tmp_path / "other")
  for each in (tokenizer, other):
    with pytest.raises(Killed):
      run(tmp_path / "run", table, each, 2, mesh=one_device())
  kept = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["vocab"]
  assert kept == other.get_vocab() != tokenizer.get_vocab()
  assert (tmp_path / "run" / "vocab.txt").read_text() == (tmp_path / "other" / "vocab.txt").read_text()


def test_a_run_that_opens_the_lock_as_another_ends_is_seen_by_a_third(tmp_path):
  with run_folder.only_run_in(tmp_path / "run"):
    second = (tmp_path / ".run.lock").open("w")
  with second:
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(UserError, match="another run is training"), run_folder.only_run_in(tmp_path / "run"):
      pass
  with run_folder.only_run_in(tmp_path / "run"):
    pass


def test_a_disk_without_locks_is_no_other_run(tmp_path, monkeypatch, capsys):
  def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with run_folder.only_run_in(tmp_path / "run"):
    pass
  assert "warning" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / "file").touch()
  folder = tmp_path / "file" / "run"
  with pytest.raises(UserError, match=f"MODEL_DIR {folder} cannot be made"), run_folder.only_run_in(folder):
    pass


def others(monkeypatch, value):
  """As if there were a second process, which says `value`."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    multihost.multihost_utils, "process_allgather", lambda digest: np.stack([digest, multihost.digest_of(value)])
  )
  monkeypatch.setattr(multihost, "barrier", lambda name: None)


def test_processes_must_see_the_same_folder(tmp_path, monkeypatch):
  store = checkpoints.CheckpointStore(tmp_path)
  checkpoints.write_metadata(tmp_path, METADATA, {})
  others(monkeypatch, "None")
  assert run_folder.step_to_go_on_from(store) == 0
  with pytest.raises(UserError, match="process 1 has other files in MODEL_DIR .* on a disk that all share"):
    run_folder.wait_for(tmp_path)
  others(monkeypatch, "40")
  with pytest.raises(UserError, match="process 1 has other checkpoints in MODEL_DIR .* on a disk that all share"):
    run_folder.step_to_go_on_from(store)
