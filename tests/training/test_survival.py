"""Runs that are killed or stopped."""

import json
import os
import random
import signal
import time
from collections import Counter

import pytest
from lives import assert_same, gone, live, losses, params, said, start, start_two, wait_until_said

from fsb_jax import checkpoints


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
    # One in five while it restores and compiles, the others after some steps.
    early, steps = draw.random() < 0.2, draw.randrange(20)
    wait_until_said(folder, "for validation", processes)
    while not early and gone(folder) < steps and all(process.poll() is None for process in processes):
      time.sleep(0.005)
    time.sleep(draw.uniform(0.0, 0.3))
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
    assert process.wait(timeout=1800) == 0, said(folder)
  print(f"\n{lives} lives, killed while: {dict(phases)}")
  return phases


KILLS = int(os.environ.get("FSB_KILLS", 8))
KILLED = dict(
  periods={"log": 5, "checkpoint": 2, "evaluate": 3}, levers={"ema_decay": 0.9}, keep=2, devices=2, mesh={"fsdp": 2}
)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [(2, 40), (KILLS, 100 + 20 * KILLS)])
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(folder, kills, steps):
  live(folder, name="whole", steps=steps, **KILLED)
  phases = kill_again_and_again(folder, kills, lambda *a, **o: [start(*a, **o)], steps=steps, **KILLED)
  if kills >= 50:
    # So many hit everything that a run does.
    assert all(any(doing in phase for phase in phases) for doing in ("step", "save", "seal", "eval")), phases
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
    assert process.wait(timeout=1800) == 0, said(folder)
  kill_again_and_again(folder, kills, start_two, **options)
  assert_same(params(folder, "whole"), params(folder))


@pytest.mark.parametrize(
  ("number", "status"),
  [
    pytest.param(signal.SIGTERM, 0, id="SIGTERM"),
    pytest.param(signal.SIGINT, 130, id="SIGINT", marks=pytest.mark.slow),
  ],
)
def test_asked_to_stop_it_saves_and_ends(folder, number, status):
  process = start(folder, steps=2000, periods={"log": 1, "checkpoint": None})
  wait_until_said(folder, "step 2/", [process])
  process.send_signal(number)
  assert process.wait(timeout=60) == status, said(folder)
  assert f"stopped by {number.name}, saved" in said(folder)
  step = checkpoints.CheckpointStore(folder / "run").latest_step()
  assert step == max(losses(folder)) >= 2
