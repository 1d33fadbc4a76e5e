import builtins
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from convert_torch import io, load_hub_folder
from safetensors.numpy import load_file
from tiny_hub import hub_folder, tensors_of

from fsb_jax import models
from fsb_jax.errors import UserError


def test_written_as_the_values_say_not_as_the_memory_lies(tmp_path):
  tensors = {
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(10, dtype=np.float32)[::2],
    "scalar": np.float32(3).reshape(()),
    "half": np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2).T,
  }
  io.write_folder(tmp_path / "out", tensors.items(), {})
  files = io.WeightFiles(tmp_path / "out")
  read = {info.name: array for info, array in files.read(files.tensors)}
  assert read.keys() == tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(read[name], x)
    assert read[name].dtype == x.dtype and read[name].shape == x.shape


def test_shards_hold_every_tensor_once_and_no_more_than_allowed(tmp_path):
  tensors = {f"x{i}": np.full(size, i, np.float32) for i, size in enumerate((10, 10, 30, 5, 5, 5))}
  io.write_folder(tmp_path / "out", tensors.items(), {"a": "中"}, max_shard_bytes=80)
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  assert [file.name for file in files] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
  # The one tensor that is larger than a shard has a shard of its own.
  assert [sorted(load_file(file)) for file in files] == [["x0", "x1"], ["x2"], ["x3", "x4", "x5"]]
  assert index["metadata"]["total_size"] == 65 * 4
  assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
  assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8")) == {"a": "中"}


def test_a_failure_while_writing_leaves_nothing(tmp_path):
  def tensors():
    yield "x", np.zeros(3)
    raise RuntimeError("disk")

  with pytest.raises(RuntimeError, match="disk"):
    io.write_folder(tmp_path / "out", tensors(), {})
  assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path):
  (tmp_path / "out").mkdir()
  io.write_folder(tmp_path / "out", [("x", np.zeros(3))], {})
  with pytest.raises(UserError, match="not empty"):
    io.write_folder(tmp_path / "out", [("x", np.zeros(3))], {})


def test_hashes_are_those_of_the_files(tmp_path):
  (tmp_path / "file").write_bytes(b"abc")
  assert io.sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_without_pytorch_a_pickle_says_what_to_install(tmp_path, monkeypatch):
  hub_folder(tmp_path / "hub")
  torch.save({name: torch.from_numpy(x) for name, x in tensors_of(tmp_path / "hub").items()}, tmp_path / "saved")
  load_hub_folder(tmp_path / "hub")  # so that nothing is imported for the first time below
  real_import = builtins.__import__

  def no_torch(name, *arguments, **options):
    if name == "torch":
      raise ImportError(name)
    return real_import(name, *arguments, **options)

  monkeypatch.setattr(builtins, "__import__", no_torch)
  load_hub_folder(tmp_path / "hub")  # safetensors need no PyTorch
  (tmp_path / "hub" / "model.safetensors").unlink()
  (tmp_path / "saved").rename(tmp_path / "hub" / "pytorch_model.bin")
  with pytest.raises(UserError, match=r"pip install 'fsb_jax\[convert\]'"):
    load_hub_folder(tmp_path / "hub")


@pytest.mark.parametrize("scan", [True, False])
def test_loading_and_saving_hold_one_copy_of_the_parameters(tmp_path, scan):
  shape = dict(vocab_size=500, hidden_size=256, num_hidden_layers=10, intermediate_size=1024, num_attention_heads=4)
  hub_folder(tmp_path / "one", **shape)
  tensors = tensors_of(tmp_path / "one")
  total, largest = sum(x.nbytes for x in tensors.values()), max(x.nbytes for x in tensors.values())
  config = json.loads((tmp_path / "one" / "config.json").read_text())
  assert total > 25 * largest

  tracemalloc.start()
  io.write_folder(tmp_path / "hub", tensors.items(), config, max_shard_bytes=total // 8)
  writing = tracemalloc.get_traced_memory()[1]
  tracemalloc.reset_peak()
  before = tracemalloc.get_traced_memory()[0]
  hub = load_hub_folder(tmp_path / "hub", run=models.Run(scan_layers=scan))
  reading = tracemalloc.get_traced_memory()[1] - before
  tracemalloc.stop()

  assert len(list((tmp_path / "hub").glob("*.safetensors"))) >= 8
  assert sum(x.nbytes for x in models.flatten(hub.params).values()) == total
  assert reading < total + 3 * largest + 3e6  # the parameters, the tensor in hand, Python's own
  assert reading > total  # the measurement sees numpy's memory
  assert writing < total / 8 + 3 * largest + 3e6
