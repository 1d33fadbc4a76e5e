"""Saving on one mesh and restoring on another; what does not fit is named."""

import dataclasses
import errno
import json
import os
import resource
import subprocess
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.start import training_item
from fsb_jax.training.step import Update, abstract_state

METADATA = checkpoints.Metadata(family="bert", head="masked_lm", label_names=("a", "b"))
OPTIMIZER = optax.adamw(1e-3)
CONFIG = dataclasses.replace(
  models.sized("bert", "tiny"), vocab_size=101, embed_dim=32, num_heads=4, mlp_dim=64, num_layers=3
)


def abstract(mesh, config=CONFIG):
  partitioner = Partitioner(mesh)
  model = models.build("bert", config.with_run(vocab_multiple=partitioner.vocab_multiple), "masked_lm")
  update = Update(model, OBJECTIVES["masked_lm"], OPTIMIZER)
  boxed = abstract_state(update)
  return partitioner, update, boxed, partitioner.shardings(boxed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("store")
  partitioner, update, _, shardings = abstract({"fsdp": 8})

  def draw(key):
    params = nn.meta.unbox(update.model.init(key, models.dummy_ids(update.model))["params"])
    state = update.first_state(params)
    return state.replace(optimizer=jax.tree.map(lambda x: x + 1, state.optimizer))

  state = partitioner.jit(draw, out_shardings=shardings)(jax.random.key(0))
  checkpoints.write_metadata(folder, METADATA, {"model_type": "bert"})
  store = checkpoints.CheckpointStore(folder, keep=2)
  for step in (1, 2, 3):
    store.save(step, state.params, training_item(state), {"step": step})
  store.close()
  return folder, jax.tree.map(np.asarray, state)


def test_keeps_the_newest(saved):
  folder, _ = saved
  assert sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "3"]
  store = checkpoints.CheckpointStore(folder)
  assert store.latest_step() == 3 and store.progress(3) == {"step": 3}
  with pytest.raises(UserError, match=r"no checkpoint of step 1; it has \[2, 3\]"):
    checkpoints.existing_step(store, 1)


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_restores_on_any_mesh(saved, mesh):
  folder, state = saved
  _, _, boxed, shardings = abstract(mesh)
  store = checkpoints.CheckpointStore(folder)
  for item, of in (("params", lambda state: state.params), ("training", training_item)):
    want, got = of(state), store.restore(3, item, of(boxed), of(shardings))
    assert jax.tree.structure(want) == jax.tree.structure(got)
    for (path, one), two, sharding in zip(
      jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), jax.tree.leaves(of(shardings))
    ):
      assert two.sharding.is_equivalent_to(sharding, two.ndim), path
      # Vocabularies are padded to the mesh: 104 rows for eight parts, 101 for one.
      two = np.asarray(two)
      shared = tuple(slice(0, min(a, b)) for a, b in zip(one.shape, two.shape))
      np.testing.assert_array_equal(one[shared], two[shared], err_msg=str(path))
  rows = {"fsdp": 104, "data": 101}[next(iter(mesh))]
  assert store.restore(3, "params", boxed.params, shardings.params)["token_embed"]["embedding"].shape[0] == rows


def test_what_does_not_fit_is_named_in_one_error(saved):
  folder, _ = saved
  other = dataclasses.replace(CONFIG, mlp_dim=128, token_types=0)
  _, _, boxed, shardings = abstract({"fsdp": 8}, other)
  with pytest.raises(UserError) as caught:
    checkpoints.CheckpointStore(folder).restore(3, "params", boxed.params, shardings.params)
  text = str(caught.value)
  assert "- encoder/layers/mlp/wi/kernel: has shape (3, 32, 64), the model wants (3, 32, 128)" in text
  assert "- encoder/layers/mlp/wo/kernel" in text and "+ token_type_embed/embedding (2, 32): unknown" in text
  assert len(text.splitlines()) == 5


def test_layouts_undo_each_other(saved):
  params = saved[1].params
  unrolled = checkpoints.to_layout(params, scan_layers=False)
  assert sorted(unrolled["encoder"]) == ["layers_0", "layers_1", "layers_2"]
  np.testing.assert_array_equal(
    unrolled["encoder"]["layers_1"]["mlp"]["wi"]["kernel"], params["encoder"]["layers"]["mlp"]["wi"]["kernel"][1]
  )
  again = checkpoints.to_layout(unrolled, scan_layers=True)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
  assert checkpoints.to_layout(params, scan_layers=True).keys() == params.keys()


