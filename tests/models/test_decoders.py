"""Reading a text in parts, with a cache, says what reading it at once says; every family that writes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_hub import DECODERS, ENCODER_DECODERS, LM, QUICK, assert_close
from torch_reference import make_pair

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.cache import cache_bytes, new_cache
from fsb_jax.models.scaled_rotary import DynamicScaling

ROWS, READ, WRITTEN, ROOM = 3, 7, 10, 12
# Two chunks of a prompt, then token by token.
PARTS = (4, 3, 1, 1, 1)
# Left-padded prompts.
REAL = np.arange(WRITTEN) >= np.array([0, 3, 6])[:, None]


def case(family, scan=True, **changes):
  """A tiny model in float64 with drawn parameters, and the arrays that it reads."""
  run = dict(dtype="float64", param_dtype="float64", scan_layers=scan)
  config = models.sized(family, "tiny", **run)
  decoder = config.decoder and dataclasses.replace(config.decoder, num_layers=3, num_heads=2, mlp_dim=40)
  kv_heads = {"num_kv_heads": 2} if family == "llama" else {}
  config = dataclasses.replace(
    config, **{
      "vocab_size": 31, "embed_dim": 32, "num_heads": 4, "mlp_dim": 48, "initializer_range": 0.3, "decoder": decoder,
      "head_size": 6 if config.head_size else None, "num_layers": 2, **kv_heads, **changes,
    },
  )  # fmt: skip
  model = models.build(family, config, LM[family])
  draw = jax.jit(lambda key: model.init(key, models.dummy_ids(model))["params"], compiler_options=QUICK)
  params = nn.meta.unbox(draw(jax.random.key(0)))
  random = np.random.default_rng(0)
  inputs = {"input_ids": random.integers(3, 31, (ROWS, WRITTEN))}
  if family in DECODERS:
    # Padding has the first position, too.
    inputs |= {"attention_mask": REAL.astype(int), "position_ids": np.maximum(REAL.cumsum(1) - 1, 0)}
  else:
    mask = np.arange(READ) < np.array([7, 4, 1])[:, None]
    inputs = {"input_ids": random.integers(3, 31, (ROWS, READ)), "attention_mask": mask.astype(int),
              "decoder_input_ids": inputs["input_ids"]}  # fmt: skip
  return model, config, params, inputs


def applied(model, **options):
  """The model, compiled."""
  return jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs, **options), compiler_options=QUICK)


def in_parts(model, config, params, inputs, parts=PARTS, dtype=None, beams=1):
  """Logits of every token, read in parts."""
  cache, start, logits = new_cache(config.decoder_config, ROWS * beams, ROOM, dtype), 0, []
  writes = config.decoder is not None
  fixed = {}
  if writes:
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    encode = jax.jit(functools.partial(model.apply, method="encode"), compiler_options=QUICK)
    fixed = {"encoder_outputs": encode({"params": params}, **read), "attention_mask": inputs["attention_mask"]}
  steps = [name for name in inputs if not writes or name.startswith("decoder")]
  call = applied(model)
  for size in parts:
    part = {name: inputs[name][:, start : start + size] for name in steps}
    out = call(params, {**part, **fixed, "cache": cache})
    cache, start = out.cache, start + size
    logits.append(out.logits)
  assert int(cache.index) == start and cache.real.shape == (ROWS * beams, ROOM)
  return np.concatenate(logits, axis=1)


DAILY = {("llama", False), ("t5", True)}


@pytest.mark.parametrize(
  "family,scan",
  [
    pytest.param(family, scan, marks=[] if (family, scan) in DAILY else pytest.mark.slow)
    for family in DECODERS + ENCODER_DECODERS
    for scan in (True, False)
  ],
)
def test_a_text_in_parts(family, scan):
  with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    model, config, params, inputs = case(family, scan)
    whole = np.asarray(applied(model)(params, inputs).logits)
    parts = in_parts(model, config, params, inputs)
  real = REAL if family in DECODERS else np.ones((ROWS, WRITTEN), bool)
  assert whole.dtype == np.float64 and np.abs(whole).max() > 0.5
  assert_close(parts[real], whole[real], 1e-9)


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=[] if name == "bart" else pytest.mark.slow) for name in ENCODER_DECODERS]
)
def test_beams_share_what_the_encoder_made(family):
  beams = 2
  with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    model, config, params, inputs = case(family, scan=True)
    written = np.random.default_rng(1).integers(3, 31, (ROWS * beams, 4))
    shared = in_parts(model, config, params, {**inputs, "decoder_input_ids": written}, parts=(2, 1, 1), beams=beams)
    each = {name: np.repeat(inputs[name], beams, axis=0) for name in ("input_ids", "attention_mask")}
    alone = applied(model, output_attentions=True)(params, {**each, "decoder_input_ids": written})
    assert_close(shared, np.asarray(alone.logits), 1e-9)
    # Probabilities come back a row for each beam.
    encode = jax.jit(functools.partial(model.apply, method="encode"), compiler_options=QUICK)
    encoded = encode({"params": params}, inputs["input_ids"], inputs["attention_mask"])
    out = applied(model, output_attentions=True)(params, {
      "encoder_outputs": encoded, "attention_mask": inputs["attention_mask"], "decoder_input_ids": written,
      "cache": new_cache(config.decoder_config, ROWS * beams, 4),
    })  # fmt: skip
    assert len(alone.cross_attentions) == config.decoder.num_layers
    for got, expected in zip(out.cross_attentions, alone.cross_attentions, strict=True):
      assert_close(np.asarray(got), np.asarray(expected), 1e-9)


def test_a_cache_in_16_bits_is_close():
  with jax.enable_x64(True):
    model, config, params, inputs = case("llama", scan=False)
    whole = np.asarray(applied(model)(params, inputs).logits)
    narrow = in_parts(model, config, params, inputs, dtype="bfloat16")
  off = np.abs(narrow - whole)[REAL]
  assert 1e-4 < off.max() < 0.05 * np.abs(whole).max()


@pytest.mark.parametrize("scan", [True, False])
def test_what_a_cache_takes(scan):
  config = dataclasses.replace(models.sized("llama", "tiny", scan_layers=scan), num_kv_heads=1)
  cache = jax.eval_shape(functools.partial(new_cache, config, 5, 11, "bfloat16"))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache.layers))
  assert size == cache_bytes(config, 5, 11, "bfloat16") == 2 * 2 * 5 * 11 * 1 * 64 * 2
  assert cache.length == 11


def test_dynamic_scaling_beyond_the_original_length_keeps_old_keys_as_transformers_does():
  rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
  pair = make_pair("llama", "causal_lm", dtype="float32", run=dict(scan_layers=False), rope_parameters=rope,
                   max_position_embeddings=6)  # fmt: skip
  assert pair.config.positions.scaling == DynamicScaling(factor=2.0, original_length=6)
  ids = np.random.default_rng(0).integers(3, 101, (2, 12))
  theirs, kept, start = [], None, 0
  with torch.no_grad():
    for size in (4, 4, 1, 1, 1, 1):
      out = pair.theirs(torch.from_numpy(ids[:, start : start + size]), past_key_values=kept, use_cache=True)
      kept, start = out.past_key_values, start + size
      theirs.append(out.logits.numpy())
  call, cache, ours, start = applied(pair.model), new_cache(pair.config, 2, 12), [], 0
  for size in (4, 4, 1, 1, 1, 1):
    out = call(pair.params, {"input_ids": ids[:, start : start + size], "cache": cache})
    cache, start = out.cache, start + size
    ours.append(np.asarray(out.logits))
  theirs, ours = np.concatenate(theirs, 1), np.concatenate(ours, 1)
  assert_close(ours, theirs)
  whole = np.asarray(call(pair.params, {"input_ids": ids}).logits)
  # What was read within the original length is turned by another base than when all is read at once.
  assert np.abs(whole - ours).max() > 1e-2


def test_a_decoder_without_its_text_is_one_sentence():
  model = models.build("t5", models.sized("t5", "tiny"))
  ids = jax.ShapeDtypeStruct((2, 5), "int32")
  with pytest.raises(UserError, match="the model wants decoder_input_ids.*encodings.shift_right"):
    jax.eval_shape(model.apply, {"params": models.abstract_params(model)}, ids)


@pytest.mark.parametrize("pad,expected", [(0, [2, 3, 0]), (None, [3, 3, 3])])
def test_the_last_token_is_the_last_that_is_no_padding(pad, expected):
  from fsb_jax.models.decoder import last_tokens

  ids = jnp.array([[5, 0, 6, 0], [0, 0, 0, 7], [0, 0, 0, 0]])
  assert last_tokens(ids, pad).tolist() == expected


def test_a_classifier_reads_at_the_last_end_token():
  pair = make_pair("bart", "sequence_classification", dtype="float32", run=dict(scan_layers=False))
  model, config, params = pair.model, pair.config, pair.params
  assert config.decoder.end_token_id == 2
  several = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, end_token_id=None))
  with pytest.raises(UserError, match="config.json names no single eos_token_id"):
    models.abstract_params(models.build("bart", several, "sequence_classification", 3))
  call = applied(model)
  ids = np.array([[5, 2, 6, 2, 1, 1]])
  same = ids.copy()
  same[0, 4:] = 9  # what comes later is not read by the decoder at the end token
  mask = np.array([[1, 1, 1, 1, 0, 0]])
  logits, again = (call(params, {"input_ids": x, "attention_mask": mask}).logits for x in (ids, same))
  np.testing.assert_allclose(logits, again, atol=1e-6)
  ids[0, 3] = 7
  assert np.abs(call(params, {"input_ids": ids, "attention_mask": mask}).logits - logits).max() > 1e-4
