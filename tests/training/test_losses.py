"""Losses against those that transformers' heads compute from the same scores, and what must not change them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_hub import torch_class, torch_config
from torch_reference import CHOICES, LABELS, LENGTH, QUICK, ROWS

from fsb_jax import models
from fsb_jax.training.losses import OBJECTIVES, cross_entropy

VOCAB = 101
# The heads of BERT; what other families add is made of the same terms, and held against them in tests/models.
SCORES = {
  "masked_lm": {"logits": (ROWS, LENGTH, VOCAB)},
  "pretraining": {"prediction_logits": (ROWS, LENGTH, VOCAB), "seq_relationship_logits": (ROWS, 2)},
  "next_sentence": {"logits": (ROWS, 2)},
  "sequence_classification": {"logits": (ROWS, LABELS)},
  "token_classification": {"logits": (ROWS, LENGTH, LABELS)},
  "multiple_choice": {"logits": (ROWS, CHOICES)},
  "question_answering": {"start_logits": (ROWS, LENGTH), "end_logits": (ROWS, LENGTH)},
}
OUTPUTS = {
  "masked_lm": models.MaskedLMOutput,
  "pretraining": models.PretrainingOutput,
  "next_sentence": models.NextSentenceOutput,
  "sequence_classification": models.SequenceClassificationOutput,
  "token_classification": models.TokenClassificationOutput,
  "multiple_choice": models.MultipleChoiceOutput,
  "question_answering": models.QuestionAnsweringOutput,
}
FOLLOWS = np.array([0, 1, 1, -100, 0, 1])


def scores_of(head, dtype=np.float64):
  random = np.random.default_rng(0)
  return {name: (3 * random.normal(size=shape)).astype(dtype) for name, shape in SCORES[head].items()}


def labels_of(head):
  random = np.random.default_rng(1)

  def tokens(classes):
    return np.where(random.random((ROWS, LENGTH)) < 0.4, -100, random.integers(0, classes, (ROWS, LENGTH)))

  return {
    "masked_lm": lambda: {"labels": tokens(VOCAB)},
    "pretraining": lambda: {"labels": tokens(VOCAB), "next_sentence_label": FOLLOWS},
    "next_sentence": lambda: {"labels": FOLLOWS},
    "sequence_classification": lambda: {"labels": random.integers(0, LABELS, ROWS)},
    "token_classification": lambda: {"labels": tokens(LABELS)},
    "multiple_choice": lambda: {"labels": random.integers(0, CHOICES, ROWS)},
    "question_answering": lambda: {
      "start_positions": np.array([0, 3, 9, LENGTH, 5, LENGTH + 7]),
      "end_positions": np.array([4, LENGTH, 9, 2, 5, LENGTH]),
    },
  }[head]() | {"input_ids": np.zeros((ROWS, LENGTH), int)}


def torch_loss(head, scores, labels):
  """The loss of transformers' own head, its last layers replaced by ones that answer `scores`."""
  model = torch_class("bert", head)(torch_config("bert", head)).eval()
  tensors = {name: torch.from_numpy(x).requires_grad_() for name, x in scores.items()}
  given = list(tensors.values())

  class Answers(torch.nn.Module):
    def __init__(self, answer):
      super().__init__()
      self.answer = answer

    def forward(self, *_):
      return self.answer

  if head == "masked_lm":
    model.cls = Answers(given[0])
  elif head == "pretraining":
    model.cls = Answers(tuple(given))
  elif head == "next_sentence":
    model.cls = Answers(given[0])
  elif head == "question_answering":
    model.qa_outputs = Answers(torch.stack(given, dim=-1))
  else:
    model.classifier = Answers(given[0].reshape(-1, 1) if head == "multiple_choice" else given[0])
  ids = np.zeros((ROWS, CHOICES, LENGTH) if head == "multiple_choice" else (ROWS, LENGTH), int)
  inputs = {"input_ids": ids, **{name: x for name, x in labels.items() if name != "input_ids"}}
  loss = model(**{name: torch.from_numpy(x) for name, x in inputs.items()}).loss
  loss.backward()
  return loss.item(), {name: x.grad.numpy() for name, x in tensors.items()}


