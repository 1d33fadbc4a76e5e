"""Folders of the original code against what it computed, loss and gradients too: families that transformers lacks."""

import jax
import numpy as np
import pytest
from convert_torch import load_hub_folder, save_hub_folder
from test_goldens import ALL
from tiny_hub import ORIGINALS, assert_close, assert_recorded_gradients, tensors_of
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.training.losses import OBJECTIVES

# Every day each family's every third folder.
FOLDERS = [
  pytest.param(family, folder, id=folder.name, marks=[] if place % 5 == 0 else pytest.mark.slow)
  for family, name in ORIGINALS.items()
  for place, folder in enumerate(sorted(ALL.glob(f"{name}_*")))
]
# Copies of what is tied are in the original's files, not in ours.
TIED = {f"{head}.decoder.{kind}" for head in ("cls.predictions", "lm_head") for kind in ("weight", "bias")}
# Where the original's name of an output is not ours. Its list of layers begins with the first one's output.
NAMES = {"pooled": "pooler_output", "last_hidden": "last_hidden_state", "prediction_scores": "prediction_logits",
         "seq_relationship_score": "seq_relationship_logits"}  # fmt: skip
# Labels that the original's heads leave out where ours do not.
IGNORED_LABELS = {("zen1", "token_classification"): 0, ("zen2", "token_classification"): 0}
# Nothing reads it, and we do not keep it.
NOT_KEPT = {"erlangshen_longformer": "embeddings.position_embeddings.weight"}


def arrays_of(folder):
  """What the original was given, and what it computed."""
  return (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))


def field_and_layer(name):
  field, _, layer = name.partition(".")
  if field == "encoded_layers":
    return "hidden_states", int(layer) + 1
  return NAMES.get(field, field), int(layer) if layer.isdigit() else None


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
    field, layer = field_and_layer(name)
    value = getattr(outputs, field, None)
    if value is not None:
      if layer is not None:
        # Longformer keeps what it appends to make whole windows.
        value, reference = value[layer], reference[:, : given["input_ids"].shape[-1]]
      assert_close(np.asarray(value), reference)
      compared.add(field)
  if "loss" in expected:
    assert_close(np.asarray(loss), expected["loss"])
    assert_recorded_gradients(hub, gradients, expected)
  return compared


def check_export(hub, folder, target, left_out, **how):
  """Writes the model; its tensors are the folder's but for `left_out`, and are read again with `how`."""
  save_hub_folder(
    target, hub.params, family=hub.family, config=hub.config, head=hub.head, num_labels=hub.num_labels,
    label_names=hub.label_names, hf_config=hub.hf_config,
  )
  written, original = tensors_of(target), tensors_of(folder)
  assert {name for name in original if name not in written} <= left_out
  for name, array in written.items():
    assert (array.dtype, array.shape) == (original[name].dtype, original[name].shape)
    reference = 0 * original[name] if name.endswith(NOT_KEPT.get(hub.family, "-")) else original[name]
    np.testing.assert_allclose(array, reference, rtol=1e-6, err_msg=name)
  again = load_hub_folder(target, **how)
  assert (again.config, again.family, again.head, again.num_labels) == (
    hub.config, hub.family, hub.head, hub.num_labels
  )


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize("family,folder", FOLDERS)
def test_outputs_loss_gradients_and_export(family, folder, tmp_path):
  hub = load_hub_folder(folder)
  assert (hub.family, hub.newly_initialised) == (family, [])
  # Some of the original's heads have a pooler that they do not use.
  assert all(name.startswith("bert.pooler.dense.") for name in hub.unused)
  given, expected = arrays_of(folder)
  if (family, hub.head) in IGNORED_LABELS:
    given["labels"] = np.where(given["labels"] == IGNORED_LABELS[family, hub.head], -100, given["labels"])
  compared = check(hub, OBJECTIVES.get(hub.head), given, expected)
  assert compared & {"last_hidden_state", "pooler_output", "logits", "prediction_logits", "start_logits"}
  check_export(hub, folder, tmp_path / "again", {*TIED, *hub.unused})
