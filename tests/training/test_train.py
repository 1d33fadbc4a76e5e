"""Runs from a table to a Hub folder: learning, resuming, scoring, and what the folder says about itself."""

import json

import jax
import numpy as np
import pytest
from tiny_run import one_device, run

import fsb_jax
from fsb_jax import checkpoints, models, tasks
from fsb_jax.errors import UserError
from fsb_jax.training.evaluate import evaluate
from fsb_jax.training.infer import infer
from fsb_jax.training.loop import Periods
from fsb_jax.training.optimizers import adamw
from fsb_jax.training.questions import Classes
from fsb_jax.training.start import SizedModel, start_from


@pytest.fixture(scope="module")
def finished(table, tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "finished"
  metrics = run(folder, table, tokenizer, 60, periods=Periods(log=10, checkpoint=30), config_text="# resolved\n")
  return folder, metrics


def test_it_learns(finished):
  _, metrics = finished
  assert {*metrics} == {"loss", "examples", *Classes.score_names}
  assert metrics["examples"] == 45  # 16 does not divide it: filling rows are not counted
  assert metrics["majority_baseline"] == pytest.approx(30 / 45)
  assert metrics["accuracy"] == 1.0


def test_the_folder_says_what_it_is(finished):
  folder, _ = finished
  metadata, hf_config = checkpoints.read_metadata(folder)
  assert (metadata.family, metadata.head, metadata.label_names) == (
    "bert", "sequence_classification", ("negative", "positive")
  )
  assert hf_config["id2label"] == {"0": "negative", "1": "positive"}
  assert hf_config["architectures"] == ["BertForSequenceClassification"]
  assert (folder / "config.gin").read_text() == "# resolved\n"
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  trained = [line for line in lines if line["kind"] == "train"]
  assert [line["step"] for line in trained] == [10, 20, 30, 40, 50, 60]
  assert trained[-1]["loss"] < 0.1 < trained[0]["loss"]
  assert {"loss", "gradient_norm", "examples_per_second", "tokens_per_second", "learning_rate"} <= set(trained[0])
  assert [line["step"] for line in lines if line["kind"] == "eval"] == [60]
  assert list((folder / "tensorboard").glob("events*"))


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(finished, table, tokenizer, tmp_path):
  folder, metrics = finished
  for steps in (30, 60):
    again = run(tmp_path / "run", table, tokenizer, steps, periods=Periods(log=10, checkpoint=30))
  assert again == metrics
  one, two = (checkpoints.load_folder(each)[0] for each in (folder, tmp_path / "run"))
  assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_a_finished_run_is_left_alone(finished, table, tokenizer):
  folder, metrics = finished
  before = sorted(path.name for path in (folder / "checkpoints").iterdir())
  assert run(folder, table, tokenizer, 60) == metrics
  assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_another_model_is_not_mixed_in(finished, table, tokenizer):
  folder, _ = finished
  with pytest.raises(UserError, match="holds a run with family=bert, this one has megatron_bert"):
    run(folder, table, tokenizer, 70, model=SizedModel("megatron_bert", "tiny"))
  with pytest.raises(UserError, match="another model size"):
    run(folder, table, tokenizer, 70, model=SizedModel("bert", "rbt3"))


def test_a_run_that_goes_on_has_the_same_batches(finished, table, tokenizer):
  folder, _ = finished
  for changes, words in (
    ({"seed": 5}, "seed 0, this one has 5"),
    ({"batch_size": 64}, "batch_size 32, this one has 64"),
  ):
    with pytest.raises(UserError, match=words):
      run(folder, table, tokenizer, 70, **changes)


@pytest.mark.slow
def test_a_run_goes_on_without_what_it_began_from(finished, table, tmp_path):
  import shutil

  folder, _ = finished
  shutil.copytree(folder, tmp_path / "source")
  start = dict(model=None, initial_checkpoint_path=str(tmp_path / "source"), mesh=one_device(), config_text="# one\n")
  run(tmp_path / "run", table, None, 1, **start)
  shutil.rmtree(tmp_path / "source")
  run(tmp_path / "run", table, None, 2, **{**start, "config_text": "# two\n"})
  assert checkpoints.CheckpointStore(tmp_path / "run").latest_step() == 2
  assert (tmp_path / "run" / "config.gin").read_text() == "# one\n"
  assert (tmp_path / "run" / "config-from-step-1.gin").read_text() == "# two\n"


def test_what_goes_wrong_in_scoring_loses_no_step(table, tokenizer, tmp_path, monkeypatch):
  from fsb_jax.training import evaluate as evaluation

  def fail(*_):
    raise MemoryError

  monkeypatch.setattr(evaluation, "evaluate_split", fail)
  with pytest.raises(MemoryError):
    run(tmp_path / "run", table, tokenizer, 2, mesh=one_device())
  assert checkpoints.CheckpointStore(tmp_path / "run").latest_step() == 2


def test_broken_numbers_are_not_saved(table, tokenizer, tmp_path):
  with pytest.raises(UserError, match="training broke at step 2: loss nan"):
    run(
      tmp_path / "run", table, tokenizer, 5, optimizer=adamw(learning_rate=1e30), learning_rate=None,
      periods=Periods(log=10, checkpoint=1), mesh=one_device(),
    )
  params = checkpoints.load_folder(tmp_path / "run")[0]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_numbers_that_broke_since_the_last_report_are_not_scored(table, tokenizer, tmp_path):
  with pytest.raises(UserError, match="training broke at step 2: loss nan.* training examples "):
    run(
      tmp_path / "run", table, tokenizer, 5, optimizer=adamw(learning_rate=1e30), learning_rate=None,
      periods=Periods(log=10, evaluate=3), mesh=one_device(),
    )


def test_a_run_moved_to_another_mesh_still_exports(finished, table, tokenizer, tmp_path):
  import shutil

  from convert_torch import cli

  folder, _ = finished
  shutil.copytree(folder, tmp_path / "run")
  run(tmp_path / "run", table, tokenizer, 61, mesh={"data": 8})
  cli.export_checkpoint(tmp_path / "run", tmp_path / "hub")
  assert fsb_jax.from_pretrained(tmp_path / "hub").config.vocab_size == len(tokenizer)


def other_labels(table, names):
  """The same rows under other label names."""
  renamed = dict(zip(table.label_names, names))
  folder = table.read.args[0]["test"].parent
  files = {}
  for split in ("train", "test"):
    text = (folder / f"{split}.csv").read_text(encoding="utf-8")
    for old, new in renamed.items():
      text = text.replace(f",{old}", f",{new}")
    files[split] = folder / f"{'_'.join(names)}_{split}.csv"
    files[split].write_text(text, encoding="utf-8")
  return tasks.table_task("_".join(names), files, "text")


def test_labels_of_other_names_are_other_labels(finished, table, tokenizer, tmp_path, capsys):
  folder, _ = finished
  renamed = other_labels(table, ("bad", "good"))
  arguments = dict(task=renamed, split="test", feature_lengths={"inputs": 16}, batch_size=16)
  with pytest.raises(UserError, match="label 0 is 'negative' but task bad_good calls it 'bad'"):
    evaluate(model=str(folder), **arguments)
  with pytest.raises(UserError, match="holds a run with label_names"):
    run(folder, renamed, tokenizer, 70)
  run(tmp_path / "run", renamed, None, 1, model=None, initial_checkpoint_path=str(folder), mesh=one_device())
  assert "newly initialised: head/classifier/bias, head/classifier/kernel" in capsys.readouterr().err
  body, fresh = (fsb_jax.from_pretrained(each).params for each in (folder, tmp_path / "run"))
  assert not np.allclose(body["head"]["classifier"]["kernel"], fresh["head"]["classifier"]["kernel"], atol=1e-3)


@pytest.mark.parametrize("use", ["evaluate", "infer"])
def test_mistakes_of_use_are_told_before_the_work(use, finished, table, tmp_path):
  folder, _ = finished
  function = {"evaluate": evaluate, "infer": infer}[use]
  arguments = dict(model=str(folder), task=table, split="test", output_file=str(tmp_path / "out"))
  (tmp_path / "taken").write_text("mine")
  for changes, words in (
    ({"output_file": str(tmp_path / "taken")}, "already exists"),
    ({"output_file": str(tmp_path / "no" / "out")}, "there is no folder"),
    ({"feature_lengths": 16}, "TASK_FEATURE_LENGTHS must be"),
    ({"feature_lengths": {"inputs": 1024}, "buckets": (1024,)}, "1024 tokens, but the model has positions for 512"),
    ({"dtype": "float99"}, "unknown dtype 'float99'; known: float32"),
    ({"mesh": 8}, "MESH must be sizes by axis"),
  ):
    with pytest.raises(UserError, match=words):
      function(**{**arguments, **changes})
  assert (tmp_path / "taken").read_text() == "mine" and not (tmp_path / "out").exists()


def test_what_is_trained_excludes_each_other_whatever_the_checkpoint_did(tokenizer, tmp_path):
  import transformers

  says = transformers.BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
    problem_type="multi_label_classification",
  )  # fmt: skip
  transformers.BertForSequenceClassification(says).save_pretrained(tmp_path)
  start = start_from(
    checkpoint=tmp_path, model=None, tokenizer=tokenizer, head="sequence_classification", label_names=("好", "坏"),
    run=models.Run(),
  )  # fmt: skip
  assert "problem_type" not in start.hf_config and start.hf_config["id2label"] == {"0": "好", "1": "坏"}


