"""One train step on eight forced host devices equals one device, and the state is really split."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from tiny_hub import LM, QUICK

from fsb_jax import models
from fsb_jax.models.cache import new_cache
from fsb_jax.partitioning import Partitioner, make_mesh
from fsb_jax.training.levers import Levers
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.optimizers import adafactor, adamw, lion
from fsb_jax.training.step import Update, abstract_state

HEAD = "pretraining"
MESHES = [
  pytest.param({"data": 8}, marks=pytest.mark.slow),
  pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
  {"tensor": 8},
  {"data": 2, "fsdp": 2, "tensor": 2},
  pytest.param({"fsdp": 2, "tensor": 2, "sequence": 2}, marks=pytest.mark.slow),
  pytest.param({"sequence": 8}, marks=pytest.mark.slow),
]


def config_for(partitioner, family="bert", **run):
  run = {"dtype": "float64", "param_dtype": "float64", **run}
  tiny = models.sized(family, "tiny", vocab_multiple=partitioner.vocab_multiple, **run)
  # Two tokens on either side: more blocks than one.
  window = None if tiny.window is None else dataclasses.replace(tiny.window, reach=(2, 2))
  # 101 words: no mesh divides them, so the table is padded.
  decoder = tiny.decoder and dataclasses.replace(tiny.decoder, num_layers=3, num_heads=8, mlp_dim=64)
  # As many heads as the largest mesh has parts; LLaMA's of keys and values are fewer than the queries'.
  kv_heads = {"num_heads": 16, "num_kv_heads": 8} if family == "llama" else {}
  return dataclasses.replace(
    tiny, **{
      "window": window, "vocab_size": 101, "embed_dim": 64, "num_heads": 8, "mlp_dim": 128, "num_layers": 2,
      "initializer_range": 0.3, "dropout": models.Dropout(hidden=0.1, attention=0.1), "decoder": decoder,
      "head_size": tiny.head_size and 8, **kv_heads,
    },
  )  # fmt: skip


@pytest.fixture(scope="module")
def batch():
  random = np.random.default_rng(0)
  lengths = random.integers(5, 17, (16, 1))
  ids = random.integers(1, 101, (16, 16)).astype(np.int32)
  return {
    "input_ids": ids,
    "attention_mask": (np.arange(16) < lengths).astype(np.int32),
    "token_type_ids": random.integers(0, 2, (16, 16)).astype(np.int32),
    "labels": np.where(random.random((16, 16)) < 0.3, ids, -100).astype(np.int32),
    "next_sentence_label": random.integers(0, 2, 16).astype(np.int32),
    "weights": np.array([1] * 15 + [0], np.float32),
    "decoder_input_ids": random.integers(0, 101, (16, 16)).astype(np.int32),
    "input_ngram_ids": random.integers(0, 99, (16, 16)).astype(np.int32),
    "ngram_position_matrix": (random.random((16, 16, 16)) < 0.2).astype(np.float32),
    "ngram_token_type_ids": random.integers(0, 2, (16, 16)).astype(np.int32),
    "ngram_attention_mask": random.integers(0, 2, (16, 16)).astype(np.int32),
  }


OPTIMIZER = adamw(learning_rate=1e-2, max_gradient_norm=None)


def one_step(partitioner, params, batch, config, optimizer=OPTIMIZER, family="bert", head=HEAD, **options):
  """The state after one step from `params` (of one device), and its metrics."""
  update = Update(models.build(family, config, head), OBJECTIVES[head], optimizer, **options)
  boxed = abstract_state(update)
  partitioner.validate(boxed)
  shardings = partitioner.shardings(boxed)
  padded = jax.tree.map(
    lambda box, x: np.pad(x, [(0, want - have) for want, have in zip(box.value.shape, x.shape)]),
    boxed.params, params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
  )
  placed = jax.tree.map(jax.device_put, padded, shardings.params)
  state = partitioner.jit(update.first_state, out_shardings=shardings)(placed, 3)
  step = partitioner.jit(update, out_shardings=(shardings, None), donate_argnums=0)
  return step(state, partitioner.shard_batch(batch))


def drawn(model):
  """Parameters of `model`, as arrays of NumPy."""
  draw = jax.jit(lambda key: model.init(key, models.dummy_ids(model))["params"], compiler_options=QUICK)
  return jax.tree.map(np.asarray, nn.meta.unbox(draw(jax.random.key(0))))


@pytest.fixture(scope="module")
def single(batch):
  """Parameters, loss, gradients and what AdamW makes of them on one device, in float64."""
  with jax.enable_x64(True):
    partitioner = Partitioner(make_mesh(devices=jax.devices()[:1]))
    config = config_for(partitioner)
    model = models.build("bert", config, HEAD)
    params = drawn(model)
    state, metrics = one_step(partitioner, params, batch, config)
    return params, float(metrics["loss"]), cut(gradients(state), params), cut(state.params, params)


def gradients(state):
  """What the step saw: after one step AdamW's first moment is (1 - beta1) times the gradient."""
  return jax.tree.map(lambda moment: np.asarray(moment) / (1 - 0.9), optax.tree.get(state.optimizer, "mu"))


