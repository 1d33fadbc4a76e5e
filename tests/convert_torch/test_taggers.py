"""The original's taggers: outputs, losses, gradients and tags against what it computed, and the way out again."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_torch import load_hub_folder, save_hub_folder
from test_goldens import ALL, HERE
from test_originals import arrays_of, check, check_export
from tiny_hub import assert_close, assert_same_tree, tensors_of

from fsb_jax import models
from fsb_jax.encodings import IGNORED
from fsb_jax.models.config import Dropout
from fsb_jax.training.losses import OBJECTIVES, cross_entropy, focal_weight, with_focal, with_smoothing_of_all

POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
LEFT_OUT = POOLER | {"bert.embeddings.position_ids"}
FIELDS = {
  "token_classification": {"logits"},
  "crf": {"logits"},
  "span": {"start_logits", "end_logits"},
  "span_hard": {"start_logits", "end_logits"},
  "biaffine": {"span_logits"},
}
PLACES = {"token_classification": "attention_mask", "span": "attention_mask", "biaffine": "span_mask"}
DAILY = ["tagging_linear_lsr", "tagging_span_focal", "tagging_span_ce_hard", "tagging_biaffine_lsr"]
SLOW = [
  "tagging_linear_ce", "tagging_linear_focal", "tagging_span_ce", "tagging_span_lsr",
  "tagging_biaffine_ce", "tagging_biaffine_focal", "tagging_biaffine_zero_mask",
]  # fmt: skip
everywhere = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")


def load(folder):
  # The configs do not say how many labels there are, nor how the beginnings of spans are told.
  biaffine, hard = "biaffine" in folder.name, folder.name.endswith("_hard")
  how = dict(num_labels=3 if biaffine else 7, **({"head": "span_hard"} if hard else {}))
  hub = load_hub_folder(folder, **how)
  assert (hub.family, hub.newly_initialised, set(hub.unused)) == ("bert", [], POOLER)
  return hub, {name: x for name, x in how.items() if name == "head"}


def objective_of(hub, name):
  objective = OBJECTIVES[hub.head]
  if name.endswith("_focal"):
    return with_focal(objective, 2.0)
  if name.endswith("_lsr"):
    return with_smoothing_of_all(objective, 0.1, lambda batch: batch[PLACES[hub.head]])
  return objective


@everywhere
@pytest.mark.parametrize("name", [*DAILY, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_outputs_loss_gradients_and_export(name, tmp_path):
  hub, how = load(ALL / name)
  given, expected = arrays_of(ALL / name)
  if hub.head == "token_classification":
    # Label 0 is that of padding.
    given["labels"] = np.where(given["attention_mask"] * given["labels"] > 0, given["labels"], IGNORED)
  assert check(hub, objective_of(hub, name), given, expected) == FIELDS[hub.head]
  check_export(hub, ALL / name, tmp_path / "again", LEFT_OUT, **how)


@everywhere
@pytest.mark.parametrize("name", ["tagging_span_ce", "tagging_span_ce_hard"])
def test_spans_are_trained_on_the_gold_beginnings(name):
  hub, _ = load(ALL / name)
  config = dataclasses.replace(hub.config, dropout=Dropout(hidden=0.0, attention=0.0))
  model = models.build(hub.family, config, hub.head, hub.num_labels)
  given, expected = arrays_of(ALL / name)
  inputs = {name: given[name] for name in models.input_names(model) if name in given}
  assert "start_positions" in inputs
  outputs = model.apply({"params": hub.params}, **inputs, deterministic=False, rngs={"dropout": jax.random.key(0)})
  assert_close(np.asarray(outputs.end_logits), expected["train_mode_end_logits"])
  assert_close(np.asarray(objective_of(hub, name)(outputs, given)), expected["train_mode_loss"])
  assert np.abs(expected["train_mode_end_logits"] - expected["end_logits"]).max() > 0.01


def check_tags(scores, mask, expected, n_best):
  """`scores` are emissions and the three transitions; the original's tags at padding are 0."""
  emissions, *transitions = scores
  np.testing.assert_array_equal(models.crf_decode(emissions, mask, *transitions), expected["decode"])
  tags = np.asarray(models.crf_decode_n_best(emissions, mask, *transitions, len(n_best))[0]).swapaxes(0, 1)
  whole = np.asarray(mask).all(axis=1)
  assert whole.any() and not whole.all()
  np.testing.assert_array_equal(tags[:, whole], n_best[:, whole])
  # Of a row with padding the original repeats the best; the brute-force tests say what the others are.
  assert (n_best[:, ~whole] == n_best[:1, ~whole]).all()
  np.testing.assert_array_equal(tags[0, ~whole], n_best[0, ~whole])


