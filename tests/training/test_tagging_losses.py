"""The taggers' losses against PyTorch in float64, and what must not change them."""

import jax
import numpy as np
import pytest
import torch
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES, with_focal, with_smoothing_of_all

ROWS, LENGTH, LABELS = 5, 6, 4
OUTPUTS = {"crf": models.CrfOutput, "span": models.SpanTaggingOutput, "biaffine": models.BiaffineOutput}
PLACES = {"span": "attention_mask", "biaffine": "span_mask"}


def scores_of(head):
  random = np.random.default_rng(0)
  tokens = (ROWS, LENGTH, LABELS)
  shapes = {
    "crf": {
      "logits": tokens, "transitions": (LABELS, LABELS), "start_transitions": (LABELS,), "end_transitions": (LABELS,)
    },
    "span": {"start_logits": tokens, "end_logits": tokens},
    "biaffine": {"span_logits": (ROWS, LENGTH, LENGTH, LABELS)},
  }[head]
  return {name: 2 * random.normal(size=shape) for name, shape in shapes.items()}


def batch_of(head):
  random = np.random.default_rng(1)
  mask = (np.arange(LENGTH) < np.array([6, 4, 1, 5, 6])[:, None]).astype(int)
  names = {"crf": ["labels"], "span": ["start_positions", "end_positions"], "biaffine": []}[head]
  batch = {"attention_mask": mask, **{name: random.integers(0, LABELS, (ROWS, LENGTH)) for name in names}}
  if head == "biaffine":
    batch["span_labels"] = random.integers(0, LABELS, (ROWS, LENGTH, LENGTH))
    batch["span_mask"] = np.triu(mask[:, :, None] * mask[:, None])
  return batch


def loss_of(objective, head, scores, batch, weights=None, smoothing=0.0):
  function = jax.value_and_grad(lambda scores: objective(OUTPUTS[head](**scores), batch, weights, smoothing))
  return jax.jit(function, compiler_options=QUICK)(scores)


def torch_classes(kind, logits, labels, ignored):
  """The mean of one part of the original's losses over labels that are not `ignored`."""
  logs = logits.log_softmax(-1)
  if kind == "focal":
    logs = (1 - logs.exp()) ** 2 * logs
  loss = torch.nn.functional.nll_loss(logs, labels, ignore_index=ignored)
  return loss if kind != "lsr" else 0.9 * loss - 0.1 * logs.mean(-1).mean()


def torch_loss(kind, head, scores, batch):
  tensors = {name: torch.tensor(x, requires_grad=True) for name, x in scores.items()}
  kept = torch.from_numpy(batch[PLACES[head]]) == 1
  labels = {name: torch.from_numpy(batch[name])[kept] for name in batch if not name.endswith("mask")}
  if head == "span":
    sides = (("start_logits", "start_positions"), ("end_logits", "end_positions"))
    total = sum(torch_classes(kind, tensors[name][kept], labels[label], -100) for name, label in sides) / 2
  else:
    total = 10 * torch_classes(kind, tensors["span_logits"][kept], labels["span_labels"], 0)
  total.backward()
  return total.item(), {name: x.grad.numpy() for name, x in tensors.items()}


@pytest.mark.parametrize("kind", ["ce", "focal", "lsr"])
@pytest.mark.parametrize("head", PLACES)
def test_losses_and_gradients_are_those_of_pytorch(head, kind):
  scores, batch, objective = scores_of(head), batch_of(head), OBJECTIVES[head]
  expected, gradients = torch_loss(kind, head, scores, batch)
  if kind == "focal":
    objective = with_focal(objective, 2)
  elif kind == "lsr":
    objective = with_smoothing_of_all(objective, 0.1, lambda batch: batch[PLACES[head]])
  with jax.enable_x64(True):
    loss, ours = loss_of(objective, head, scores, batch)
    # Where all labels of the text count, the usual smoothing is the same.
    usual, _ = loss_of(OBJECTIVES[head], head, scores, batch, smoothing=0.1)
  assert loss == pytest.approx(expected, rel=1e-9) and expected > 0.1
  for name, gradient in ours.items():
    np.testing.assert_allclose(gradient, gradients[name], rtol=1e-9, atol=1e-12)
  assert (float(usual) == pytest.approx(expected, rel=1e-9)) == (kind == "lsr" and head == "span")


@pytest.mark.parametrize("head", OUTPUTS)
def test_filling_rows_change_nothing(head):
  scores, batch = scores_of(head), batch_of(head)
  by_row = {name for name, x in scores.items() if len(x) == ROWS}
  longer = {name: np.concatenate([x, 50 * x[:2]]) if name in by_row else x for name, x in scores.items()}
  filled = {name: np.concatenate([x, np.zeros_like(x[:2])]) for name, x in batch.items()}
  filled["weights"] = np.array([1.0] * ROWS + [0.0, 0.0], np.float32)
  with jax.enable_x64(True):
    loss, gradients = loss_of(OBJECTIVES[head], head, scores, batch)
    filled_loss, filled_gradients = loss_of(OBJECTIVES[head], head, longer, filled)
  assert filled_loss == pytest.approx(float(loss), rel=1e-12)
  for name, gradient in gradients.items():
    got = np.asarray(filled_gradients[name])
    np.testing.assert_allclose(got[: len(gradient)], gradient, rtol=1e-9, atol=1e-12)
    assert not got[len(gradient) :].any()


@pytest.mark.parametrize("head", OUTPUTS)
def test_parts_add_up_to_the_whole(head):
  scores, batch = scores_of(head), batch_of(head)
  with jax.enable_x64(True):
    whole, _ = loss_of(OBJECTIVES[head], head, scores, batch)
    weights = OBJECTIVES[head].weights(batch)
    parts = [
      loss_of(
        OBJECTIVES[head],
        head,
        {name: x[i::2] if len(x) == ROWS else x for name, x in scores.items()},
        {name: x[i::2] for name, x in batch.items()},
        weights,
      )[0]
      for i in (0, 1)
    ]
  assert sum(map(float, parts)) == pytest.approx(float(whole), rel=1e-12)


def test_a_focal_loss_of_certain_labels_has_a_finite_gradient():
  batch = {**batch_of("span"), "start_positions": np.zeros((ROWS, LENGTH), int)}
  scores = {name: np.zeros_like(x, np.float32) for name, x in scores_of("span").items()}
  scores["start_logits"][..., 0] = 1000
  for gamma in (1, 1.5, 2):
    loss, gradients = loss_of(with_focal(OBJECTIVES["span"], gamma), "span", scores, batch)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in gradients.values())
  plain, _ = loss_of(OBJECTIVES["span"], "span", scores, batch)
  assert loss_of(with_focal(OBJECTIVES["span"], 0), "span", scores, batch)[0] == plain > loss


@pytest.mark.parametrize("gamma", [-1, 0.5, float("inf"), float("nan")])
def test_a_gamma_that_is_none_is_named(gamma):
  with pytest.raises(UserError, match=f"gamma must be 0 or at least 1, not {gamma}"):
    with_focal(OBJECTIVES["span"], gamma)


def test_a_loss_that_is_not_about_classes_is_named():
  with pytest.raises(UserError, match="a focal loss is for losses of classes, which crf is not"):
    with_focal(OBJECTIVES["crf"], 2)
  with pytest.raises(UserError, match="smoothing of labels is for losses of classes, which crf is not"):
    with_smoothing_of_all(OBJECTIVES["crf"], 0.1, lambda batch: batch["attention_mask"])
