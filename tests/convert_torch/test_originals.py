"""Families that transformers lacks: folders of the original code against what it computed, loss and gradients too."""

import jax
import numpy as np
import pytest
from convert_torch import load_hub_folder, save_hub_folder
from test_goldens import ALL
from tiny_hub import ORIGINALS, assert_close, assert_recorded_gradients, tensors_of

from fsb_jax import models
from fsb_jax.training.losses import OBJECTIVES

# Every day each family's every third folder.
FOLDERS = [
  pytest.param(family, folder, id=folder.name, marks=[] if place % 3 == 0 else pytest.mark.slow)
  for family, name in ORIGINALS.items()
  for place, folder in enumerate(sorted(ALL.glob(f"{name}_*")))
]
pytestmark = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")


# Where the original's name of an output is not ours. Its list of layers begins with the first one's output.
NAMES = {"pooled": "pooler_output", "last_hidden": "last_hidden_state", "prediction_scores": "prediction_logits",
         "seq_relationship_score": "seq_relationship_logits"}  # fmt: skip
# Labels that the original's heads leave out where ours do not.
IGNORED_LABELS = {("zen1", "token_classification"): 0, ("zen2", "token_classification"): 0}


def field_and_layer(name):
  field, _, layer = name.partition(".")
  if field == "encoded_layers":
    return "hidden_states", int(layer) + 1
  return NAMES.get(field, field), int(layer) if layer.isdigit() else None


@pytest.mark.parametrize("family,folder", FOLDERS)
def test_outputs_loss_gradients_and_export(family, folder, tmp_path):
  hub = load_hub_folder(folder)
  assert (hub.family, hub.newly_initialised) == (family, [])
  # Some of the original's heads have a pooler that they do not use.
  assert all(name.startswith("bert.pooler.dense.") for name in hub.unused)
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  given, expected = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
  if (family, hub.head) in IGNORED_LABELS:
    given["labels"] = np.where(given["labels"] == IGNORED_LABELS[family, hub.head], -100, given["labels"])
  inputs = {name: x for name, x in given.items() if name in models.input_names(model)}
  compared = set()

  def loss_and_outputs(params):
    outputs = model.apply({"params": params}, **inputs, output_hidden_states=True)
    return OBJECTIVES[hub.head](outputs, given) if "loss" in expected else 0.0, outputs

  (loss, outputs), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(hub.params)
  for name, reference in expected.items():
    field, layer = field_and_layer(name)
    value = getattr(outputs, field, None)
    if value is not None:
      if layer is not None:
        # Longformer keeps what it appends to make whole windows.
        value, reference = value[layer], reference[:, : given["input_ids"].shape[-1]]
      assert_close(np.asarray(value), reference)
      compared.add(field)
  assert compared & {"last_hidden_state", "pooler_output", "logits", "prediction_logits", "start_logits"}

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
  assert {name for name in original if name not in written} <= {*copies, *hub.unused}
  for name, array in written.items():
    if family == "erlangshen_longformer" and name.endswith("position_embeddings.weight"):
      # Nothing reads it, and we do not keep it.
      assert array.shape == original[name].shape and not array.any()
      continue
    assert array.dtype == original[name].dtype
    np.testing.assert_allclose(array, original[name], rtol=1e-6, err_msg=name)
  again = load_hub_folder(tmp_path / "again")
  assert again.config == hub.config and again.family == family
