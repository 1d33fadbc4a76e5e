"""Settings that must be in place before JAX is imported, and the command line as tests call it."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

import pytest

# The CPU as eight devices, so that meshes are tested where there is one machine and no accelerator.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
# Tests compile much and compute little: LLVM's optimisations, XLA's newer emitters and the cutting of each module into
# parts for many cores cost more than they save.
if not os.environ.get("FSB_OPTIMISED_TESTS"):
  _FLAGS += [
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1",
  ]  # fmt: skip

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests run side by side, on tensors too small to share: threads of PyTorch would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is compiled for one test serves the others, in all workers and the processes they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fsb_jax_compilations_")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()

# Tracing makes objects by the million, and hardly a cycle among them.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def fsb(monkeypatch, capsys, tmp_path):
  """Runs `fsb ARGUMENTS` in an empty folder; gives the exit status and what went to the two streams."""
  from fsb_jax import cli

  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("FSB_DATA_DIR", raising=False)
  # The compilation cache is for people; tests must not fill it.
  monkeypatch.setattr(cli, "_cache_compilations", lambda: None)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["fsb", *map(str, arguments)])
    try:
      cli.main()
      status = 0
    except SystemExit as stop:
      status = stop.code or 0
    streams = capsys.readouterr()
    return status, streams.out, streams.err

  return run