def test_float16_scores_too(finished, table, tmp_path):
  folder, _ = finished
  arguments = dict(model=str(folder), task=table, split="test", feature_lengths={"inputs": 16})
  (scores,) = evaluate(**arguments, dtype="float16").values()
  assert scores["accuracy"] == 1.0


def test_scoring_and_predicting_agree(finished, table, tmp_path):
  folder, _ = finished
  arguments = dict(model=str(folder), task=table, split="test", feature_lengths={"inputs": 16}, batch_size=16)
  (scores,) = evaluate(**arguments, output_file=str(tmp_path / "scores.json")).values()
  assert json.loads((tmp_path / "scores.json").read_text())["reviews"] == scores
  assert infer(**arguments, output_file=str(tmp_path / "out.jsonl")) == 33
  rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
  assert np.mean([row["prediction"] == row["label"] for row in rows]) == scores["accuracy"]
  with pytest.raises(UserError, match="already exists"):
    infer(**arguments, output_file=str(tmp_path / "out.jsonl"))
  answers = fsb_jax.pipeline("text_classification", folder)([row["text"] for row in rows])
  assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]
  np.testing.assert_allclose([a["score"] for a in answers], [row["score"] for row in rows], atol=1e-5)


def test_exported_it_is_a_transformers_model(finished, tmp_path):
  import torch
  from convert_torch import cli
  from transformers import BertForSequenceClassification

  folder, _ = finished
  cli.export_checkpoint(folder, tmp_path / "hub")
  theirs, report = BertForSequenceClassification.from_pretrained(tmp_path / "hub", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  loaded = fsb_jax.from_pretrained(tmp_path / "hub")
  inputs = loaded.tokenizer(["天地好", "你我他恶"], return_tensors="np", padding=True)
  ours = loaded.model.apply({"params": loaded.params}, **inputs).logits
  with torch.no_grad():
    reference = theirs.eval()(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
  np.testing.assert_allclose(ours, reference, atol=1e-4)
  assert theirs.config.id2label == {0: "negative", 1: "positive"}


def test_starting_from_a_checkpoint_keeps_its_body(finished, table, tmp_path):
  folder, _ = finished
  constant = adamw(learning_rate=lambda step: 0.0, weight_decay=0.0)
  run(
    tmp_path / "run", table, None, 1, model=None, initial_checkpoint_path=str(folder), optimizer=constant,
    learning_rate=None, mesh=one_device(),
  )
  # Read for one device: the two runs padded their vocabularies to different meshes.
  one, two = (fsb_jax.from_pretrained(each).params for each in (folder, tmp_path / "run"))
  assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_splits_without_labels_are_told_before_the_work(inputs, tokenizer, tmp_path):
  (tmp_path / "test.csv").write_text("text\n" + "天地好\n" * 8)
  half = tasks.table_task("half", {"train": inputs / "train.csv", "test": tmp_path / "test.csv"}, "text")
  for split, words in (("train", "nothing to learn"), ("validation", "cannot be scored")):
    with pytest.raises(UserError, match=f"half's split 'test' is .* without labels.* {words}"):
      run(tmp_path / "run", half, tokenizer, 2, **{f"{split}_split": "test"})
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bfloat16_with_microbatches_and_remat_learns_too(table, tokenizer, tmp_path):
  from fsb_jax import models

  metrics = run(
    tmp_path / "run", table, tokenizer, 60, run=models.Run(dtype="bfloat16", remat="full"), microbatches=2,
    mesh={"data": 4, "fsdp": 2},
  )
  assert metrics["accuracy"] > 0.9
  params = checkpoints.load_folder(tmp_path / "run")[0]
  assert params["token_embed"]["embedding"].dtype == np.float32


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"batch_size": 30}, "BATCH_SIZE 30 cannot be cut into 1 microbatches over 4 parts"),
    ({"batch_size": 32, "microbatches": 16}, "make it a multiple of 64"),
    ({"eval_batch_size": 6}, "BATCH_SIZE 6 cannot be split over 4 parts"),
    ({"model": None}, "either INITIAL_CHECKPOINT_PATH or a MODEL"),
    ({"model": SizedModel("bert", "huge")}, "unknown size 'huge' of the bert family; known: tiny"),
    ({"model": SizedModel("gpt_neo", "tiny")}, "unknown model family 'gpt_neo'; known: albert, bart, bert"),
    ({"tokenizer": None}, "needs TOKENIZER"),
    ({"train_steps": 0}, "TRAIN_STEPS must be a whole number above 0"),
    ({"keep_checkpoints": 0}, "KEEP_CHECKPOINTS must be a whole number above 0 or None, not 0"),
    ({"dropout_rate": 2}, "a dropout rate must be at least 0 and below 1, not 2"),
    ({"feature_lengths": {"inputs": 600}, "buckets": (600,)}, "600 tokens, but the model has positions for 512"),
    ({"rules": {"heads": "model"}}, "no mesh axis 'model'"),
    ({"seed": 1.5}, "SEED must be a whole number"),
    ({"seed": 2**32}, "SEED must be a whole number.* each from 0 to 4294967295, not 4294967296"),
    (
      {"validation_split": "dev", "periods": Periods(evaluate=1, early_stop=1)},
      "EARLY_STOP and BEST_METRIC need scores, but reviews has no split 'dev'",
    ),
    ({"best_metric": "f1"}, "BEST_METRIC 'f1' is no score of this task; it has loss, accuracy, majority_baseline"),
    ({"validation_split": "dev", "best_metric": "loss"}, "need scores, but reviews has no split 'dev'"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_before_anything_is_written(changes, words, table, tokenizer, tmp_path):
  with pytest.raises(UserError, match=words):
    run(tmp_path / "run", table, **{"tokenizer": tokenizer, "steps": changes.pop("train_steps", 5), **changes})
  assert not (tmp_path / "run").exists()
