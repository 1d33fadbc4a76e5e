"""Families that transformers lacks: folders of the original code against what it computed, loss and gradients too."""

from pathlib import Path

import jax
import numpy as np
import pytest
from convert_torch import load_hub_folder, save_hub_folder
from test_goldens import ALL
from tiny_hub import ORIGINALS, assert_close, assert_recorded_gradients, tensors_of

from fsb_jax import models
from fsb_jax.training.losses import OBJECTIVES

FOLDERS = [(family, folder) for family, name in ORIGINALS.items() for folder in sorted(ALL.glob(f"{name}_*"))]
pytestmark = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")


@pytest.mark.parametrize("family,folder", FOLDERS, ids=lambda x: x.name if isinstance(x, Path) else x)
def test_outputs_loss_gradients_and_export(family, folder, tmp_path):
  hub = load_hub_folder(folder)
  assert (hub.family, hub.newly_initialised, hub.unused) == (family, [], [])
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  given, expected = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
  inputs = {name: x for name, x in given.items() if name in models.input_names(model)}
  compared = set()

  def loss_and_outputs(params):
    outputs = model.apply({"params": params}, **inputs, output_hidden_states=True)
    return OBJECTIVES[hub.head](outputs, given) if "loss" in expected else 0.0, outputs

  (loss, outputs), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(hub.params)
  for name, reference in expected.items():
    field, _, layer = name.partition(".")
    if getattr(outputs, field, None) is not None:
      if layer:
        # The original keeps what it appends to make whole windows.
        reference = reference[:, : given["input_ids"].shape[-1]]
      assert_close(np.asarray(getattr(outputs, field)[int(layer)] if layer else getattr(outputs, field)), reference)
      compared.add(field)
    elif field == "last_hidden":
      assert_close(np.asarray(outputs.last_hidden_state), reference)
      compared.add("last_hidden_state")
  assert compared & {"last_hidden_state", "logits", "prediction_logits", "start_logits"}

  if "loss" in expected:
    assert_close(np.asarray(loss), expected["loss"])
    assert_recorded_gradients(hub, gradients, expected)

  save_hub_folder(
    tmp_path / "again", hub.params, family=family, config=hub.config, head=hub.head, num_labels=hub.num_labels,
    label_names=hub.label_names, hf_config=hub.hf_config,
  )
  written, original = tensors_of(tmp_path / "again"), tensors_of(folder)
  # The original's files hold copies of what is tied, ours do not.
  copies = {f"{head}.decoder.{kind}" for head in ("cls.predictions", "lm_head") for kind in ("weight", "bias")}
  assert {name for name in original if name not in written} <= copies
  for name, array in written.items():
    if family == "erlangshen_longformer" and name.endswith("position_embeddings.weight"):
      # Nothing reads it, and we do not keep it.
      assert array.shape == original[name].shape and not array.any()
      continue
    assert array.dtype == original[name].dtype
    np.testing.assert_allclose(array, original[name], rtol=1e-6, err_msg=name)
  again = load_hub_folder(tmp_path / "again")
  assert again.config == hub.config and again.family == family
