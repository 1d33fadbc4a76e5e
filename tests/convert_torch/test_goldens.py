"""Folders that older versions of transformers wrote, against what PyTorch computed from them then."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from convert_torch import load_hub_folder
from tiny_hub import (
  DECODERS,
  ENCODER_DECODERS,
  FAMILIES,
  QUICK,
  assert_close,
  assert_recorded_gradients,
  noisy_pegasus,
  our_outputs,
)

from fsb_jax import models
from fsb_jax.encodings import shift_right
from fsb_jax.training.losses import OBJECTIVES

HERE = Path(__file__).resolve().parents[1] / "goldens"
ALL = Path(os.environ.get("FSB_GOLDENS_DIR", HERE.parents[2] / "shared" / "goldens"))
NAMES = {family: [*ALL.glob(f"hf_{family}"), *sorted(ALL.glob(f"hf_{family}_*"))] for family in FAMILIES}
# hf_bert_* are BERT's alone: the other families' names do not begin so.
# transformers 4.30 gave padding in DeBERTa an output of zero.
FILLS = {"deberta_v2": "zeroed"}
# Theirs is float32, and so is off by as much as is allowed itself.
PRECISE = {*DECODERS, *ENCODER_DECODERS}


def check(folder, scan_layers, tmp_path):
  family = models.family_of_hub_config(json.loads((folder / "config.json").read_text())).name
  dtype = "float64" if family in PRECISE else "float32"
  run = models.Run(scan_layers=scan_layers, dtype=dtype, param_dtype=dtype)
  with jax.enable_x64(dtype == "float64"):
    compare(folder, noisy_pegasus(folder, run, tmp_path) if family == "pegasus" else load_hub_folder(folder, run=run))


def compare(folder, hub):
  assert hub.newly_initialised == [] and hub.unused == []
  fill = FILLS.get(hub.family, hub.config.mask_fill)
  hub = dataclasses.replace(hub, config=dataclasses.replace(hub.config, mask_fill=fill))
  arrays, expected = dict(np.load(folder / "inputs.npz")), np.load(folder / "outputs.npz")
  if hub.head == "conditional_generation":
    start, pad = hub.config.decoder.start_token_id, hub.config.pad_token_id
    arrays["decoder_input_ids"] = shift_right(arrays["labels"], start, pad)
  names = models.input_names(models.build(hub.family, hub.config, hub.head, hub.num_labels))
  inputs = {name: arrays[name] for name in names if name in arrays}
  ours = our_outputs(hub, inputs)
  compared = 0
  for name in expected.files:
    field, _, layer = name.partition(".")
    if field in ours:
      assert_close(np.asarray(ours[field][int(layer)] if layer else ours[field]), expected[name])
      compared += 1
  assert compared > 0
  if "short5_logits" in expected:
    # Scaled positions may depend on how many there are.
    assert_close(our_outputs(hub, {"input_ids": arrays["input_ids"][:, :5]})["logits"], expected["short5_logits"])
  if "loss" in expected and hub.family in DECODERS + ENCODER_DECODERS:
    check_gradients(hub, inputs, arrays, expected)


def check_gradients(hub, inputs, batch, expected):
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)

  def loss_of(params):
    return OBJECTIVES[hub.head](model.apply({"params": params}, **inputs), batch)

  loss, gradients = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)(hub.params)
  assert_close(np.asarray(loss), expected["loss"])
  assert_recorded_gradients(hub, gradients, expected)


@pytest.mark.parametrize("scan_layers", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["hf_bert_mlm", "hf_megatron_bert_base", "hf_gpt2_seqcls", "hf_t5_relu"])
def test_goldens_kept_here(name, scan_layers, tmp_path):
  check(HERE / name, scan_layers, tmp_path)


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize(
  "folder",
  [
    # Every fourth one stands for all; `test_parity` sees what reads and writes.
    pytest.param(folder, id=folder.name, marks=pytest.mark.slow if family in ENCODER_DECODERS or place % 4 else [])
    for family, folders in NAMES.items()
    for place, folder in enumerate(folders)
  ],
)
def test_all_goldens(folder, tmp_path):
  check(folder, scan_layers=True, tmp_path=tmp_path)