def test_a_folder_comes_back(saved, tmp_path):
  params = saved[1].params
  (tmp_path / "source").mkdir()
  (tmp_path / "source" / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
  (tmp_path / "source" / "secret.txt").write_text("not a tokenizer's file")
  checkpoints.save_folder(tmp_path / "ours", params, METADATA, {"model_type": "bert"}, tmp_path / "source")
  again, metadata, hf_config = checkpoints.load_folder(tmp_path / "ours")
  assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
  assert metadata == METADATA and hf_config == {"model_type": "bert"}
  assert (tmp_path / "ours" / "vocab.txt").is_file() and not (tmp_path / "ours" / "secret.txt").exists()


def test_nothing_is_overwritten(saved, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(UserError, match="already exists and is not empty"):
    checkpoints.save_folder(tmp_path, saved[1].params, METADATA, {})
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
  ("text", "words"),
  [("{", "not valid JSON"), ("[]", "holds a list, not a JSON object"), ('{"format_version": 9}', "format_version 9")],
)
def test_a_broken_description_is_told(tmp_path, text, words):
  (tmp_path / "metadata.json").write_text(text)
  with pytest.raises(UserError, match=words):
    checkpoints.read_metadata(tmp_path)


def test_fields_of_a_later_version_are_ignored(tmp_path):
  checkpoints.write_metadata(tmp_path, METADATA, {})
  facts = json.loads((tmp_path / "metadata.json").read_text())
  (tmp_path / "metadata.json").write_text(json.dumps({**facts, "mood": "good"}))
  assert checkpoints.read_metadata(tmp_path)[0] == METADATA


def small_store(folder, **keep):
  checkpoints.write_metadata(folder, METADATA, {"model_type": "bert"})
  return checkpoints.CheckpointStore(folder, **keep)


SMALL = {"kernel": jax.numpy.arange(6.0).reshape(2, 3)}


def save_steps(store, *steps):
  for step in steps:
    store.save(step, SMALL, {"optimizer": SMALL}, {"step": step})
  store.wait()


def test_rules_say_which_checkpoints_stay(tmp_path):
  store = small_store(tmp_path, keep=2, keep_every=4)
  save_steps(store, 1, 2, 3)
  store.keep_best(2)
  save_steps(store, *range(4, 8))
  assert store.steps() == [2, 4, 6, 7]
  assert checkpoints.step_folder(tmp_path / "checkpoints" / "best").name == "2"
  store.keep_best(7)
  save_steps(store, 8, 9)
  assert store.steps() == [4, 7, 8, 9]
  assert checkpoints.step_folder(tmp_path / "checkpoints" / "best").name == "7"


def test_what_was_cut_off_is_no_checkpoint(tmp_path):
  store = small_store(tmp_path)
  save_steps(store, 1, 2)
  (tmp_path / "checkpoints/2/manifest.sha256").unlink()
  (tmp_path / "checkpoints/3.orbax-checkpoint-tmp-7").mkdir()
  (tmp_path / "checkpoints/0.deleted").mkdir()
  store.clean()
  assert store.latest_step() == 1
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
  save_steps(store, 2)
  assert store.latest_step() == 2 and store.progress(2) == {"step": 2}


def test_what_cannot_be_deleted_stops_no_run(tmp_path, monkeypatch):
  store = small_store(tmp_path, keep=1)
  save_steps(store, 1)

  def busy(*_, **__):
    raise OSError(errno.ENOTEMPTY, "Directory not empty")  # NFS, where somebody still reads a file

  monkeypatch.setattr(os, "rmdir", busy)
  save_steps(store, 2)
  store.clean()
  monkeypatch.undo()
  assert store.steps() == [2]
  store.clean()
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_the_best_is_named_only_while_it_is_there(tmp_path):
  store = small_store(tmp_path)
  save_steps(store, 1)
  for step, there in ((1, True), (7, False), (1, True), (None, False)):
    store.keep_best(step)
    assert (tmp_path / "checkpoints" / "best").exists() == there


def test_a_run_that_went_on_otherwise_is_told_what_may_differ(tmp_path):
  store = small_store(tmp_path)
  save_steps(store, 1)
  other = {"optimizer": {"kernel": jax.ShapeDtypeStruct((2, 3), "float32"), "mean": jax.ShapeDtypeStruct((), "int32")}}
  with pytest.raises(UserError, match=r"\(training\); give OPTIMIZER, EMA_DECAY .*:\n- optimizer/mean \(\): missing"):
    store.restore(1, "training", other, None)


def test_a_new_folder_may_be_reached_by_a_link(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "disk")
  with checkpoints.new_folder(tmp_path / "link") as unfinished:
    (unfinished / "file").touch()
  assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "file").exists()