def cut(tree, like):
  return jax.tree.map(lambda x, y: np.asarray(x)[tuple(slice(0, n) for n in y.shape)], tree, like)


def bytes_on_one_device(tree):
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_step_equals_one_device(mesh, single, batch):
  params, loss, want_gradients, want_params = single
  partitioner = Partitioner(mesh)
  config = config_for(partitioner)
  with jax.enable_x64(True):
    state, metrics = one_step(partitioner, params, batch, config)
    assert float(metrics["loss"]) == pytest.approx(loss, abs=1e-9)
    got_gradients, got_params = cut(gradients(state), params), cut(state.params, params)
  for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(want_gradients), jax.tree.leaves(got_gradients)):
    np.testing.assert_allclose(got, want, atol=1e-9, rtol=1e-9, err_msg=jax.tree_util.keystr(path))

  # Adam turns rounding noise in a gradient of zero into a full step, so those are not compared.
  def compare(got, want, gradient):
    felt = np.abs(gradient) > 1e-6
    np.testing.assert_allclose(got[felt], want[felt], atol=1e-9)

  jax.tree.map(compare, got_params, want_params, want_gradients)

  # What rules split, the devices hold in parts: parameters and both moments.
  with jax.enable_x64(True):
    boxed = models.abstract_params(models.build("bert", config, HEAD))
  shardings = partitioner.shardings(boxed)
  expected = sum(
    8 * math.prod(sharding.shard_shape(box.value.shape))
    for box, sharding in zip(
      jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)), jax.tree.leaves(shardings)
    )
  )
  assert bytes_on_one_device(state.params) == expected
  # Two moments, and the counters of Adam.
  assert 0 <= bytes_on_one_device(state.optimizer) - 2 * expected <= 32
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  parts = math.prod(size for axis, size in partitioner.mesh.shape.items() if axis in ("fsdp", "tensor"))
  # Position tables and norms stay whole; the rest, nearly all of a real model, is split.
  whole_parts = 8 * sum(np.asarray(x).size for x in jax.tree.leaves(params["position_embed"]))
  assert expected <= (whole - whole_parts) / parts * 1.25 + whole_parts


def on_one_device(batch, options, **changes):
  """Parameters to start from, and the state and metrics that one step on one device makes of them."""
  partitioner = Partitioner(make_mesh(devices=jax.devices()[:1]))
  config = dataclasses.replace(config_for(partitioner, options.get("family", "bert")), **changes)
  model = models.build(options.get("family", "bert"), config, options.get("head", HEAD))
  params = drawn(model)
  return params, *one_step(partitioner, params, batch, config, **options)


