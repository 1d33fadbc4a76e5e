"""Starts lives of a training run (`lived_run`) and says what became of them."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from fsb_jax import checkpoints

started: list[subprocess.Popen] = []
SCRIPT = Path(__file__).with_name("lived_run.py")


def start(folder, **options):
  """A life as a process; what it says goes to FOLDER/said-INDEX."""
  options = {"rate_steps": options["steps"], **options}
  with (folder / f"said-{options.get('index', 0)}").open("w") as said:
    process = subprocess.Popen(
      [sys.executable, str(SCRIPT), str(folder), json.dumps(options)], stdout=said, stderr=said
    )
  started.append(process)
  return process


def said(folder, index=0):
  return (folder / f"said-{index}").read_text(errors="replace")


def live(folder, **options):
  """A life to its end; its last line."""
  status = start(folder, **options).wait(timeout=1800)
  assert status == 0, said(folder)
  return json.loads(said(folder).splitlines()[-1])


def free_address():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def start_two(folder, **options):
  """Two processes of one run."""
  coordinator = free_address()
  return [start(folder, processes=2, index=i, coordinator=coordinator, **options) for i in range(2)]


def wait_until_said(folder, text, processes, index=0, seconds=300):
  deadline = time.monotonic() + seconds
  while text not in said(folder, index):
    assert time.monotonic() < deadline, said(folder, index)
    if any(process.poll() is not None for process in processes):
      return
    time.sleep(0.005)


def params(folder, name="run"):
  return checkpoints.load_folder(folder / name)[0]


def assert_same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two)):
    np.testing.assert_array_equal(left, right, err_msg=str(path))


def losses(folder, name="run", kind="train"):
  rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row["loss"] for row in rows if row["kind"] == kind}


def gone(folder):
  """How many steps a life has reported after its first report; -1 before that."""
  reported = [int(number) for number in re.findall(r"^step (\d+)/", said(folder), re.M)]
  return reported[-1] - reported[0] if reported else -1
