"""A long text needs no more memory than its cache, which is there before its first token."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOKENS = 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's size from /proc")
def test_4096_tokens_do_not_grow_the_process():
  # A process of its own: what others freed and take again would blur it.
  environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
  run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
  sizes = json.loads(run.stdout.splitlines()[-1])
  assert len(sizes) == TOKENS
  # What is compiled and allocated is there after the first tokens; a kilobyte a token would be three times as much.
  assert sizes[-1] - sizes[1024] < 2**20, sizes[::256]


def resident() -> int:
  """Bytes of this process in memory."""
  return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def write_a_long_text() -> None:
  """Prints the process's size at every token."""
  from writers import our_texts, prompts, writer

  sizes = []
  our_texts(
    writer("llama", max_position_embeddings=2 * TOKENS), *prompts(False, 0, rows=1), max_new_tokens=TOKENS,
    min_new_tokens=TOKENS, on_tokens=lambda new: sizes.append(resident()),
  )  # fmt: skip
  print(json.dumps(sizes))


if __name__ == "__main__":
  write_a_long_text()