def check_likelihoods(scores, tags, mask, expected):
  emissions, *transitions = scores
  likelihoods = np.asarray(models.crf_log_likelihood(emissions, tags, mask, *transitions))
  assert_close(likelihoods, expected["llh_none"])
  assert_close(likelihoods.sum(), expected["llh_sum"])
  assert_close(likelihoods.mean(), expected["llh_mean"])
  assert_close(likelihoods.sum() / np.sum(mask), expected["llh_token_mean"])


def test_crf(tmp_path):
  folder = HERE / "tagging_crf"
  hub, _ = load(folder)
  given, expected = arrays_of(folder)
  assert check(hub, OBJECTIVES["crf"], given, expected) == {"logits"}
  check_export(hub, folder, tmp_path / "again", LEFT_OUT)
  head = hub.params["head"]
  scores = [expected["logits"], *(head[name] for name in ("transitions", "start_transitions", "end_transitions"))]
  mask = given["attention_mask"]
  check_likelihoods(scores, given["labels"], mask, expected)
  check_tags(scores, mask, expected, expected["decode_nbest3"])
  np.testing.assert_array_equal(np.where(mask, expected["decode"], 9), expected["decode_pad9"])
  unmasked = np.ones_like(mask)
  np.testing.assert_array_equal(models.crf_decode(scores[0], unmasked, *scores[1:]), expected["decode_nomask"])
  likelihoods = models.crf_log_likelihood(scores[0], given["labels"], unmasked, *scores[1:])
  assert_close(np.asarray(likelihoods), expected["llh_nomask"])


def test_crf_layer():
  folder = HERE / "crf_layer"
  given, expected = arrays_of(folder)
  tensors = tensors_of(folder)
  scores = [given["emissions"], *(tensors[name] for name in ("transitions", "start_transitions", "end_transitions"))]
  check_likelihoods(scores, given["tags"], given["mask"], expected)
  check_tags(scores, given["mask"], expected, expected["decode_nbest4"])

  def loss(transitions, end):
    return -models.crf_log_likelihood(scores[0], given["tags"], given["mask"], transitions, scores[2], end).mean()

  value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(scores[1], scores[3])
  assert_close(np.asarray(value), expected["loss"])
  for gradient, name in zip(gradients, ("transitions", "end_transitions")):
    np.testing.assert_allclose(gradient, expected[f"grad/{name}"], rtol=1e-3, atol=1e-6)


def test_focal_and_smoothed_losses():
  given, expected = arrays_of(HERE / "tagging_losses")
  logits, target = given["logits"], given["target"]
  values = jnp.asarray(cross_entropy(logits, target))
  for ignored in (-100, 0, 2):
    batch = {"labels": np.where(target == ignored, IGNORED, target)}
    outputs = models.TokenClassificationOutput(logits=logits)
    for gamma, name in ((2, "2"), (1.5, "1.5")):
      loss = with_focal(OBJECTIVES["token_classification"], gamma)(outputs, batch)
      assert_close(np.asarray(loss), expected[f"focal_g{name}_ig{ignored}"], 1e-6)
    for share in (0.1, 0.2):
      smoothed = with_smoothing_of_all(
        OBJECTIVES["token_classification"], share, lambda batch: jnp.ones_like(batch["labels"])
      )
      assert_close(np.asarray(smoothed(outputs, batch)), expected[f"lsr_eps{share}_mean_ig{ignored}"], 1e-6)
  weights = given["weight"][target]
  focal = values * focal_weight(logits, target, 2.0)
  assert_close(np.asarray((focal * weights).sum() / weights.sum()), expected["focal_weighted"], 1e-6)


@pytest.mark.parametrize("family,changes", [("albert", dict(layer_groups=1)), ("bert", dict(num_layers=1))])
def test_layers_of_a_head_are_not_the_encoders(family, changes, tmp_path):
  config = dataclasses.replace(models.sized(family, "tiny"), **changes)
  model = models.build(family, config, "biaffine", 3)
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), nn.meta.unbox(models.abstract_params(model)))
  save_hub_folder(
    tmp_path / "hub", params, family=family, config=config, head="biaffine", num_labels=3, label_names=None,
    hf_config={},
  )
  hub = load_hub_folder(tmp_path / "hub")
  assert (hub.head, hub.newly_initialised, hub.unused) == ("biaffine", [], [])
  assert_same_tree(hub.params, params)