@pytest.mark.slow
def test_levers_equal_one_device(batch):
  rates = {r"layers_0/": 0.0, r"layers_1/mlp/": 0.5, "position_embed": 0}
  levers = Levers(label_smoothing=0.1, r_drop=0.5, fgm=1.0, ema_decay=0.5, parameter_rates=rates)
  options = {"levers": levers, "microbatches": 2}
  partitioner = Partitioner({"data": 2, "fsdp": 2, "tensor": 2})
  with jax.enable_x64(True):
    params, want, want_metrics = on_one_device(batch, options)
    got, metrics = one_step(partitioner, params, batch, config_for(partitioner), **options)
    for name in ("loss", "gradient_norm"):
      assert float(metrics[name]) == pytest.approx(float(want_metrics[name]), abs=1e-9)
    slopes = models.flatten(gradients(want))
    flat = {name: models.flatten(cut(getattr(got, name), params)) for name in ("params", "average")}
    start = models.flatten(params)
  frozen = [path for path in start if path not in slopes]
  assert frozen == ["position_embed/embedding"]
  for name, ours in flat.items():
    for path, expected in models.flatten(cut(getattr(want, name), params)).items():
      felt = np.abs(slopes.get(path, np.ones(start[path].shape))) > 1e-6
      np.testing.assert_allclose(ours[path][felt], expected[felt], atol=1e-9, err_msg=f"{name} {path}")
      if path in frozen:
        np.testing.assert_array_equal(expected, start[path])
      elif "/layers/" in path and not path.endswith("attention/key/bias"):
        assert np.array_equal(expected[0], start[path][0]) and not np.array_equal(expected[1], start[path][1])
  # Moments and averages are split as their parameters are.
  shares = {name: bytes_on_one_device(getattr(got, name)) for name in ("params", "average", "optimizer")}
  idle = sum(start[path].nbytes for path in frozen)
  assert shares["average"] == shares["params"] and 0 <= shares["optimizer"] - 2 * (shares["params"] - idle) <= 32


@pytest.mark.parametrize("mesh", [{"fsdp": 2, "tensor": 2, "sequence": 2}, {"tensor": 8}, {"sequence": 8}], ids=str)
@pytest.mark.parametrize("family", [name for name in LM if "tiny" in models.family(name).sizes])
@pytest.mark.slow
def test_every_family_equals_one_device(family, mesh, batch):
  partitioner = Partitioner(mesh)
  options = {"family": family, "head": LM[family]}
  config = config_for(partitioner, family)
  if config.window is not None:
    batch = {**batch, "global_attention_mask": (batch["input_ids"] % 5 == 0).astype(np.int32)}
  with jax.enable_x64(True):
    params, want, want_metrics = on_one_device(batch, options)
    got, metrics = one_step(partitioner, params, batch, config, **options)
    assert float(metrics["loss"]) == pytest.approx(float(want_metrics["loss"]), abs=1e-9)
    expected, ours = (models.flatten(cut(gradients(state), params)) for state in (want, got))
  for path in expected:
    np.testing.assert_allclose(ours[path], expected[path], atol=1e-9, rtol=1e-9, err_msg=path)


def tagged(batch):
  random = np.random.default_rng(1)
  names = ("labels", "start_positions", "end_positions")
  spans = batch["attention_mask"][:, :, None] * batch["attention_mask"][:, None]
  return {
    **batch,
    **{name: random.integers(0, 2, (16, 16)).astype(np.int32) for name in names},
    "span_labels": random.integers(0, 2, (16, 16, 16)).astype(np.int32),
    "span_mask": np.triu(spans),
  }


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"sequence": 4, "tensor": 2}], ids=str)
@pytest.mark.parametrize("head", ["crf", "span", "biaffine"])
def test_the_taggers_equal_one_device(head, mesh, batch):
  batch, partitioner = tagged(batch), Partitioner(mesh)
  with jax.enable_x64(True):
    params, want, want_metrics = on_one_device(batch, {"head": head})
    got, metrics = one_step(partitioner, params, batch, config_for(partitioner), head=head)
    assert float(metrics["loss"]) == pytest.approx(float(want_metrics["loss"]), abs=1e-9)
    expected, ours = (models.flatten(cut(gradients(state), params)) for state in (want, got))
  for path in expected:
    np.testing.assert_allclose(ours[path], expected[path], atol=1e-9, rtol=1e-9, err_msg=path)
    assert not path.startswith("head/") or np.abs(expected[path]).max() > 1e-6


