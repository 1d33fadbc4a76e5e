"""Tensor-parallel parts of the original's LLaMA: as its own tool cuts them, joined again, and what does not fit."""

import shutil

import numpy as np
import pytest
import torch
from convert_torch import cli, io, load_hub_folder
from safetensors.numpy import load_file, save_file
from test_goldens import ALL, HERE
from tiny_hub import assert_same_tree, hub_folder, tensors_of

from fsb_jax.errors import UserError

WHOLE = HERE / "llama_fs"
NORM = "llama.layers.0.input_layernorm.scale"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  folder = tmp_path_factory.mktemp("parts") / "ours"
  cli.import_checkpoint(WHOLE, folder)
  return folder


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
def test_as_the_originals_tool_cuts_them_in_both_directions(ours, tmp_path):
  recorded = ALL / "llama_tp2"
  cli.export_checkpoint(ours, tmp_path / "cut", tensor_parallel=2)
  for i in range(2):
    assert_equal(tensors_of(tmp_path / "cut" / f"part_{i}"), load_file(recorded / f"part_{i}.safetensors"))
    (tmp_path / "theirs" / f"part_{i}").mkdir(parents=True)
    shutil.copy(recorded / f"part_{i}.safetensors", tmp_path / "theirs" / f"part_{i}" / "model.safetensors")
    shutil.copy(recorded / "config_part.json", tmp_path / "theirs" / f"part_{i}" / "config.json")
  read = load_hub_folder(tmp_path / "theirs")
  assert_same_tree(read.params, load_hub_folder(WHOLE).params)
  assert read.config == load_hub_folder(WHOLE).config
  assert read.source["sha256"].keys() == {"part_0/model.safetensors", "part_1/model.safetensors"}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_cut_and_joined(ours, tmp_path, count):
  # Small shards, so that no two parts' tensors lie in files of the same names.
  cli.export_checkpoint(ours, tmp_path / "cut", tensor_parallel=count, max_shard_bytes=9000)
  assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(
    ["config.json", *(f"part_{i}" for i in range(count))]
  )
  assert load_hub_folder(tmp_path / "cut").newly_initialised == []
  cli.import_checkpoint(tmp_path / "cut", tmp_path / "again")
  cli.export_checkpoint(tmp_path / "again", tmp_path / "whole")
  assert_equal(tensors_of(tmp_path / "whole"), tensors_of(WHOLE))


def test_pickles_are_read_and_refused_as_elsewhere(ours, tmp_path):
  cli.export_checkpoint(ours, tmp_path / "cut", tensor_parallel=2)
  for i in range(2):
    part = tmp_path / "cut" / f"part_{i}"
    state = {name: torch.from_numpy(x) for name, x in tensors_of(part).items()}
    torch.save(state, part / "pytorch_model.bin", _use_new_zipfile_serialization=i == 0)
    (part / "model.safetensors").unlink()
  assert_same_tree(load_hub_folder(tmp_path / "cut").params, load_hub_folder(WHOLE).params)
  torch.save({"harmful": print}, tmp_path / "cut" / "part_1" / "pytorch_model.bin")
  with pytest.raises(UserError, match="part_1/pytorch_model.bin is refused"):
    load_hub_folder(tmp_path / "cut")


def spoilt(cut, target, change):
  """A copy of `cut` whose second part's tensors went through `change`."""
  shutil.copytree(cut, target)
  tensors = tensors_of(target / "part_1")
  change(tensors)
  save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, target / "part_1" / "model.safetensors")
  return target


def without_its_norm(tensors):
  del tensors[NORM]


def with_another_norm(tensors):
  tensors[NORM] = tensors[NORM] + np.float32(1e-6)


def with_a_longer_kernel(tensors):
  tensors["llama.layers.0.mlp.w1.weight"] = np.zeros((130, 32), np.float32)


def with_another_dtype(tensors):
  tensors["llama.layers.0.mlp.w1.weight"] = tensors["llama.layers.0.mlp.w1.weight"].astype(np.float16)


@pytest.mark.parametrize("change,sentence", [
  (without_its_norm, f"part_1 lacks {NORM}; the parts do not belong together"),
  (with_another_norm, f"{NORM} in .*part_1/model.safetensors differs from that in .*part_0/model.safetensors"),
  (with_a_longer_kernel, r"mlp.w1.weight is float32 \[130, 32\] in .*part_1.* and float32 \[128, 32\] in .*part_0"),
  (with_another_dtype, r"mlp.w1.weight is float16 \[128, 32\] in .*part_1.* and float32 \[128, 32\] in .*part_0"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_named(ours, tmp_path, change, sentence):
  cli.export_checkpoint(ours, tmp_path / "cut", tensor_parallel=2)
  with pytest.raises(UserError, match=sentence):
    load_hub_folder(spoilt(tmp_path / "cut", tmp_path / "spoilt", change))


def test_a_missing_part_is_named_and_too_few_do_not_fit(ours, tmp_path):
  cli.export_checkpoint(ours, tmp_path / "cut", tensor_parallel=4)
  shutil.rmtree(tmp_path / "cut" / "part_3")
  with pytest.raises(UserError, match=r"embed_in.word_embeddings.weight is \[96, 32\], .* needs \[128, 32\]"):
    load_hub_folder(tmp_path / "cut")
  (tmp_path / "cut" / "part_1").rename(tmp_path / "cut" / "part_7")
  with pytest.raises(UserError, match="has no part_1, though it has part_7"):
    load_hub_folder(tmp_path / "cut")


@pytest.mark.parametrize("options,sentence", [
  (dict(tensor_parallel=3), "tensor_parallel=3 does not divide num_attention_heads 4"),
  (dict(tensor_parallel=0), "tensor_parallel=0 makes no part"),
  (dict(tensor_parallel=4, vocab_size=126), r"does not divide axis 0 of llama.embed_in.word_embeddings.weight \[126"),
  (dict(tensor_parallel=2, family="llama"), "this family is not written in parts"),
])  # fmt: skip
def test_what_cannot_be_cut_is_said_before_anything_is_written(ours, tmp_path, options, sentence):
  with pytest.raises(UserError, match=sentence):
    cli.export_checkpoint(ours, tmp_path / "cut", **options)
  assert list(tmp_path.iterdir()) == []


def test_parts_of_another_family_are_refused(tmp_path):
  hub_folder(tmp_path / "hub" / "part_0")
  with pytest.raises(UserError, match="the family of its config.json is not kept in parts"):
    load_hub_folder(tmp_path / "hub")


def test_no_more_than_one_tensor_is_read_ahead(ours, tmp_path, monkeypatch):
  cli.export_checkpoint(ours, tmp_path / "cut", tensor_parallel=2)
  alive, most = [], [0]
  read = io._read_safetensors

  def counted(path, infos):
    for info, array in read(path, infos):
      alive.append(path)
      most[0] = max(most[0], len(alive))
      yield info, array
      alive.remove(path)

  monkeypatch.setattr(io, "_read_safetensors", counted)
  load_hub_folder(tmp_path / "cut")
  assert most == [2]
