"""Twenty steps of AdamW beside PyTorch: the same weights, the same batches, the same losses and final parameters."""

import jax
import numpy as np
import pytest
import torch
import transformers
from torch_reference import QUICK, make_batch, make_pair

from fsb_jax import models
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.optimizers import adamw, schedule
from fsb_jax.training.step import Update

STEPS, WARMUP, LEARNING_RATE, WEIGHT_DECAY, ROWS = 20, 4, 3e-3, 0.1, 8
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def batches(pair):
  """A batch a step: rows of every length but none without a token, and from none to all tokens with a label."""
  result = []
  for seed in range(STEPS):
    batch = make_batch(pair, seed=seed)
    keep = np.array([0, 1, 2, 3, 5, 0, 1, 3])
    batch = {name: x[keep].copy() for name, x in batch.items()}
    if pair.head == "masked_lm":
      share = np.random.default_rng(seed).permutation([0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.9, 1.0])
      drawn = np.random.default_rng(100 + seed).random(batch["labels"].shape)
      labels = np.random.default_rng(200 + seed).integers(0, pair.config.vocab_size, drawn.shape)
      batch["labels"] = np.where(drawn < share[:, None], labels, -100)
    result.append(batch)
  return result


def torch_curve(pair, clip):
  """Losses, final parameters as our tree, and in how many steps clipping changed the gradients."""
  model = pair.theirs.train()
  decaying = [p for name, p in model.named_parameters() if p.ndim == 2]
  others = [p for name, p in model.named_parameters() if p.ndim != 2]
  optimizer = torch.optim.AdamW(
    [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}], lr=LEARNING_RATE
  )
  rate = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
  losses, clipped = [], 0
  for batch in batches(pair):
    loss = model(**{name: torch.from_numpy(x) for name, x in batch.items()}).loss
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    if clip is not None and norm > clip:
      clipped += 1
      for gradient in gradients:
        # By hand: torch.nn.utils.clip_grad_norm_ scales by clip / (norm + 1e-6), which is not the definition.
        gradient.mul_(clip / norm)
    optimizer.step()
    rate.step()
    losses.append(loss.item())
  return losses, models.flatten(pair.params), clipped


def our_curve(pair, params, microbatches, clip):
  rate = schedule(kind="linear", learning_rate=LEARNING_RATE, train_steps=STEPS, warmup_steps=WARMUP)
  optimizer = adamw(learning_rate=rate, weight_decay=WEIGHT_DECAY, max_gradient_norm=clip)
  update = Update(pair.model, OBJECTIVES[pair.head], optimizer, microbatches=microbatches)
  step = jax.jit(update, compiler_options=QUICK)
  state, losses = update.first_state(jax.tree.map(jax.numpy.asarray, params)), []
  for batch in batches(pair):
    state, metrics = step(state, {**batch, "weights": np.ones(ROWS, np.float32)})
    losses.append(float(metrics["loss"]))
  assert state.step == STEPS
  return losses, {path: np.asarray(x) for path, x in models.flatten(state.params).items()}


@pytest.mark.parametrize(
  "family,head,clip,microbatches,scan",
  [
    ("bert", "masked_lm", None, (1, 2, 4), True),
    pytest.param("megatron_bert", "sequence_classification", 5.5, (1, 4), False, marks=pytest.mark.slow),
  ],
)
def test_curve_is_that_of_pytorch(family, head, clip, microbatches, scan):
  with jax.enable_x64(True):
    pair = make_pair(family, head, run={"scan_layers": scan}, **NO_DROPOUT)
    start = pair.params
    theirs, final, clipped = torch_curve(pair, clip)
    # Adam forgets a scale that all gradients share: some steps must be clipped and some not.
    assert clip is None or 5 < clipped < STEPS - 5
    assert abs(theirs[-1] - theirs[0]) > 0.1  # it trained
    for count in microbatches:
      ours, parameters = our_curve(pair, start, count, clip)
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8, err_msg=f"{count} microbatches")
      for path, expected in final.items():
        np.testing.assert_allclose(
          parameters[path], expected, rtol=0, atol=1e-8, err_msg=f"{path}, {count} microbatches"
        )


def test_microbatches_differ_in_how_many_labels_they_have():
  # Or the test above could not tell a mean of means from the mean.
  pair = make_pair("bert", "masked_lm", dtype="float32", **NO_DROPOUT)
  valid = np.array([(batch["labels"] >= 0).sum(axis=1) for batch in batches(pair)])
  for count in (2, 4):
    parts = valid.reshape(STEPS, -1, count).sum(axis=1)
    assert (parts.max(axis=1) >= 2 * np.maximum(parts.min(axis=1), 1)).mean() > 0.2
