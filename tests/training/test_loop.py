"""What a run does besides learning: it watches itself, keeps the best, stops in time, and says what it costs."""

import json
import types
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from tiny_run import one_device, run

import fsb_jax
from fsb_jax import checkpoints
from fsb_jax.errors import UserError
from fsb_jax.training import evaluate as evaluation
from fsb_jax.training import interruption, reporting, scores
from fsb_jax.training.levers import Levers
from fsb_jax.training.loop import Loop, Periods
from fsb_jax.training.step import Update

ONE_DEVICE = {"mesh": one_device()}


def lines(folder, kind="train"):
  return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


def poison(monkeypatch, *steps):
  """Makes the loss of these updates not a number."""
  loss = Update._loss_and_gradients

  def broken(self, trained, frozen, batch, state):
    value, gradients = loss(self, trained, frozen, batch, state)
    return jax.numpy.where(jax.numpy.isin(state.step + 1, jax.numpy.array(steps)), jax.numpy.nan, value), gradients

  monkeypatch.setattr(Update, "_loss_and_gradients", broken)


def test_a_broken_loss_stops_the_run_and_names_what_broke_it(table, tokenizer, tmp_path, monkeypatch):
  poison(monkeypatch, 7)
  with pytest.raises(UserError) as caught:
    run(tmp_path / "run", table, tokenizer, 20, periods=Periods(log=4, checkpoint=3), **ONE_DEVICE)
  text = str(caught.value)
  assert "training broke at step 7: loss nan" in text and "the last good checkpoint is step 6" in text
  ids = [int(word) for word in text.split("training examples ")[1].split(";")[0].split(", ")]
  assert len(ids) == 32 and len({*ids}) == 32
  assert checkpoints.CheckpointStore(tmp_path / "run").steps() == [3, 6]


def test_a_bad_batch_can_be_skipped(table, tokenizer, tmp_path, monkeypatch, capsys):
  poison(monkeypatch, 7, 12)
  run(
    tmp_path / "run", table, tokenizer, 20, periods=Periods(log=4), levers=Levers(skip_bad_batches=True), **ONE_DEVICE
  )
  assert "skipped the batch of step 7: loss nan" in capsys.readouterr().err
  assert [row["skipped"] for row in lines(tmp_path / "run")] == [0, 1, 1, 0, 0]
  assert all(np.isfinite(row["loss"]) for row in lines(tmp_path / "run"))


@pytest.mark.slow
def test_too_many_bad_batches_stop_the_run(table, tokenizer, tmp_path, monkeypatch):
  poison(monkeypatch, *range(3, 40))
  with pytest.raises(UserError, match=r"training broke at step 12: .*\(too many to skip\)"):
    run(tmp_path / "run", table, tokenizer, 40, levers=Levers(skip_bad_batches=True), **ONE_DEVICE)


def scripted(monkeypatch, accuracies):
  """Makes evaluations return these accuracies, one after the other."""
  remaining = iter(accuracies)
  monkeypatch.setattr(
    evaluation, "evaluate_split",
    lambda *_: {"loss": 1.0, "accuracy": next(remaining), "majority_baseline": 0.5, "examples": 45},
  )


def test_it_keeps_the_best_and_stops_when_nothing_gets_better(table, tokenizer, tmp_path, monkeypatch, capsys):
  scripted(monkeypatch, [0.5, 0.9, 0.7, 0.8, 0.9, 1.0])
  periods = Periods(log=10, evaluate=2, checkpoint=3, early_stop=3)
  keep = dict(keep_checkpoints=1, keep_every=7)
  metrics = run(tmp_path / "run", table, tokenizer, 60, periods=periods, **keep, **ONE_DEVICE)
  # 0.9 at step 10 is no better than 0.9 at step 4.
  assert metrics["accuracy"] == 0.9 and [row["step"] for row in lines(tmp_path / "run", "eval")] == [2, 4, 6, 8, 10]
  assert "stopped early at step 10: nothing better than step 4 in 3 evaluations" in capsys.readouterr().err
  assert (tmp_path / "run" / "checkpoints" / "best").read_text() == "4\n"
  store = checkpoints.CheckpointStore(tmp_path / "run")
  # Step 7 is kept though no checkpoint is due then.
  assert store.steps() == [4, 7, 10]
  model, params = fsb_jax.from_pretrained(tmp_path / "run" / "checkpoints" / "best", load_tokenizer=False)
  assert jax.tree.leaves(params)
  # Started again it knows that it was done.
  assert run(tmp_path / "run", table, tokenizer, 60, periods=periods, **keep, **ONE_DEVICE) == metrics


