"""What Ubert's and UniEX's losses are means of, against PyTorch in float64 and the original's own figure."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from extraction_goldens import GOLDENS, needs_goldens

from fsb_jax.models.outputs import UbertOutput, UniexOutput
from fsb_jax.training.extraction_losses import binary_cross_entropy, multilabel_cross_entropy
from fsb_jax.training.losses import OBJECTIVES

RANDOM = np.random.default_rng(0)
BATCH, LABELS, LENGTH, TYPES = 4, 3, 5, 4


def torch_multilabel(logits, labels):
  """log Σ over 0 and what is to be below it, twice."""
  zero = torch.zeros_like(logits[..., :1])
  negative = torch.where(labels == 0, logits, -torch.inf)
  positive = torch.where(labels == 1, -logits, -torch.inf)
  return sum(torch.logsumexp(torch.cat([scores, zero], -1), -1) for scores in (negative, positive))


def values_and_gradients(ours, theirs, logits, labels):
  tensor = torch.tensor(logits, requires_grad=True)
  expected = theirs(tensor, torch.tensor(labels, dtype=torch.float64))
  weights = RANDOM.normal(size=expected.shape)
  (expected * torch.from_numpy(weights)).sum().backward()

  @jax.jit
  def ours_of(x):
    value, pull = jax.vjp(lambda x: ours(x, jnp.asarray(labels)), x)
    return value, *pull(jnp.asarray(weights))

  with jax.enable_x64(True):
    value, gradient = ours_of(jnp.asarray(logits))
  return (value, gradient), (expected.detach().numpy(), tensor.grad.numpy())


@pytest.mark.parametrize(
  "ours,theirs",
  [
    (
      binary_cross_entropy,
      lambda x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none"),
    ),
    (multilabel_cross_entropy, torch_multilabel),
  ],
)
def test_values_and_gradients_are_pytorchs(ours, theirs):
  logits = RANDOM.normal(size=(6, 7)) * 5
  labels = RANDOM.integers(0, 2, (6, 7))
  labels[0], labels[1] = 0, 1
  # As the masks leave them.
  logits[2:, 0] += np.where(labels[2:, 0] == 1, 10000, -10000)
  for one, other in zip(*values_and_gradients(ours, theirs, logits, labels), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@needs_goldens
def test_the_multilabel_loss_is_the_originals():
  case = json.loads((GOLDENS / "ie_functions_metrics" / "data.json").read_text("utf-8"))["metrics"]["multilabel_ce"]
  ours = multilabel_cross_entropy(jnp.array(case["y_pred"]), jnp.array(case["y_true"]))
  np.testing.assert_allclose(jnp.mean(ours), case["loss"], rtol=1e-6)


def case(head):
  """Outputs and a batch of `head`, with everything masked in the last row."""
  if head == "ubert":
    shape = (BATCH, LABELS, LENGTH, LENGTH)
    outputs = UbertOutput(span_logits=RANDOM.normal(size=shape))
    batch = {}
  else:
    shape = (BATCH, LENGTH, LENGTH, TYPES)
    positions = RANDOM.integers(0, LENGTH, (BATCH, 3))
    outputs = UniexOutput(
      index_logits=RANDOM.normal(size=shape[:3]), type_logits=RANDOM.normal(size=(BATCH, 3, 3, TYPES - 1))
    )
    batch = {"span_positions": positions}
  batch["span_labels"] = RANDOM.integers(0, 2, shape)
  batch["span_labels_mask"] = RANDOM.choice([0, -10000], shape)
  batch["span_labels"][batch["span_labels_mask"] < 0] = 0
  return outputs, {name: jnp.asarray(x) for name, x in batch.items()}


def rows(tree, part):
  return jax.tree.map(lambda x: x[part], tree)


@pytest.mark.parametrize("head", ["ubert", "uniex"])
def test_parts_add_up_and_filling_rows_count_for_nothing(head):
  objective = OBJECTIVES[head]
  assert not objective.classifies

  @jax.jit
  def losses(outputs, batch):
    weights = objective.weights(batch)
    parts = [objective(rows(outputs, part), rows(batch, part), weights) for part in (slice(0, 1), slice(1, None))]
    filled = objective(outputs, {**batch, "weights": jnp.array([1.0, 1.0, 1.0, 0.0])})
    return objective(outputs, batch), sum(parts), filled, objective(rows(outputs, slice(3)), rows(batch, slice(3)))

  whole, parts, filled, short = losses(*case(head))
  np.testing.assert_allclose(parts, whole, rtol=1e-5)
  np.testing.assert_allclose(filled, short, rtol=1e-5)
  assert abs(short - whole) > 1e-3 * abs(whole)


def test_uniexs_parts():
  outputs, batch = case("uniex")
  objective = OBJECTIVES["uniex"]
  sums, weights = jax.jit(lambda *given: (objective.sums(*given), objective.weights(given[1])))(outputs, batch)
  rows, columns = batch["span_positions"][:, :, None], batch["span_positions"][:, None]
  masks, labels = (np.asarray(batch[name]) for name in ("span_labels_mask", "span_labels"))
  of_row = np.arange(BATCH)[:, None, None]
  expected = {
    "index": (outputs.index_logits + masks[..., 0], labels[..., 0]),
    "types": (outputs.type_logits + masks[of_row, rows, columns, 1:], labels[of_row, rows, columns, 1:]),
  }
  for term, (logits, wanted) in expected.items():
    reference = torch.nn.functional.binary_cross_entropy_with_logits(
      torch.tensor(np.array(logits)), torch.tensor(wanted, dtype=torch.float64)
    )
    np.testing.assert_allclose(sums[term] / weights[term], 1e5 * reference, rtol=1e-5)
