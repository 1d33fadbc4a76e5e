"""The heads that score spans against PyTorch in float64, and what they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core.meta import unbox

from fsb_jax import models
from fsb_jax.models.config import HeadSizes

QUICK = {"xla_backend_optimization_level": 0}
SIZE, EMBED, LENGTH = 5, 8, 6
CONFIG = models.TransformerConfig(
  vocab_size=30, embed_dim=EMBED, num_layers=1, num_heads=2, mlp_dim=12, initializer_range=0.5,
  head_sizes=HeadSizes(biaffine_size=SIZE, triaffine_hidden_size=SIZE),
)  # fmt: skip
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(2, LENGTH, EMBED))
LABELS, TEXT = np.array([[0, 1, 3], [0, 2, 2]]), np.array([[2, 3, 4, 5], [3, 4, 5, 0]])
FAMILIES = [name for name, family in models.all_families().items() if "ubert" in family.heads]


def view(params, name, hidden):
  layer = params[name]
  return torch.nn.functional.gelu(torch.nn.functional.linear(hidden, layer["kernel"].T, layer["bias"]))


def torch_ubert(params, hidden):
  query, key = (
    torch.cat([view(params, name, hidden), torch.ones(*hidden.shape[:2], 1)], dim=-1) for name in ("query", "key")
  )
  rows, columns = query[:, :, None].expand(-1, -1, LENGTH, -1), key[:, None].expand(-1, LENGTH, -1, -1)
  weight = params["biaffine"]["kernel"][None]
  return (torch.nn.functional.bilinear(rows.contiguous(), columns.contiguous(), weight)[..., 0],)


def torch_uniex(params, hidden):
  def at(positions, name):
    places = torch.from_numpy(positions)[..., None].expand(-1, -1, EMBED)
    return view(params, name, torch.gather(hidden, 1, places))

  # The type's axis is the kernel's first, the middle one in the paper.
  weight = params["triaffine"]["kernel"].transpose(0, 1)
  types = at(LABELS, "type")
  index = torch.einsum(
    "bxi,ioj,byj,bzo->bxyz", view(params, "start", hidden), weight, view(params, "end", hidden), types[:, :1]
  )
  return index[..., 0], torch.einsum("bxi,ioj,byj,bzo->bxyz", at(TEXT, "start"), weight, at(TEXT, "end"), types[:, 1:])


CASES = {
  "ubert": (torch_ubert, ("span_logits",), {}),
  "uniex": (torch_uniex, ("index_logits", "type_logits"), {"label_positions": LABELS, "span_positions": TEXT}),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_and_gradients_are_pytorchs(name):
  reference, fields, inputs = CASES[name]
  with jax.enable_x64(True):
    config = CONFIG.with_run(dtype="float64", param_dtype="float64")
    head = models.build("bert", config, name).head
    encoded = models.BaseOutput(last_hidden_state=jnp.asarray(HIDDEN))
    abstract = jax.eval_shape(lambda key: head.init(key, encoded, None, True, **inputs), jax.random.key(0))
    params = jax.tree.map(lambda x: 0.5 * RANDOM.normal(size=x.shape), unbox(abstract["params"]))

    def ours(p):
      result = head.apply({"params": p}, encoded, None, True, **inputs)
      return sum(jnp.sum(jnp.sin(getattr(result, field))) for field in fields), result

    gradients, outputs = jax.jit(jax.grad(ours, has_aux=True), compiler_options=QUICK)(params)
  torch.set_default_dtype(torch.float64)
  try:
    theirs = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).requires_grad_(), params)
    expected = reference(theirs, torch.from_numpy(HIDDEN))
    sum(torch.sin(x).sum() for x in expected).backward()
  finally:
    torch.set_default_dtype(torch.float32)
  for field, array in zip(fields, expected, strict=True):
    np.testing.assert_allclose(getattr(outputs, field), array.detach(), rtol=1e-9, atol=1e-9)
  for path, gradient in models.flatten(gradients).items():
    np.testing.assert_allclose(gradient, models.flatten(theirs)[path].grad, rtol=1e-9, atol=1e-9, err_msg=path)


@pytest.fixture(scope="module")
def uniex():
  model = models.build("bert", CONFIG, "uniex")
  params = unbox(jax.jit(model.init, compiler_options=QUICK)(jax.random.key(1), models.dummy_ids(model))["params"])
  ids = RANDOM.integers(1, 30, (2, LENGTH))
  apply = jax.jit(model.apply, compiler_options=QUICK)
  return lambda **inputs: apply({"params": params}, ids, **inputs)


def test_positions_that_are_not_given_are_all(uniex):
  whole = uniex()
  assert whole.index_logits.shape == (2, LENGTH, LENGTH) and whole.type_logits.shape == (2, LENGTH, LENGTH, LENGTH - 1)
  some = uniex(label_positions=LABELS, text_positions=TEXT, span_positions=TEXT[:, :2])
  for i in range(2):
    np.testing.assert_allclose(
      some.index_logits[i], whole.index_logits[i][np.ix_(TEXT[i], TEXT[i])], rtol=1e-5, atol=1e-6
    )
    expected = whole.type_logits[i][np.ix_(TEXT[i, :2], TEXT[i, :2], LABELS[i, 1:] - 1)]
    np.testing.assert_allclose(some.type_logits[i], expected, rtol=1e-5, atol=1e-6)
  same = uniex(label_positions=LABELS, text_positions=TEXT)
  assert same.type_logits.shape == (2, 4, 4, 2)
  np.testing.assert_allclose(same.type_logits[:, :2, :2], some.type_logits, rtol=1e-5, atol=1e-6)


def test_uberts_labels_are_rows_of_their_own():
  model = models.build("bert", CONFIG, "ubert")
  params = unbox(jax.jit(model.init, compiler_options=QUICK)(jax.random.key(1), models.dummy_ids(model))["params"])
  ids = RANDOM.integers(1, 30, (2, 3, LENGTH))
  apply = jax.jit(model.apply, compiler_options=QUICK)
  scores = apply({"params": params}, ids).span_logits
  assert scores.shape == (2, 3, LENGTH, LENGTH)
  alone = apply({"params": params}, ids[1:, 2:]).span_logits
  np.testing.assert_allclose(scores[1:, 2:], alone, rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match=r"this head takes input_ids \[batch, choices, length\]"):
    model.apply({"params": params}, ids[0])


def test_what_the_models_take():
  names = {head: models.input_names(models.build("bert", CONFIG, head)) for head in CASES}
  assert names["uniex"][-3:] == ("label_positions", "text_positions", "span_positions")
  assert names["ubert"] == names["uniex"][:-3]


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_are_kept_in_config_json(family):
  chosen = models.family(family)
  config = next(iter(chosen.sizes.values()))
  hf = {**chosen.config_to_hf(config), "biaffine_size": 16, "triaffine_hidden_size": 12}
  read = chosen.config_from_hf(hf)
  assert read.head_sizes == HeadSizes(biaffine_size=16, triaffine_hidden_size=12)
  assert chosen.config_from_hf(chosen.config_to_hf(read)) == read
  for head, path, shape in (("ubert", "head/biaffine/kernel", (17, 17)), ("uniex", "head/triaffine/kernel", (12,) * 3)):
    if head not in chosen.heads:
      assert (head, config.window is not None) == ("uniex", True)
      continue
    params = models.flatten(unbox(models.abstract_params(models.build(family, read, head))))
    assert params[path].shape == shape
    assert not any(name.startswith("pooler") for name in params)
