"""The original's LLaMA layout against what the original computed, and against its own converters."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from convert_torch import cli, load_hub_folder
from safetensors.numpy import load_file
from test_goldens import ALL, HERE
from test_originals import arrays_of
from tiny_hub import assert_close, assert_recorded_gradients, hub_folder, tensors_of
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES

GOLDEN = HERE / "llama_fs"


@pytest.mark.parametrize("scan_layers", [True, False])
def test_outputs_loss_and_gradients(scan_layers):
  hub = load_hub_folder(GOLDEN, run=models.Run(scan_layers=scan_layers))
  assert (hub.family, hub.head, hub.newly_initialised, hub.unused) == ("fengshen_llama", "causal_lm", [], [])
  given, expected = arrays_of(GOLDEN)
  model = models.build(hub.family, hub.config.with_run(dtype="float64", param_dtype="float64"), hub.head)
  real = given["attention_mask"].astype(bool)

  def loss(params, mask):
    # Its flash path does not see the padding.
    out = model.apply({"params": params}, given["input_ids"], mask, output_hidden_states=True)
    return OBJECTIVES["causal_lm"](out, given), out

  with jax.enable_x64(True):
    function = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    params = jax.tree.map(np.float64, hub.params)
    (value, out), gradients = function(params, None)
    _, masked = loss(params, given["attention_mask"])
  assert_close(np.asarray(out.logits), expected["logits_flash_path"])
  assert_close(np.asarray(out.hidden_states[0]).swapaxes(0, 1), expected["hidden_states_flash_path.0"])
  assert_close(np.asarray(value), expected["loss"])
  assert_recorded_gradients(hub, gradients, expected)
  assert_close(np.asarray(masked.logits)[real], expected["logits_cache_path"][real])


def convert(source, target, **options):
  """`source`, through a folder of ours, to `target`."""
  cli.import_checkpoint(source, target.with_name(f"{target.name}-ours"))
  cli.export_checkpoint(target.with_name(f"{target.name}-ours"), target, **options)
  return tensors_of(target)


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
def test_from_the_hubs_layout_and_back_as_the_originals_converters_do(tmp_path):
  recorded = ALL / "llama_convert_hf"
  (tmp_path / "hf").mkdir()
  shutil.copy(recorded / "hf_before.safetensors", tmp_path / "hf" / "model.safetensors")
  shutil.copy(recorded / "config_hf.json", tmp_path / "hf" / "config.json")
  theirs, ours = tensors_of(GOLDEN), convert(tmp_path / "hf", tmp_path / "fs", family="fengshen_llama", vocab_size=128)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    # The original drew the rows that pad the vocabulary; ours are the mean of the others.
    rows = 125 if "embed" in name else len(array)
    assert array.shape == theirs[name].shape and array.dtype == theirs[name].dtype
    np.testing.assert_array_equal(array[:rows], theirs[name][:rows], err_msg=name)
    np.testing.assert_allclose(array[rows:], np.broadcast_to(array[:rows].mean(0), array[rows:].shape), rtol=1e-5)
  config, original = (json.loads((x / "config.json").read_text()) for x in (tmp_path / "fs", GOLDEN))
  assert {name: value for name, value in config.items() if original.get(name, value) != value} == {}

  before = load_file(recorded / "hf_before.safetensors")
  back = convert(tmp_path / "fs", tmp_path / "hf2", family="llama")
  assert back.keys() == {name for name in before if not name.endswith("inv_freq")}
  for name, array in back.items():
    np.testing.assert_array_equal(array[: len(before[name])], before[name], err_msg=name)
  assert back["lm_head.weight"].shape == (128, 32)
  assert load_hub_folder(tmp_path / "hf2").config == dataclasses.replace(
    load_hub_folder(tmp_path / "hf").config, vocab_size=128
  )


def test_written_as_it_was_read(tmp_path):
  written, original = convert(GOLDEN, tmp_path / "again"), tensors_of(GOLDEN)
  assert written.keys() == original.keys()
  for name in original:
    np.testing.assert_array_equal(written[name], original[name], err_msg=name)


def test_what_the_original_cannot_be_is_refused(tmp_path):
  hub_folder(tmp_path / "narrow", "llama", "causal_lm")  # 48 is below 8/3 of 32
  with pytest.raises(UserError, match="intermediate_size 48 is below 8/3 of hidden_size 32"):
    convert(tmp_path / "narrow", tmp_path / "a", family="fengshen_llama")
  hub_folder(tmp_path / "grouped", "llama", "causal_lm", intermediate_size=96, num_key_value_heads=2)
  with pytest.raises(UserError, match="cannot be written as fengshen_llama, which has no other num_kv_heads"):
    convert(tmp_path / "grouped", tmp_path / "b", family="fengshen_llama")
  with pytest.raises(UserError, match="cannot be written as bert; its layouts are fengshen_llama, llama"):
    convert(tmp_path / "grouped", tmp_path / "c", family="bert")


@pytest.mark.parametrize("field,value", [("pos_emb", "alibi"), ("norm", "layernorm"), ("gpt_j_residual", True)])
def test_other_forms_are_refused(field, value):
  hf = json.loads((GOLDEN / "config.json").read_text())
  with pytest.raises(UserError, match=f"config.json says {field}="):
    models.family("fengshen_llama").config_from_hf({**hf, field: value})


def test_the_feed_forward_width_is_the_rules_not_the_configs():
  hf = json.loads((GOLDEN / "config.json").read_text())
  wide = models.family("fengshen_llama").config_from_hf({**hf, "hidden_size": 5120, "intermediate_size": 1})
  assert wide.mlp_dim == 13824 == models.sized("fengshen_llama", "ziya_13b").mlp_dim