@pytest.mark.slow
def test_the_average_of_the_weights_is_the_model(table, tokenizer, tmp_path):
  metrics = run(tmp_path / "run", table, tokenizer, 60, levers=Levers(ema_decay=0.9))
  assert metrics["accuracy"] == 1.0
  store = checkpoints.CheckpointStore(tmp_path / "run")
  average = store.restore_params_to_host(60)
  live = store._read(60, training=fsb_jax.checkpoints.store.ocp.args.StandardRestore())["training"]["params"]
  assert not np.array_equal(average["head"]["classifier"]["kernel"], live["head"]["classifier"]["kernel"])


def test_nothing_is_compiled_after_the_shapes_were_seen(table, tokenizer, tmp_path):
  periods = Periods(log=1, evaluate=10)
  run(tmp_path / "run", table, tokenizer, 60, buckets=2, periods=periods, **ONE_DEVICE)
  counts = {row["step"]: row["compilations"] for row in lines(tmp_path / "run")}
  assert sum(counts[step] for step in range(1, 16)) >= 2  # a step for each of two lengths
  assert [step for step in range(16, 61) if counts[step]] == []


def test_a_report_says_what_a_step_costs(table, tokenizer, tmp_path):
  run(tmp_path / "run", table, tokenizer, 20, **ONE_DEVICE)
  first, second = lines(tmp_path / "run")
  assert first["compile_seconds"] > 0 == second["compile_seconds"]
  assert second["peak_memory_bytes"] > 1e8 and 0 <= second["data_wait_share"] < 1
  assert second["parameter_norm"] > 0 and second["gradient_norm"] > 0


def test_a_profile_can_be_opened(table, tokenizer, tmp_path, capsys):
  run(tmp_path / "run", table, tokenizer, 20, profile=True, **ONE_DEVICE)
  assert "profile written" in capsys.readouterr().err
  (trace,) = (tmp_path / "run" / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
  from jax.profiler import ProfileData

  events = [e.name for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines for e in line.events]
  assert sum(name == "train" for name in events) == 5


@pytest.mark.parametrize(("steps", "said"), [(10, "no profile was written"), (12, "profile written")])
def test_a_run_that_ends_before_its_profile_does_says_what_there_is(steps, said, monkeypatch):
  calls = mock.Mock()
  monkeypatch.setattr(jax.profiler, "start_trace", calls.start)
  monkeypatch.setattr(jax.profiler, "stop_trace", calls.stop)
  metrics = dict.fromkeys(("loss", "gradient_norm", "examples", "tokens", "bad"), np.float32(0))
  state, anything = types.SimpleNamespace(step=0, params={}, good_steps=0), mock.MagicMock()
  loader = types.SimpleNamespace(
    waited=0.0, steps_per_epoch=lambda: 5, stream=lambda first, last: iter([{"input_ids": np.zeros((1, 8))}] * steps)
  )
  loop = Loop(
    train_steps=steps, periods=Periods(), update=lambda state, batch: (state, metrics), score=anything,
    norm=lambda params: 0, loader=loader, scored={}, partitioner=anything, store=anything, writer=anything,
    progress=anything, scores=scores.Scores("loss"), order={}, profile="somewhere",
  )
  monkeypatch.setattr(Loop, "_save", Loop._report)
  loop.run(state)
  assert calls.start.call_count == calls.stop.call_count == (steps > 10)
  assert [said in call.args[0] for call in anything.say.call_args_list] == [True]


def test_interruptions_of_one_process_count_on(monkeypatch):
  """Runs of several seeds: processes agree on a number at which to stop, which must not come twice."""
  ticks = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(interruption.multihost_utils, "reached_preemption_sync_point", ticks.append)
  for _ in range(2):
    one = interruption.Interruption()
    one.check(), one.check()
  assert all(low < high for low, high in zip(ticks, ticks[1:])) and len(ticks) == 4


@pytest.mark.slow
def test_several_seeds_give_a_mean_and_its_spread(table, tokenizer, tmp_path, capsys):
  mean = run(tmp_path / "runs", table, tokenizer, 15, seed=(0, 1, 2), **ONE_DEVICE)
  summary = json.loads((tmp_path / "runs" / "seeds.json").read_text())
  each = [summary["seeds"][seed]["loss"] for seed in ("0", "1", "2")]
  assert len({*each}) == 3
  assert summary["mean"]["loss"] == mean["loss"] == pytest.approx(np.mean(each))
  assert summary["standard_deviation"]["loss"] == pytest.approx(np.std(each, ddof=1))
  assert f"loss over 3 seeds: {np.mean(each):.4f} ± {np.std(each, ddof=1):.4f}" in capsys.readouterr().out
  assert all((tmp_path / "runs" / f"seed-{seed}" / "checkpoints" / "15").is_dir() for seed in range(3))


@pytest.mark.parametrize("seed", [(0,), (0, 0), (0, "1"), (0, -1)], ids=str)
def test_seeds_must_differ(seed, table, tokenizer, tmp_path):
  with pytest.raises(UserError, match="SEED must be a whole number, or several different ones"):
    run(tmp_path / "runs", table, tokenizer, 15, seed=seed, **ONE_DEVICE)


def test_two_runs_do_not_share_a_folder(table, tokenizer, tmp_path):
  import fcntl

  with (tmp_path / ".run.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another run is training in MODEL_DIR"):
      run(tmp_path / "run", table, tokenizer, 2, **ONE_DEVICE)
  run(tmp_path / "run", table, tokenizer, 2, **ONE_DEVICE)


def test_a_damaged_checkpoint_is_told_and_the_one_before_offered(table, tokenizer, tmp_path):
  run(tmp_path / "run", table, tokenizer, 4, periods=Periods(checkpoint=2), **ONE_DEVICE)
  file = next((tmp_path / "run/checkpoints/4/training").rglob("d/*"))
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)
  with pytest.raises(UserError) as caught:
    run(tmp_path / "run", table, tokenizer, 6, **ONE_DEVICE)
  assert str(file) in str(caught.value) and "to use the newest whole one, step 2" in str(caught.value)
  (tmp_path / "run/checkpoints/4").rename(tmp_path / "damaged")
  run(tmp_path / "run", table, tokenizer, 6, **ONE_DEVICE)
  assert checkpoints.CheckpointStore(tmp_path / "run").latest_step() == 6


