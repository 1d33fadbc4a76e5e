"""Runs of several processes, and runs that move between meshes and numbers of processes."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from lives import free_address, live, losses, said, start, start_two, wait_until_said

from fsb_jax import checkpoints


@pytest.mark.slow
def test_of_two_processes_one_is_asked_and_both_stop(folder):
  processes = start_two(folder, steps=5000, periods={"log": 1, "checkpoint": None})
  wait_until_said(folder, "step 2/", processes)
  processes[1].send_signal(signal.SIGTERM)
  assert [process.wait(timeout=60) for process in processes] == [0, 0], said(folder) + said(folder, 1)
  assert checkpoints.CheckpointStore(folder / "run").latest_step() == max(losses(folder)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_dies_and_the_other_says_so(folder, victim):
  processes = start_two(folder, steps=5000, periods={"log": 5, "checkpoint": 10})
  wait_until_said(folder, "step 20/", processes)
  processes[victim].kill()
  began = time.monotonic()
  assert processes[1 - victim].wait(timeout=60) != 0
  assert re.search(r"another process of the run is gone|another task died", said(folder, 1 - victim)), said(
    folder, 1 - victim
  )
  print(f"\nended {time.monotonic() - began:.1f} s later")


ONE = dict(devices=1)
CUBE = dict(devices=8, mesh={"data": 2, "fsdp": 2, "tensor": 2})
TWO_PROCESSES = None


@pytest.mark.parametrize(
  "moves",
  [
    pytest.param((CUBE, TWO_PROCESSES, ONE), marks=pytest.mark.slow),
    pytest.param(
      (ONE, dict(devices=8, mesh={"data": 8}), dict(devices=8, mesh={"fsdp": 8}), CUBE, ONE, TWO_PROCESSES, ONE),
      marks=pytest.mark.slow,
    ),
  ],
  ids=["some", "all"],
)
def test_a_run_moves_between_meshes_and_processes(folder, moves):
  """The losses and scores are those of a run that never moved."""
  total, periods = 4 * len(moves), {"log": 1, "checkpoint": 4, "evaluate": 4}
  live(folder, name="whole", steps=total, periods=periods)
  for number, options in enumerate(moves, start=1):
    common = dict(steps=4 * number, rate_steps=total, periods=periods)
    if options is TWO_PROCESSES:
      for process in start_two(folder, devices=1, mesh={"fsdp": 2}, **common):
        assert process.wait(timeout=300) == 0, said(folder) + said(folder, 1)
    else:
      live(folder, **options, **common)
  for kind, steps in (("train", range(1, total + 1)), ("eval", range(4, total + 1, 4))):
    whole, moved = losses(folder, "whole", kind), losses(folder, kind=kind)
    assert sorted(moved) == sorted(whole) == list(steps)
    np.testing.assert_allclose([moved[step] for step in steps], [whole[step] for step in steps], rtol=0, atol=1e-5)
  rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {row["examples"] for row in rows if row["kind"] == "eval"} == {45}


@pytest.mark.slow
def test_a_mistake_that_one_process_finds_ends_both(folder):
  with (folder / ".run.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    processes = start_two(folder, steps=4)
    assert [process.wait(timeout=120) != 0 for process in processes] == [True, True]
  assert "another run is training in MODEL_DIR" in said(folder)
  assert "another process of the run has ended" in said(folder, 1) or "another task died" in said(folder, 1)


@pytest.mark.slow
def test_processes_that_share_no_disk_are_told(folder):
  coordinator = free_address()
  processes = [
    start(folder, name=f"run-{index}", steps=4, processes=2, index=index, coordinator=coordinator) for index in range(2)
  ]
  assert [process.wait(timeout=180) != 0 for process in processes] == [True, True]
  assert "process 1 has other files in MODEL_DIR" in said(folder) + said(folder, 1)


@pytest.mark.slow
def test_the_command_line_starts_processes_and_scores_with_them(folder):
  """`fsb train` and `fsb eval` in two processes: every example counted once, and the result is that of one."""
  live(folder, name="one", steps=6)
  common = [
    "--gin_file=gin/runs/finetune.gin", "--gin_file=gin/models/bert/tiny.gin", "--gin_file=gin/tasks/table.gin",
    f"--gin.TRAIN_FILE={folder}/train.csv", f"--gin.VALIDATION_FILE={folder}/validation.csv", "--gin.TEXT_COLUMN=text",
  ]
  train = ["train", *common, f"--gin.MODEL_DIR={folder}/two", f"--gin.TOKENIZER={folder}/tokenizer"]
  train += ["--gin.TRAIN_STEPS=6", "--gin.BATCH_SIZE=16", "--gin.LEARNING_RATE=1e-3"]
  score = ["eval", "--gin_file=gin/runs/eval.gin", *common[2:], f"--gin.MODEL={folder}/two", "--gin.BATCH_SIZE=16"]
  score += [f"--gin.OUTPUT_FILE={folder}/scores.json"]
  for command in (train, score):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    processes = [
      subprocess.Popen(
        [sys.executable, "-m", "fsb_jax.cli", *command, f"--coordinator=127.0.0.1:{port}", "--process-count=2",
         f"--process-index={index}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True,
      )
      for index in range(2)
    ]  # fmt: skip
    for process in processes:
      error = process.communicate(timeout=300)[1]
      assert process.returncode == 0, error
  scores = json.loads((folder / "scores.json").read_text())["table"]
  assert scores["examples"] == 45
  assert scores["loss"] == pytest.approx(losses(folder, "two", "eval")[6], abs=1e-6)