def our_loss(head, scores, batch, weights=None, smoothing=0.0):
  function = jax.value_and_grad(lambda scores: OBJECTIVES[head](OUTPUTS[head](**scores), batch, weights, smoothing))
  return jax.jit(function, compiler_options=QUICK)(scores)


def our_divergence(head, one, other, batch, weights=None):
  """The divergence and its gradients by the scores of both passes."""

  def function(one, other):
    return OBJECTIVES[head].divergence(OUTPUTS[head](**one), OUTPUTS[head](**other), batch, weights)

  return jax.jit(jax.value_and_grad(function, argnums=(0, 1)), compiler_options=QUICK)(one, other)


# What is (sum, weight): a function of scores and batch, and of the weights of a larger batch.
SUMMED = {
  "loss": our_loss,
  "smoothed": lambda *args: our_loss(*args, smoothing=0.2),
  "divergence": lambda head, scores, *args: with_other_half(our_divergence, head, scores, *args),
}


def with_other_half(function, head, scores, *args):
  """`function` of the scores and of their halves; the gradient by the first."""
  value, (gradients, _) = function(head, scores, {name: x / 2 for name, x in scores.items()}, *args)
  return value, gradients


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("head", SCORES)
def test_loss_and_gradients_are_those_of_transformers(head, smoothing, monkeypatch):
  scores, labels = scores_of(head), labels_of(head)
  plain, _ = torch_loss(head, scores, labels)
  # The heads make their losses themselves, and none smooths.
  make = torch.nn.CrossEntropyLoss.__init__
  monkeypatch.setattr(
    torch.nn.CrossEntropyLoss, "__init__", lambda self, **options: make(self, label_smoothing=smoothing, **options)
  )
  expected, expected_gradients = torch_loss(head, scores, labels)
  assert (abs(expected - plain) > 0.01) == bool(smoothing)
  with jax.enable_x64(True):
    loss, gradients = our_loss(head, scores, labels, smoothing=smoothing)
  assert loss == pytest.approx(expected, rel=1e-12) and expected > 0.1
  for name, gradient in gradients.items():
    np.testing.assert_allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-14)


def torch_divergence(head, one, other, labels):
  """What an R-Drop loop adds for every cross-entropy: kl_div both ways, at the positions that have a label."""
  terms = {
    "pretraining": [("prediction_logits", "labels", 1), ("seq_relationship_logits", "next_sentence_label", 1)],
    "question_answering": [("start_logits", "start_positions", 0.5), ("end_logits", "end_positions", 0.5)],
  }.get(head, [("logits", "labels", 1)])
  passes = [{name: torch.from_numpy(x).requires_grad_() for name, x in scores.items()} for scores in (one, other)]
  total = 0
  for scores, label, scale in terms:
    kept = torch.from_numpy((labels[label] >= 0) & ((labels[label] < LENGTH) | (head != "question_answering")))
    p, q = (tensors[scores][kept] for tensors in passes)
    kl = torch.nn.functional.kl_div
    there = kl(p.log_softmax(-1), q.softmax(-1), reduction="none").sum(-1).mean()
    back = kl(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1).mean()
    total = total + scale * (there + back) / 2
  total.backward()
  return total.item(), [{name: x.grad.numpy() for name, x in tensors.items()} for tensors in passes]


