"""Runs that are killed, stopped, moved to other machines, or whose files go bad."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from fsb_jax import checkpoints

SCRIPT = Path(__file__).with_name("lived_run.py")


@pytest.fixture
def folder(inputs, tmp_path):
  # Links, so that all tests share what is compiled.
  (inputs / "compilations").mkdir(exist_ok=True)
  for path in inputs.iterdir():
    (tmp_path / path.name).symlink_to(path)
  return tmp_path


def start(folder, **options):
  """A life as a process; what it says goes to FOLDER/said-INDEX."""
  options = {"rate_steps": options["steps"], **options}
  with (folder / f"said-{options.get('index', 0)}").open("w") as said:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), json.dumps(options)], stdout=said, stderr=said)


def said(folder, index=0):
  return (folder / f"said-{index}").read_text(errors="replace")


def live(folder, **options):
  """A life to its end; its last line."""
  status = start(folder, **options).wait(timeout=300)
  assert status == 0, said(folder)
  return json.loads(said(folder).splitlines()[-1])


def start_two(folder, **options):
  """Two processes of one run."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{free.getsockname()[1]}"
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


def kill_again_and_again(folder, kills, begin, **options):
  """Starts a run and kills it at random times, `kills` times; then lets it end.

  Returns:
    What the run was doing when it was killed, counted.
  """
  draw, phases, lives = random.Random(0), Counter(), 0
  while phases.total() < kills:
    for path in folder.glob("phase-*"):
      path.unlink()
    processes = begin(folder, **options)
    lives += 1
    # One in five while it restores and compiles, the others once they train.
    wait_until_said(folder, "for validation" if draw.random() < 0.2 else "· loss ", processes)
    time.sleep(draw.uniform(0.0, 1.0))
    victim = draw.randrange(len(processes))
    if processes[victim].poll() is None:
      processes[victim].kill()
      phase = folder / f"phase-{victim}"
      doing = json.loads(phase.read_text()) if phase.exists() and phase.read_text().strip() else {}
      phases[" and ".join(name for name, count in doing.items() if count) or "step"] += 1
    else:
      assert all(process.wait() == 0 for process in processes), said(folder)
      pytest.fail(f"the run ended after {phases.total()} kills; make it longer")
    for process in processes:
      process.kill()
      process.wait()
  for process in begin(folder, **options):
    assert process.wait(timeout=300) == 0, said(folder)
  print(f"\n{lives} lives, killed while: {dict(phases)}")
  return phases


KILLS = int(os.environ.get("FSB_KILLS", 8))
KILLED = dict(
  periods={"log": 5, "checkpoint": 2, "evaluate": 3}, levers={"ema_decay": 0.9}, keep=2, devices=2, mesh={"fsdp": 2}
)


@pytest.mark.parametrize(
  ("kills", "steps"),
  [(2, 80), pytest.param(KILLS, 100 + 20 * KILLS, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(folder, kills, steps):
  live(folder, name="whole", steps=steps, **KILLED)
  kill_again_and_again(folder, kills, lambda *a, **o: [start(*a, **o)], steps=steps, **KILLED)
  assert_same(params(folder, "whole"), params(folder))
  evaluated = [
    [line for line in (folder / name / "metrics.jsonl").read_text().splitlines() if '"eval"' in line]
    for name in ("whole", "run")
  ]
  assert evaluated[0] == evaluated[1]


@pytest.mark.slow
def test_killed_processes_that_train_together_end_as_if_nothing_had_happened(folder):
  kills = -(-KILLS // 2)
  options = dict(KILLED, devices=1, steps=100 + 20 * kills)
  for process in start_two(folder, name="whole", **options):
    assert process.wait(timeout=300) == 0, said(folder)
  kill_again_and_again(folder, kills, start_two, **options)
  assert_same(params(folder, "whole"), params(folder))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_asked_to_stop_it_saves_and_ends(folder, number, status):
  process = start(folder, steps=2000, periods={"log": 1, "checkpoint": None})
  wait_until_said(folder, "step 2/", [process])
  process.send_signal(number)
  assert process.wait(timeout=60) == status, said(folder)
  assert f"stopped by {number.name}, saved" in said(folder)
  step = checkpoints.CheckpointStore(folder / "run").latest_step()
  assert step == max(losses(folder)) >= 2


def test_of_two_processes_one_is_asked_and_both_stop(folder):
  processes = start_two(folder, steps=5000, periods={"log": 1, "checkpoint": None})
  wait_until_said(folder, "step 2/", processes)
  processes[1].send_signal(signal.SIGTERM)
  assert [process.wait(timeout=60) for process in processes] == [0, 0], said(folder) + said(folder, 1)
  assert checkpoints.CheckpointStore(folder / "run").latest_step() == max(losses(folder)) >= 2


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
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


def test_a_run_moves_between_meshes_and_processes(folder):
  """1 device, 8x1, 1x8, 2x2x2, two processes, one again: the losses of a run that never moved."""
  periods = {"log": 1, "checkpoint": 4, "evaluate": 4}
  live(folder, name="whole", steps=24, periods=periods)
  moves = [
    dict(devices=1),
    dict(devices=8, mesh={"data": 8}),
    dict(devices=8, mesh={"fsdp": 8}),
    dict(devices=8, mesh={"data": 2, "fsdp": 2, "tensor": 2}),
    None,
    dict(devices=1),
  ]
  for number, options in enumerate(moves, start=1):
    common = dict(steps=4 * number, rate_steps=24, periods=periods)
    if options is None:
      for process in start_two(folder, devices=1, mesh={"fsdp": 2}, **common):
        assert process.wait(timeout=300) == 0, said(folder) + said(folder, 1)
    else:
      live(folder, **options, **common)
  for kind, steps in (("train", range(1, 25)), ("eval", range(4, 25, 4))):
    whole, moved = losses(folder, "whole", kind), losses(folder, kind=kind)
    assert sorted(moved) == sorted(whole) == list(steps)
    np.testing.assert_allclose([moved[step] for step in steps], [whole[step] for step in steps], rtol=0, atol=1e-5)
  rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {row["examples"] for row in rows if row["kind"] == "eval"} == {45}


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
