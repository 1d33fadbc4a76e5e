"""XLNet's two streams and its memory against transformers: outputs, states and gradients."""

import jax
import numpy as np
import pytest
import torch
from torch_reference import LENGTH, REAL_TOKENS, ROWS, make_pair

from fsb_jax import models

ASKED = 4


@pytest.fixture(scope="module")
def batch():
  """Tokens are predicted in a random order; padding stands to the left, as XLNet was trained with."""
  random = np.random.default_rng(0)
  order = random.permuted(np.tile(np.arange(LENGTH), (ROWS, 1)), axis=1)
  targets = np.eye(LENGTH)[random.permuted(np.tile(np.arange(LENGTH), (ROWS, 1)), axis=1)[:, :ASKED]]
  return {
    "input_ids": random.integers(2, 101, (ROWS, LENGTH)),
    "attention_mask": (np.arange(LENGTH) >= LENGTH - np.array(REAL_TOKENS)[:, None]).astype(np.int64),
    "token_type_ids": random.integers(0, 2, (ROWS, LENGTH)),
    "perm_mask": (order[:, :, None] <= order[:, None, :]).astype(np.float64),
    "target_mapping": targets,
    "mems": random.normal(size=(3, ROWS, 7, 32)),
  }


def run_both(batch, scan=True, **changes):
  """(ours, theirs), each with logits, states, memories and gradients of a projection of the logits."""
  with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    pair = make_pair("xlnet", "lm", run=dict(scan_layers=scan), **changes)
    projection = np.random.default_rng(1).normal(size=(101,))

    def loss(params):
      outputs, memory = pair.model.apply({"params": params}, **batch, output_hidden_states=True, output_mems=True)
      return (outputs.logits * projection).sum(), (outputs, memory)

    (_, (outputs, memory)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(pair.params)
    ours = {"logits": outputs.logits, "memory": memory, **models.flatten(gradients)}
    ours |= {f"state {i}": state for i, state in enumerate(outputs.hidden_states)}

    arrays = {name: torch.from_numpy(x) for name, x in batch.items()}
    if "mems" in arrays:
      arrays["mems"] = [memory.transpose(0, 1) for memory in arrays["mems"]]
    result = pair.theirs(**arrays, output_hidden_states=True, use_mems=True)
    (result.logits * torch.from_numpy(projection)).sum().backward()
    theirs = {"logits": result.logits, "memory": torch.stack([memory.transpose(0, 1) for memory in result.mems])}
    theirs |= {f"state {i}": state for i, state in enumerate(result.hidden_states)}
    theirs = {name: x.detach().numpy() for name, x in theirs.items()}
    theirs |= models.flatten(pair.as_ours(lambda parameter: parameter.grad))
  return ours, theirs


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  "left_out,changes",
  [
    ((), dict(mem_len=9)),
    pytest.param(("mems",), dict(mem_len=None, clamp_len=4), marks=pytest.mark.slow),
    pytest.param(("target_mapping", "perm_mask"), dict(mem_len=5, reuse_len=6), marks=pytest.mark.slow),
    pytest.param(("attention_mask", "token_type_ids"), dict(mem_len=30), marks=pytest.mark.slow),
  ],
  ids=["everything", "no memory", "one stream", "no masks"],
)
def test_equals_transformers(batch, left_out, changes, scan):
  ours, theirs = run_both({name: x for name, x in batch.items() if name not in left_out}, scan, **changes)
  assert ours.keys() == theirs.keys()
  for name, reference in theirs.items():
    atol = 1e-9 * max(1, np.abs(reference).max())
    np.testing.assert_allclose(ours[name], reference, rtol=1e-9, atol=atol, err_msg=name)
  silent = {name.split("/")[-1] for name, x in theirs.items() if np.abs(x).max() < 1e-9}
  unused = {"mask_embed"} if "target_mapping" in left_out else set()
  unused |= {"segment_bias", "segment_embed"} if "token_type_ids" in left_out else set()
  assert silent == unused


def test_the_query_stream_does_not_see_what_it_predicts(batch):
  given = {name: x for name, x in batch.items() if name not in ("mems", "attention_mask")}
  pair = make_pair("xlnet", "lm", dtype="float32")
  given["target_mapping"] = given["target_mapping"].astype(np.float32)
  logits = jax.jit(lambda inputs: pair.model.apply({"params": pair.params}, **inputs).logits)
  before = logits(given)
  asked = given["target_mapping"].argmax(-1)
  for prediction in range(ASKED):
    ids = given["input_ids"].copy()
    np.put_along_axis(ids, asked[:, prediction : prediction + 1], 1, axis=1)
    after = logits({**given, "input_ids": ids})
    # What comes first in the order sees nothing, and so attends to everything evenly.
    sees = given["perm_mask"][np.arange(ROWS), asked[:, prediction]].min(-1) == 0
    np.testing.assert_array_equal(after[sees, prediction], before[sees, prediction])
    assert sees.sum() > ROWS / 2
    assert np.abs(np.asarray(after - before)).max() > 1e-3
