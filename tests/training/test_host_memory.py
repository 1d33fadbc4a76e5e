"""Blocks of memory that a step frees are there for the next one."""

import subprocess
import sys

import pytest

# Takes 64 MiB, lets go of it and takes it again, and counts the pages that the system had to bring.
SCRIPT = """
import resource, sys
from fsb_jax.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
  assert keep_freed_memory()
faults = []
for _ in range(4):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = bytearray(64 << 20)
  block[::4096] = b"x" * len(block[::4096])
  del block
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again():
  faults = {
    how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout)
    for how in ("keep", "leave")
  }
  assert faults["keep"] < 100 < 10_000 < faults["leave"]