@pytest.mark.parametrize(
  "optimizer,share",
  [
    pytest.param(lion(learning_rate=1e-3), (0.99, 1.01), id="lion", marks=pytest.mark.slow),
    pytest.param(
      adafactor(learning_rate=1e-2, smallest_factored=8), (0, 0.5), id="adafactor", marks=pytest.mark.slow
    ),
  ],
)
def test_other_optimizers_equal_one_device(optimizer, share, batch):
  partitioner = Partitioner({"data": 2, "fsdp": 2, "tensor": 2})
  with jax.enable_x64(True):
    # A vocabulary that needs no padding: Adafactor's means are over all rows.
    params, want, _ = on_one_device(batch, {"optimizer": optimizer}, vocab_size=104)
    config = dataclasses.replace(config_for(partitioner), vocab_size=104)
    got, _ = one_step(partitioner, params, batch, config, optimizer=optimizer)
    expected, ours, start = (models.flatten(jax.device_get(tree)) for tree in (want.params, got.params, params))
  for path in expected:
    # Its gradient is zero but for rounding, of which both take the sign.
    if not path.endswith("attention/key/bias"):
      np.testing.assert_allclose(ours[path], expected[path], atol=1e-9, err_msg=path)
      assert not np.array_equal(expected[path], start[path]), path
  low, high = share
  assert low < bytes_on_one_device(got.optimizer) / bytes_on_one_device(got.params) < high
  if low == 0:
    boxed = abstract_state(Update(models.build("bert", config, HEAD), OBJECTIVES[HEAD], optimizer)).optimizer
    kept = {leaf.names for leaf in jax.tree.leaves(boxed, is_leaf=is_box) if is_box(leaf)}
    # What is not factored is as large as its parameter and split like it.
    assert ("layers", "mlp") in kept and ("vocab",) in kept and ("layers", "embed", "mlp") not in kept
    assert not [names for names in kept if any(isinstance(name, tuple) for name in names)]


def is_box(x):
  return isinstance(x, nn.LogicallyPartitioned)


def test_the_table_explains_every_parameter():
  from rich.console import Console

  partitioner = Partitioner({"fsdp": 4, "tensor": 2})
  config = config_for(partitioner, dtype="float32", param_dtype="float32")
  boxed = models.abstract_params(models.build("bert", config, HEAD))
  console = Console(width=200)
  with console.capture() as capture:
    console.print(partitioner.explain(boxed))
  text = capture.get()
  line = next(line for line in text.splitlines() if "attention/query/kernel" in line)
  # 2 layers of 64 x 8 heads x 8, four bytes each, over 8 devices.
  assert "layers, embed, heads, kv" in line and "-, fsdp, tensor, -" in line and f"{2 * 64 * 64 * 4 // 8:,}" in line
  assert "total" in text and all(path.split("/")[-1] in text for path in models.flatten(boxed))


