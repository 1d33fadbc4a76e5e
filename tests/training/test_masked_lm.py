"""Masked language models: asked at the labels' positions alone, trained and scored, on any mesh."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny_run import one_device, run

from fsb_jax import checkpoints, models, tasks
from fsb_jax.encodings import IGNORED, asked_positions
from fsb_jax.training.data import Loader
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.questions import HiddenWords

SIZES = dict(vocab_size=101, embed_dim=32, num_layers=2, num_heads=4, mlp_dim=64)
CUBE = {"data": 2, "tensor": 2, "sequence": 2}


@pytest.fixture(scope="module")
def batch():
  random = np.random.default_rng(0)
  ids = random.integers(1, 101, (8, 40)).astype(np.int32)
  labels = np.full_like(ids, IGNORED)
  for row in range(7):  # the last asks for nothing
    chosen = random.choice(40, random.integers(1, 7), replace=False)
    labels[row, chosen] = ids[row, chosen]
  return {
    "input_ids": ids,
    "attention_mask": (np.arange(40) < random.integers(30, 41, (8, 1))).astype(np.int32),
    "labels": labels,
    "next_sentence_label": random.integers(0, 2, 8).astype(np.int32),
    "weights": np.ones(8, np.float32),
  }


@pytest.mark.parametrize("head", [pytest.param("masked_lm", marks=pytest.mark.slow), "pretraining"])
def test_the_asked_positions_give_the_loss_and_gradients_of_all_positions(batch, head):
  """In float64, so that nothing but the arithmetic can differ."""
  positions, labels = asked_positions(batch["labels"])
  asked = {**batch, "masked_lm_positions": positions, "labels": labels}

  def loss_and_logits(params, batch):
    names = models.input_names(model)
    outputs = model.apply({"params": params}, **{name: batch[name] for name in names if name in batch})
    logits = outputs.prediction_logits if head == "pretraining" else outputs.logits
    return OBJECTIVES[head](outputs, batch), logits

  with jax.enable_x64(True):
    config = models.TransformerConfig(**SIZES, run=models.Run(dtype="float64", param_dtype="float64"))
    model = models.build("bert", config, head)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), models.dummy_ids(model))["params"])
    gradients_of = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
    (loss, every), gradients = gradients_of(params, batch)
    (loss_asked, some), gradients_asked = gradients_of(params, asked)
  np.testing.assert_allclose(loss_asked, loss, rtol=1e-12)
  every = np.take_along_axis(np.asarray(every), positions[..., None], axis=1)
  np.testing.assert_allclose(some, every, rtol=1e-12, atol=1e-15)
  for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(gradients_asked)):
    np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-13, err_msg=str(path))


@pytest.mark.slow
def test_trained_and_scored_on_a_mesh_as_on_one_device(tmp_path, tokenizer):
  random = np.random.default_rng(1)
  files = {}
  for split, count in (("train", 60), ("validation", 21)):
    files[split] = tmp_path / f"{split}.txt"
    texts = ("".join(random.choice(list("天地人你我他好坏"), 13)) for _ in range(count))
    files[split].write_text("\n".join(texts), "utf-8")
  task = tasks.plain_text_task("texts", files, whole_words=False)
  scores = {}
  for name, mesh in (("one", one_device()), ("cube", CUBE)):
    scores[name] = run(tmp_path / name, task, tokenizer, 12, mesh=mesh, batch_size=8, eval_batch_size=8)
  assert scores["cube"] == pytest.approx(scores["one"], rel=1e-5)
  rows = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["kind"] == "eval" and rows[-1]["loss"] == scores["one"]["loss"]

  # The same numbers from every position of every row, one row at a time.
  params, _, hf_config = checkpoints.load_folder(tmp_path / "one")
  family = models.family("bert")
  model = models.build("bert", family.config_from_hf(hf_config), "masked_lm")
  losses, right = [], []
  for batch in Loader("texts", "validation", tokenizer, 16, 1, shuffle=False).batches(0):
    logits = model.apply(
      {"params": params}, **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    ).logits
    for place, label in zip(batch["masked_lm_positions"][0], batch["labels"][0]):
      if label != IGNORED:
        losses.append(-jax.nn.log_softmax(logits[0, place])[label])
        right.append(int(logits[0, place].argmax()) == label)
  assert scores["one"]["masked_tokens"] == len(losses) > 21
  assert scores["one"]["examples"] == 21 and {*scores["one"]} == {"loss", "examples", *HiddenWords.score_names}
  assert scores["one"]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
  assert scores["one"]["accuracy"] == pytest.approx(np.mean(right), rel=1e-6)
  assert scores["one"]["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