def test_changed_examples_are_not_gone_on_with(table, tokenizer, inputs, tmp_path):
  from fsb_jax import tasks

  run(tmp_path / "run", table, tokenizer, 2, **ONE_DEVICE)
  (tmp_path / "train.csv").write_text((inputs / "train.csv").read_text().replace("天", "地", 1))
  changed = tasks.table_task("reviews", {"train": tmp_path / "train.csv"}, "text", label_names=table.label_names)
  try:
    with pytest.raises(UserError, match=r"holds a run with training examples \(sha256\)"):
      run(tmp_path / "run", changed, tokenizer, 4, **ONE_DEVICE)
  finally:
    tasks.declare(table)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"log": 0}, "LOG_PERIOD must be a whole number above 0, not 0"),
    ({"checkpoint": 2.5}, "CHECKPOINT_PERIOD must be a whole number above 0 or None, not 2.5"),
    ({"early_stop": 2}, "EARLY_STOP counts evaluations; give EVAL_PERIOD too"),
  ],
  ids=str,
)
def test_periods_are_checked(changes, words):
  with pytest.raises(UserError, match=words):
    Periods(**changes)


def test_the_best_is_the_first_of_equals_and_may_be_the_least():
  best = scores.Scores("accuracy", [{"step": s, "accuracy": a} for s, a in ((1, 0.1), (2, 0.4), (3, 0.4), (4, 0.2))])
  assert (best.best_step(), best.without_progress()) == (2, 2)
  best = scores.Scores("loss", [{"step": s, "loss": a} for s, a in ((1, 0.3), (2, 0.1), (3, 0.1))])
  assert (best.best_step(), best.without_progress()) == (2, 1)
  assert scores.Scores("loss").best_step() is None and scores.Scores("loss").without_progress() == 0


def test_what_a_killed_run_wrote_too_much_is_left_out(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "kind": "train"}\n{"step": 3, "kind": "train"}\n{"step": 2, "kind": "eval"}\n{"st')
  assert [row["step"] for row in scores.read_metrics(path, 2)] == [1, 2]


def test_what_the_disk_has_no_room_for_is_told_once(tmp_path):
  """Closing must not raise again, in place of the sentence that ends the run."""
  writer = reporting.MetricWriter(tmp_path)
  writer._file.close()
  with Path("/dev/full").open("a") as writer._file:
    with pytest.raises(OSError, match="No space left"):
      writer.write(1, "train", {"loss": 1.0})
    writer.close()
