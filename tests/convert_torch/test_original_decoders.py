"""Folders of the original code's writers against what it computed: outputs, loss, gradients, and texts it wrote."""

import dataclasses

import jax
import numpy as np
import pytest
from convert_torch import load_hub_folder
from convert_torch.weights import table
from test_goldens import ALL
from test_originals import arrays_of, check, check_export
from tiny_hub import assert_close, tensors_of
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.models.cache import new_cache
from fsb_jax.training.losses import OBJECTIVES

pytestmark = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")


def shifted(labels, config):
  """Labels one place later, after the id that begins a text."""
  start = np.full_like(labels[:, :1], config.decoder.start_token_id)
  return np.concatenate([start, np.where(labels < 0, config.pad_token_id, labels)[:, :-1]], axis=1)


def load(name, **run):
  """A folder, what the original was given, and what it computed."""
  hub = load_hub_folder(ALL / name, run=models.Run(**run))
  given, expected = arrays_of(ALL / name)
  if hub.config.decoder is not None and "labels" in given:
    given.setdefault("decoder_input_ids", shifted(given["labels"], hub.config))
  return hub, given, expected


@pytest.mark.parametrize("name", ["deltalm"])
def test_outputs_loss_and_gradients(name):
  hub, given, expected = load(name)
  assert (hub.newly_initialised, hub.unused) == ([], [])
  compared = check(hub, OBJECTIVES["lm"], given, expected)
  assert compared >= {"logits", "encoder_hidden_states", "decoder_hidden_states"}


@pytest.mark.parametrize("name", ["deltalm"])
def test_exports_are_the_originals_tensors(name, tmp_path):
  hub, _, _ = load(name)
  check_export(hub, ALL / name, tmp_path / "again", {*table(hub.family).copies, "lm_head.weight"})
  original = tensors_of(ALL / name)
  for tensor, array in tensors_of(tmp_path / "again").items():
    np.testing.assert_array_equal(array, original[tensor], err_msg=tensor)


def decoding(hub, given, cache, *, bits=32):
  """Step by step with a cache: a function from ids `[batch, new]` to their logits."""
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  params = jax.tree.map(lambda x: x.astype(f"float{bits}"), hub.params)
  known = {}
  if hub.config.decoder is not None:
    mask = given["attention_mask"]
    encode = jax.jit(lambda ids: model.apply({"params": params}, ids, mask, method="encode"), compiler_options=QUICK)
    encoded = encode(given["input_ids"])
    known = {"encoder_outputs": encoded, "attention_mask": mask}

  def step(ids, cache):
    name = "input_ids" if hub.config.decoder is None else "decoder_input_ids"
    output = model.apply({"params": params}, **known, **{name: ids}, cache=cache)
    return output.logits, output.cache

  step = jax.jit(step, compiler_options=QUICK)

  def logits(ids):
    nonlocal cache
    result, cache = step(ids, cache)
    return np.asarray(result)

  return logits


@pytest.mark.parametrize("name", ["deltalm"])
def test_greedy_texts(name):
  hub, given, expected = load(name, scan_layers=False)
  written = [np.full((3, 1), hub.config.decoder.start_token_id)]
  logits = decoding(hub, given, new_cache(hub.config.decoder_config, 3, 20))
  highest = []
  for _ in range(20):
    scores = logits(written[-1])[:, -1]
    written.append(scores.argmax(-1)[:, None])
    highest.append(scores.max(-1))
  np.testing.assert_array_equal(np.concatenate(written, axis=1), expected["gen_greedy_sequences"])
  assert_close(np.stack(highest, axis=1), expected["gen_greedy_step_logits_max"])


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", ["deltalm"])
def test_with_a_cache_logits_are_the_same(name, scan_layers):
  with jax.enable_x64(True):
    hub, given, _ = load(name, scan_layers=scan_layers, dtype="float64", param_dtype="float64")
    model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
    apply = jax.jit(model.apply, compiler_options=QUICK)
    whole = apply({"params": hub.params}, **{x: given[x] for x in models.input_names(model) if x in given}).logits
    ids = given["decoder_input_ids"]
    logits = decoding(hub, given, new_cache(hub.config.decoder_config, len(ids), 12), bits=64)
    steps = [logits(ids[:, :3])] + [logits(ids[:, i : i + 1]) for i in range(3, ids.shape[1])]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=1e-9, atol=1e-9)


def test_what_deltalm_says_is_kept():
  family = models.family("deltalm")
  config = family.sizes["tiny"]
  assert config.final_norm is False and config.decoder_config.final_norm is False
  normed = dataclasses.replace(config, final_norm=True)
  hf = family.config_to_hf(normed)
  assert hf["encoder_normalize_before"] is True and family.config_from_hf(hf) == normed
  # The decoder has none either way.
  assert normed.decoder_config.final_norm is False
  for said in ("Deltalm", "deltalm"):
    assert models.family_of_hub_config({"model_type": said}) is family