@pytest.mark.parametrize("head", SCORES)
def test_divergence_and_gradients_are_those_of_pytorch(head):
  one, labels = scores_of(head), labels_of(head)
  other = {name: x + np.random.default_rng(5).normal(size=x.shape) for name, x in one.items()}
  expected, expected_gradients = torch_divergence(head, one, other, labels)
  with jax.enable_x64(True):
    value, gradients = our_divergence(head, one, other, labels)
    same, _ = our_divergence(head, one, one, labels)
  assert value == pytest.approx(expected, rel=1e-12) and expected > 0.05
  assert float(same) == 0
  for ours, theirs in zip(gradients, expected_gradients, strict=True):
    for name, gradient in ours.items():
      np.testing.assert_allclose(gradient, theirs[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", SUMMED)
@pytest.mark.parametrize("head", SCORES)
def test_filling_rows_change_nothing(head, kind):
  our_loss = SUMMED[kind]
  with jax.enable_x64(True):
    scores, labels = scores_of(head), labels_of(head)
    loss, gradients = our_loss(head, scores, labels)
    batch = {name: np.concatenate([x, x[:2]]) for name, x in labels.items()}
    batch["weights"] = np.array([1.0] * ROWS + [0.0, 0.0], np.float32)
    filled_loss, filled = our_loss(head, {n: np.concatenate([x, 1e3 * x[:2]]) for n, x in scores.items()}, batch)
  assert filled_loss == pytest.approx(float(loss), rel=1e-12)
  for name, gradient in filled.items():
    np.testing.assert_allclose(gradient[:ROWS], gradients[name], rtol=1e-12)
    assert not gradient[ROWS:].any()


@pytest.mark.parametrize("head", SCORES)
def test_nothing_to_learn_from_is_a_loss_of_zero(head):
  labels = {name: x if name == "input_ids" else np.full_like(x, -100) for name, x in labels_of(head).items()}
  loss, gradients = our_loss(head, scores_of(head, np.float32), labels)
  assert loss == 0 and not any(np.asarray(g).any() for g in gradients.values())


@pytest.mark.parametrize("kind", SUMMED)
@pytest.mark.parametrize("head", SCORES)
def test_parts_add_up_to_the_whole(head, kind):
  our_loss = SUMMED[kind]
  with jax.enable_x64(True):
    scores, labels = scores_of(head), labels_of(head)
    whole, gradients = our_loss(head, scores, labels)
    weights = OBJECTIVES[head].weights(labels)
    parts = [
      our_loss(head, {n: x[i::2] for n, x in scores.items()}, {n: x[i::2] for n, x in labels.items()}, weights)
      for i in (0, 1)
    ]
  assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(whole), rel=1e-12)
  for name, gradient in gradients.items():
    for i in (0, 1):
      np.testing.assert_allclose(parts[i][1][name], gradient[i::2], rtol=1e-12)


def test_without_a_mask_every_token_is_text():
  random = np.random.default_rng(0)
  outputs = types.SimpleNamespace(logits=random.normal(size=(2, 4)))
  batch = {"input_ids": np.ones((2, 4), int), "labels": random.integers(0, 2, (2, 4))}
  losses = [
    OBJECTIVES["replaced_tokens"](outputs, {**batch, **mask})
    for mask in ({}, {"attention_mask": np.ones((2, 4), int)}, {"attention_mask": np.eye(2, 4, dtype=int)})
  ]
  assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", SUMMED)
def test_padded_vocabulary_rows_give_finite_loss_and_no_gradient(kind):
  our_loss = SUMMED[kind]
  scores, labels = scores_of("masked_lm", np.float32), labels_of("masked_lm")
  labels["weights"] = np.array([1, 1, 0, 1, 1, 0], np.float32)
  loss, gradients = our_loss("masked_lm", scores, labels)
  padded = {"logits": np.pad(scores["logits"], ((0, 0), (0, 0), (0, 27)), constant_values=-np.inf)}
  padded_loss, padded_gradients = our_loss("masked_lm", padded, labels)
  assert np.isfinite(padded_loss) and padded_loss == pytest.approx(float(loss), rel=1e-6)
  assert not np.asarray(padded_gradients["logits"][..., VOCAB:]).any()
  np.testing.assert_allclose(padded_gradients["logits"][..., :VOCAB], gradients["logits"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype,expected", [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_cross_entropy_is_taken_in_at_least_float32(dtype, expected):
  with jax.enable_x64(True):
    logits = jnp.asarray([[200.0, 199.0], [-200.0, 0.0]], dtype)
    loss = cross_entropy(logits, jnp.array([0, 0]))
  assert loss.dtype == expected
  np.testing.assert_allclose(loss, [np.log1p(np.exp(-1)), 200], rtol=1e-6)