def test_the_root_of_a_disk_is_no_new_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
  with pytest.raises(UserError, match=f"{tmp_path} is where a disk is mounted; name a folder in it"):
    checkpoints.require_empty(tmp_path)


def test_the_manifest_is_one_that_sha256sum_reads(tmp_path):
  save_steps(small_store(tmp_path), 1)
  command = ["sha256sum", "--check", "--strict", "--quiet", "manifest.sha256"]
  subprocess.run(command, cwd=tmp_path / "checkpoints" / "1", check=True)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "gone"])
def test_a_damaged_file_is_refused_by_name(harm, tmp_path):
  whole = tmp_path / "whole"
  whole.mkdir()
  store = small_store(whole)
  (whole / "vocab.txt").write_text("[PAD]\n[UNK]\n")
  save_steps(store, 1, 2)
  step = whole / "checkpoints" / "2"
  files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
  files += [whole / name for name in ("metadata.json", "config.json", "vocab.txt")]
  assert len(files) > 12
  for file in files:
    if harm is Path.unlink and file.name == "manifest.sha256":
      continue  # without one it is no checkpoint: see above
    before = file.read_bytes()
    harm(file)
    with pytest.raises(UserError) as caught:
      store.require_whole(2)
    assert str(file) in str(caught.value), file
    other = "step 1" if step in file.parents else "no older checkpoint here is whole"
    assert other in str(caught.value)
    if "training" not in file.parts and "progress" not in file.parts:
      with pytest.raises(UserError, match="is damaged"):
        checkpoints.load_folder(whole)
    else:
      checkpoints.load_folder(whole)  # the model needs none of these
    file.write_bytes(before)
  store.require_whole(2)


def test_every_byte_of_the_manifest_counts(tmp_path):
  store = small_store(tmp_path)
  save_steps(store, 1)
  path = tmp_path / "checkpoints" / "1" / "manifest.sha256"
  whole = path.read_bytes()
  for place in range(0, len(whole), 7):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match=r"manifest\.sha256 is not as it was written"):
      store.require_whole(1)


@pytest.mark.parametrize("limit", [20, 600], ids=["in the arrays", "in the manifest"])
def test_a_full_disk_costs_only_the_newest_checkpoint(limit, tmp_path):
  store = small_store(tmp_path)
  save_steps(store, 1)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
  try:
    with pytest.raises(UserError, match=r"step 2 could not be written .* the checkpoints of steps \[1\] are whole"):
      save_steps(store, 2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  store.require_whole(1)
  np.testing.assert_array_equal(checkpoints.load_folder(tmp_path)[0]["kernel"], SMALL["kernel"])
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1"]
  # The run has ended; what is started once there is room goes on.
  save_steps(checkpoints.CheckpointStore(tmp_path), 2)
  assert store.latest_step() == 2


def _barrier_failed():
  try:
    raise jax.errors.JaxRuntimeError("UNAVAILABLE: heartbeat timeout")
  except jax.errors.JaxRuntimeError as error:
    raise TimeoutError("waiting for a barrier") from error


def _collective_failed():
  raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")


@pytest.mark.parametrize("fails", [_barrier_failed, _collective_failed])
def test_a_save_that_another_process_broke_is_not_blamed_on_the_disk(fails, tmp_path, monkeypatch):
  store = small_store(tmp_path)
  save_steps(store, 1)
  monkeypatch.setattr(store._checkpointer, "save", lambda *_, **__: fails())
  with pytest.raises(jax.errors.JaxRuntimeError, match="heartbeat|Gloo"):
    save_steps(store, 2)
  store.require_whole(1)


def test_one_step_of_a_folder_can_be_loaded(tmp_path):
  store = small_store(tmp_path)
  for step in (1, 2):
    store.save(step, {"kernel": SMALL["kernel"] + step})
  store.wait()
  store.keep_best(1)
  for name, value in (("1", 1), ("2", 2), ("best", 1)):
    params, metadata, _ = checkpoints.load_folder(tmp_path / "checkpoints" / name)
    np.testing.assert_array_equal(params["kernel"], SMALL["kernel"] + value)
    assert metadata == METADATA and checkpoints.is_checkpoint(tmp_path / "checkpoints" / name)
  with pytest.raises(UserError, match=r"5 is no checkpoint; .* has \[1, 2\]"):
    checkpoints.load_folder(tmp_path / "checkpoints" / "5")
