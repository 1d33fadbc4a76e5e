"""Settings that must be in place before JAX is imported."""

import os

# The CPU as eight devices, so that meshes are tested where there is one machine and no accelerator.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
# Tests compile much and compute little: LLVM's optimisations cost twice what they save. `make test-all` keeps them.
if not os.environ.get("FSB_OPTIMISED_TESTS"):
  _FLAGS += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