def test_a_family_that_does_not_divide_is_refused_before_compiling():
  partitioner = Partitioner({"tensor": 8})
  config = dataclasses.replace(config_for(partitioner, dtype="float32", param_dtype="float32"), num_heads=4)
  with pytest.raises(Exception, match=r"attention/(query|key|value)/.*heads -> 'tensor' splits 4 into 8 parts"):
    partitioner.validate(models.abstract_params(models.build("bert", config, HEAD)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ubert", "uniex"])
def test_heads_that_score_spans_equal_one_device(head):
  random = np.random.default_rng(0)
  rows, labels = ((8, 3, 16), (8, 3, 16, 16)) if head == "ubert" else ((8, 16), (8, 16, 16, 4))
  batch = {
    "input_ids": random.integers(1, 101, rows).astype(np.int32),
    "attention_mask": np.ones(rows, np.int32),
    "span_labels": random.integers(0, 2, labels).astype(np.int8),
    "span_labels_mask": random.choice([0, -10000], labels).astype(np.int16),
    "weights": np.array([1] * 7 + [0], np.float32),
  }
  if head == "uniex":
    batch["attention_mask"] = random.integers(0, 2, (8, 16, 16)).astype(np.int8)
    batch["label_positions"] = np.tile(np.arange(4, dtype=np.int32), (8, 1))
    batch["span_positions"] = np.tile(np.arange(5, 11, dtype=np.int32), (8, 1))
  partitioner = Partitioner({"data": 2, "fsdp": 2, "tensor": 2})
  sizes = {"head_sizes": models.HeadSizes(biaffine_size=16, triaffine_hidden_size=16)}
  with jax.enable_x64(True):
    params, want, want_metrics = on_one_device(batch, {"head": head}, **sizes)
    config = dataclasses.replace(config_for(partitioner), **sizes)
    got, metrics = one_step(partitioner, params, batch, config, head=head)
    assert float(metrics["loss"]) == pytest.approx(float(want_metrics["loss"]), rel=1e-9)
    slopes = [jax.tree.leaves(cut(gradients(state), params)) for state in (got, want)]
  for ours, expected in zip(*slopes, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9 * float(want_metrics["gradient_norm"]))


def logits_of(partitioner, family, params):
  """Logits of a prompt of four tokens and of two more, one by one; and the parameters, drawn if there are none."""
  config = config_for(partitioner, family, scan_layers=False)
  model = models.build(family, config, LM[family])
  if params is None:
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), models.dummy_ids(model))["params"]
    params = jax.tree.map(np.asarray, nn.meta.unbox(params))
  boxed = models.abstract_params(model)
  padded = jax.tree.map(
    lambda box, x: np.pad(x, [(0, want - have) for want, have in zip(box.value.shape, x.shape)]),
    boxed, params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
  )  # fmt: skip
  placed = jax.tree.map(jax.device_put, padded, partitioner.shardings(boxed))
  random = np.random.default_rng(0)
  read, written = (random.integers(1, 101, (8, length)) for length in (5, 6))
  mask = (np.arange(5) < random.integers(1, 6, (8, 1))).astype(np.int32)
  fixed = {}
  if config.decoder is not None:
    encode = partitioner.jit(functools.partial(model.apply, method="encode"), compiler_options=QUICK)
    fixed = {"encoder_outputs": encode({"params": placed}, read, mask), "attention_mask": mask}
  name = "input_ids" if config.decoder is None else "decoder_input_ids"
  step = partitioner.jit(
    lambda params, inputs: model.apply({"params": params}, **inputs), compiler_options=QUICK
  )
  cache, start, logits = new_cache(config.decoder_config, 8, 6), 0, []
  for size in (4, 1, 1):
    out = step(placed, {name: written[:, start : start + size], **fixed, "cache": cache})
    cache, start = out.cache, start + size
    logits.append(np.asarray(out.logits)[..., :101])
  return np.concatenate(logits, axis=1), params, placed


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_writing_with_a_cache_equals_one_device(family, mesh):
  with jax.enable_x64(True):
    alone, params, _ = logits_of(Partitioner(make_mesh(devices=jax.devices()[:1])), family, None)
    split, _, placed = logits_of(Partitioner(mesh), family, params)
  assert np.abs(alone).max() > 0.5 and alone.dtype == np.float64
  np.testing.assert_allclose(split, alone, atol=1e-9, rtol=1e-9)
  # The kernels lie in parts.
  layer = placed["decoder"]["layers_0"]["attention"]["query"]["kernel"]
  assert layer.addressable_shards[0].data.size < layer.size
