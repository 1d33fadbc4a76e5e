"""CLIP's folders: in, the same numbers, out again, verified; and what was recorded from the original's."""

import json

import jax
import numpy as np
import pytest
from convert_torch import io, load_hub_folder
from convert_torch.verify import verify
from test_goldens import ALL, HERE
from test_hub import UNROLLED, assert_transformers_takes, save_as_hub
from tiny_clip import as_torch, batch_of, by_name, ours, torch_clip
from tiny_hub import QUICK, assert_close, assert_recorded_gradients, assert_same_tree, tensors_of

from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES

CLASSES = {
  "CLIPModel": ("clip", "clip"),
  "CLIPTextModel": ("clip_text", "base"),
  "CLIPTextModelWithProjection": ("clip_text", "projection"),
  "CLIPVisionModel": ("clip_vision", "base"),
  "CLIPVisionModelWithProjection": ("clip_vision", "projection"),
}


@pytest.mark.parametrize("architecture", CLASSES)
def test_round_trip(tmp_path, architecture):
  model = torch_clip(architecture)
  model.save_pretrained(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub")
  assert (hub.family, hub.head, hub.newly_initialised, hub.unused) == (*CLASSES[architecture], [], [])
  unrolled = load_hub_folder(tmp_path / "hub", run=UNROLLED)
  assert_same_tree(hub.params, checkpoints.to_layout(unrolled.params, scan_layers=True))
  save_as_hub(tmp_path / "again", unrolled)
  assert_transformers_takes(tmp_path / "again", tmp_path / "hub", model)
  before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hub", "again"))
  assert after == {**before, "dtype": "float32"}


def test_the_names_in_the_classes_of_version_5_are_read_too(tmp_path):
  model = torch_clip("CLIPTextModel")
  model.save_pretrained(tmp_path / "hub")
  tensors = {name.removeprefix("text_model."): x for name, x in tensors_of(tmp_path / "hub").items()}
  assert tensors.keys() == model.state_dict().keys()
  io.write_folder(tmp_path / "bare", tensors.items(), json.loads((tmp_path / "hub" / "config.json").read_text()), None, 10**9)
  assert_same_tree(load_hub_folder(tmp_path / "bare").params, load_hub_folder(tmp_path / "hub").params)


def test_a_padded_vocabulary_computes_the_same(tmp_path):
  model = torch_clip("CLIPModel")
  model.save_pretrained(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub", run=models.Run(vocab_multiple=16))
  assert hub.params["text"]["token_embed"]["embedding"].shape == (112, 32)
  batch = {name: x.astype(np.float32) if x.ndim == 4 else x for name, x in batch_of(models.build("clip", hub.config)).items()}
  got = dict(by_name(ours("clip", "clip", hub.config, hub.params, batch)))
  for name, reference in by_name(model(**as_torch(batch))):
    if "pooler" not in name:
      assert_close(got[name], reference)
  assert_transformers_takes(save_as_hub(tmp_path / "again", hub), tmp_path / "hub", model)


@pytest.mark.parametrize("architecture", ["CLIPModel", "CLIPVisionModelWithProjection"])
def test_verifying(tmp_path, architecture):
  torch_clip(architecture).save_pretrained(tmp_path)
  hub = load_hub_folder(tmp_path)
  certificate = verify(tmp_path, hub)
  assert certificate["passed"], certificate["results"]
  compared = {result["output"] for result in certificate["results"]}
  both = {"logits_per_image", "text_embeds", "text_model_output.hidden_states", "vision_model_output.hidden_states"}
  assert compared >= (both if architecture == "CLIPModel" else {"image_embeds", "hidden_states"})
  tower = hub.params["vision"] if architecture == "CLIPModel" else hub.params
  tower["class_token"][3] += 1e-2
  assert not verify(tmp_path, hub)["passed"]


def check_golden(folder, scan_layers=True):
  hub = load_hub_folder(folder, run=models.Run(scan_layers=scan_layers))
  assert hub.newly_initialised == [] and hub.unused == [] and hub.head == "clip"
  batch, expected = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))
  batch["pixel_values"] = np.moveaxis(batch["pixel_values"], 1, -1)
  got = dict(by_name(ours(hub.family, "base", hub.config, hub.params, batch, output_hidden_states=True)))
  names = {
    "text_hidden": "text_model_output.hidden_states", "vision_hidden": "vision_model_output.hidden_states",
    "text_last": "text_model_output.last_hidden_state", "vision_last": "vision_model_output.last_hidden_state",
    "text_pooled": "text_model_output.pooler_output", "vision_pooled": "vision_model_output.pooler_output",
  }  # fmt: skip
  compared = set()
  for name, reference in expected.items():
    field, _, layer = name.partition(".")
    if names.get(field, field) in got:
      value = got[names.get(field, field)]
      assert_close(value[int(layer)] if layer else value, reference)
      compared.add(field)
  assert compared >= {"logits_per_image", "text_embeds", "image_embeds", "text_hidden", "vision_hidden"}
  if "text_features" in expected:
    texts = {name: x for name, x in batch.items() if name != "pixel_values"}
    features = ours(hub.family, "clip", hub.config, hub.params, texts, method="get_text_features")
    assert_close(np.asarray(features), expected["text_features"])
    images = {"pixel_values": batch["pixel_values"]}
    features = ours(hub.family, "clip", hub.config, hub.params, images, method="get_image_features")
    assert_close(np.asarray(features), expected["image_features"])
  model = models.build(hub.family, hub.config)

  def loss_of(params):
    return OBJECTIVES["clip"](model.apply({"params": params}, **batch), batch)

  loss, gradients = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)(hub.params)
  assert_close(np.asarray(loss), expected["loss"])
  assert_recorded_gradients(hub, gradients, expected)


def test_taiyi_is_what_the_original_computed():
  check_golden(HERE / "taiyi_clip", scan_layers=False)


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize("name", ["hf_clip", "taiyi_clip"])
def test_goldens(name):
  check_golden(ALL / name)


def test_taiyi_goes_out_as_it_came(tmp_path):
  folder = HERE / "taiyi_clip"
  hub = load_hub_folder(folder, run=models.Run(vocab_multiple=16))
  save_as_hub(tmp_path / "hub", hub)
  written, expected = tensors_of(tmp_path / "hub"), tensors_of(folder)
  assert written.keys() == {name for name in expected if not name.endswith("position_ids")}
  for name, tensor in written.items():
    np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
  said = json.loads((tmp_path / "hub" / "config.json").read_text())
  assert (said["architectures"], said["text_config"]["model_type"]) == (["TaiyiCLIPModel"], "bert")
  assert_same_tree(load_hub_folder(tmp_path / "hub").params, load_hub_folder(folder).params)
  with pytest.raises(UserError, match="transformers has no taiyi_clip model with head clip to verify against"):
    verify(folder)


def test_a_folder_that_lacks_a_tower_says_so(tmp_path):
  torch_clip("CLIPModel").save_pretrained(tmp_path / "hub")
  tensors = {name: x for name, x in tensors_of(tmp_path / "hub").items() if "vision_model.encoder.layers.1." not in name}
  io.write_folder(tmp_path / "cut", tensors.items(), json.loads((tmp_path / "hub" / "config.json").read_text()), None, 10**9)
  with pytest.raises(UserError, match=r"- vision_model.encoder.layers.1.mlp.fc1.weight \[56, 40\] for vision/encoder"):
    load_hub_folder(tmp_path / "cut")
