"""Folders of the original code against what it computed, loss and gradients too: families that transformers lacks."""

from pathlib import Path

import jax
import numpy as np
import pytest
from convert_torch import engine, load_hub_folder, save_hub_folder
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from test_goldens import ALL
from tiny_hub import ORIGINALS, assert_close, tensors_of
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.training.losses import OBJECTIVES

FOLDERS = [(family, folder) for family, name in ORIGINALS.items() for folder in sorted(ALL.glob(f"{name}_*"))]
# Copies of what is tied are in the original's files, not in ours.
TIED = {f"cls.predictions.decoder.{kind}" for kind in ("weight", "bias")}


def arrays_of(folder):
  """What the original was given, and what it computed."""
  return (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))


def check(hub, objective, given, expected):
  """Compares outputs, loss and the recorded gradients; returns the names of the fields that were compared."""
  # In float64, so that the only rounding is the original's: some gradients are zero but for that.
  config = hub.config.with_run(dtype="float64", param_dtype="float64")
  model = models.build(hub.family, config, hub.head, hub.num_labels)
  inputs = {name: x for name, x in given.items() if name in models.input_names(model)}
  compared = set()

  def loss_and_outputs(params):
    outputs = model.apply({"params": params}, **inputs, output_hidden_states=True)
    return objective(outputs, given) if "loss" in expected else 0.0, outputs

  with jax.enable_x64(True):
    function = jax.jit(jax.value_and_grad(loss_and_outputs, has_aux=True), compiler_options=QUICK)
    (loss, outputs), gradients = function(jax.tree.map(np.float64, hub.params))
  for name, reference in expected.items():
    field, _, layer = name.partition(".")
    if getattr(outputs, field, None) is not None:
      assert_close(np.asarray(getattr(outputs, field)[int(layer)] if layer else getattr(outputs, field)), reference)
      compared.add(field)
  if "loss" in expected:
    assert_close(np.asarray(loss), expected["loss"])
    check_gradients(hub, gradients, expected)
  return compared


def check_gradients(hub, gradients, expected):
  shapes = param_shapes(models.build(hub.family, hub.config, hub.head, hub.num_labels))
  flat = {path: np.asarray(x) for path, x in models.flatten(gradients).items()}
  theirs = {}
  for slot in engine.slots(table(hub.family), hub.config, shapes, prefixed=hub.head != "base"):
    array = flat[slot.path] if slot.index is None else flat[slot.path][slot.index]
    theirs[slot.theirs] = slot.row.op.save(array, hub.config)
  norm = expected["grad_global_norm"]
  np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(x)) for x in flat.values())), norm, rtol=1e-4)
  recorded = {name.removeprefix("grad/"): x for name, x in expected.items() if name.startswith("grad/")}
  assert recorded
  for name, reference in recorded.items():
    np.testing.assert_allclose(theirs[name], reference, rtol=1e-3, atol=1e-6 * norm, err_msg=name)


def check_export(hub, folder, target, left_out, **how):
  """Writes the model; its tensors are the folder's but for `left_out`, and are read again with `how`."""
  save_hub_folder(
    target, hub.params, family=hub.family, config=hub.config, head=hub.head, num_labels=hub.num_labels,
    label_names=hub.label_names, hf_config=hub.hf_config,
  )
  written, original = tensors_of(target), tensors_of(folder)
  assert {name for name in original if name not in written} <= left_out
  for name, array in written.items():
    assert array.dtype == original[name].dtype
    np.testing.assert_allclose(array, original[name], rtol=1e-6, err_msg=name)
  again = load_hub_folder(target, **how)
  assert (again.config, again.family, again.head, again.num_labels) == (
    hub.config, hub.family, hub.head, hub.num_labels
  )


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize("family,folder", FOLDERS, ids=lambda x: x.name if isinstance(x, Path) else x)
def test_outputs_loss_gradients_and_export(family, folder, tmp_path):
  hub = load_hub_folder(folder)
  assert (hub.family, hub.newly_initialised, hub.unused) == (family, [], [])
  compared = check(hub, OBJECTIVES.get(hub.head), *arrays_of(folder))
  assert compared & {"last_hidden_state", "logits", "prediction_logits", "start_logits"}
  check_export(hub, folder, tmp_path / "again", TIED)
