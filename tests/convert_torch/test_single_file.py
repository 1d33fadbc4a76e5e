"""Single files by the original's names, against what diffusers makes of them."""

import json

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_diffusers
import torch
import transformers
from convert_torch import (
  engine,
  load_diffusers_folder,
  load_single_file,
  original_config,
  original_text,
  save_single_file,
)
from convert_torch.diffusers_folder import AUTOENCODER, UNET
from convert_torch.io import WeightFiles
from diffusers.loaders import single_file_utils

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models import diffusion


@pytest.fixture(scope="module")
def taiyi(tmp_path_factory):
  """A tiny pipeline, and what diffusers has of it."""
  folder = tmp_path_factory.mktemp("taiyi")
  unet, vae = tiny_diffusers.unet("sd1", torch.float32), tiny_diffusers.vae(torch.float32)
  torch.manual_seed(0)
  bert = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=20, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=16,
      max_position_embeddings=16,
    )
  )  # fmt: skip
  for part, model in (("unet", unet), ("vae", vae), ("text_encoder", bert)):
    model.save_pretrained(folder / part)
  index = {
    "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "BertModel"],
  }  # fmt: skip
  (folder / "model_index.json").write_text(json.dumps(index))
  return folder, {"unet": unet, "vae": vae, "text_encoder": bert}


def assert_same(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def assert_same_tensors(converted, model):
  state = model.state_dict()
  assert set(converted) == set(state)
  for name, tensor in state.items():
    assert torch.equal(converted[name], tensor), name


def test_what_is_written_diffusers_reads_and_so_do_we(taiyi, tmp_path):
  folder, theirs = taiyi
  model = load_diffusers_folder(folder)
  file = tmp_path / "taiyi.safetensors"
  save_single_file(file, model)
  held = safetensors.torch.load_file(file)
  assert_same_tensors(single_file_utils.convert_ldm_unet_checkpoint(held, theirs["unet"].config), theirs["unet"])
  assert_same_tensors(single_file_utils.convert_ldm_vae_checkpoint(held, theirs["vae"].config), theirs["vae"])
  assert held["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
  prefix = "cond_stage_model.transformer."
  bert = {name.removeprefix(prefix): x for name, x in held.items() if name.startswith(prefix)}
  assert_same_tensors(bert, theirs["text_encoder"])
  # A .ckpt as trainers write it, with what is none of the model.
  held |= {"betas": torch.zeros(3), "model_ema.decay": torch.zeros(())}
  held["first_stage_model.loss.logvar"] = torch.zeros(())
  torch.save({"state_dict": held, "global_step": 7}, tmp_path / "taiyi.ckpt")
  for source in (file, tmp_path / "taiyi.ckpt"):
    again = load_single_file(source, config_from=folder, run=models.Run(scan_layers=False))
    unrolled = load_diffusers_folder(folder, run=models.Run(scan_layers=False))
    assert_same(again.unet_params, unrolled.unet_params)
    assert_same(again.autoencoder_params, unrolled.autoencoder_params)
    assert_same(again.text_encoders[0].params, unrolled.text_encoders[0].params)
    assert again.hf_configs["text_encoder"] == model.hf_configs["text_encoder"]
  # A BERT's heads are 64 wide; what no tensor says of UNet and autoencoder are the published values.
  text = load_single_file(file, parts=("text_encoder",))
  assert (text.text_encoders[0].family, text.text_encoders[0].config.num_heads) == ("bert", 1)
  assert_same(text.text_encoders[0].params, model.text_encoders[0].params)


def test_from_the_shell(taiyi, fsb):
  folder, _ = taiyi
  model = load_diffusers_folder(folder)
  status, out, _ = fsb("convert", "export", folder, "taiyi.safetensors")
  assert (status, out) == (0, "written to taiyi.safetensors\n")
  torch.save({"state_dict": safetensors.torch.load_file("taiyi.safetensors")}, "taiyi.ckpt")
  status, out, _ = fsb("convert", "import", "taiyi.ckpt", "again", "--config-from", folder)
  assert status == 0 and "written to again; to draw, it lacks tokenizer and scheduler" in out
  assert_same(load_diffusers_folder("again").unet_params, model.unet_params)
  for arguments, words in (
    (("import", folder / "unet", "new", "--config-from", folder), "--config-from is for a single file"),
    (("import", "none.ckpt", "new"), "none.ckpt is not a file"),
    (("export", folder, "new"), "is what diffusers reads already; name a single file"),
  ):
    status, _, error = fsb("convert", *arguments)
    assert status == 2 and words in error, error


@pytest.mark.parametrize("name", ["sd2", "sdxl", "inpainting"])
def test_other_unets_by_the_original_names(name, tmp_path):
  model = tiny_diffusers.randomised(
    diffusers.UNet2DConditionModel(**{**tiny_diffusers.UNETS[name], "layers_per_block": 1}), torch.float32
  )
  unet, params = tiny_diffusers.read(model, tmp_path / "unet", "float32")
  prefix = "model.diffusion_model."
  written = UNET.tensors(params, unet.config, "float32", layout="original", prefix=prefix)
  held = {key: torch.tensor(np.ascontiguousarray(x)) for key, x in written}
  assert_same_tensors(single_file_utils.convert_ldm_unet_checkpoint(held, model.config), model)


def original_shapes(component, config):
  """Name -> shape of the tensors of a published model."""
  slots = engine.slots(component.table(config, "original"), config, component.shapes(config), True)
  return {slot.theirs: slot.shape for slot in slots}


@pytest.mark.parametrize(
  "config",
  [
    *(pytest.param(config, marks=pytest.mark.slow if name == "stable_diffusion_2" else [])
      for name, config in diffusion.UNET_SIZES.items()),
    pytest.param(diffusion.UNetConfig(in_channels=9), marks=pytest.mark.slow),
  ],
)
def test_configs_follow_from_shapes(config):
  shapes = original_shapes(UNET, config)
  assert original_config.unet_config(shapes) == config
  vae = diffusion.AutoencoderConfig()
  shapes = original_shapes(AUTOENCODER, vae)
  assert original_config.autoencoder_config(shapes, xl=False) == vae
  assert original_config.autoencoder_config(shapes, xl=True).scaling_factor == 0.13025
  with pytest.raises(UserError, match="none of Stable Diffusion 1, 2 or XL; give config_from="):
    original_config.unet_config({"input_blocks.0.0.weight": (320, 4, 3, 3)})


def test_open_clip_names_are_those_that_diffusers_reads(tmp_path):
  config = transformers.CLIPTextConfig(
    vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=7, projection_dim=8,
  )  # fmt: skip
  torch.manual_seed(0)
  clip = transformers.CLIPTextModelWithProjection(config)
  state = {name: x for name, x in clip.state_dict().items() if "position_ids" not in name}
  renamed = original_text.to_open_clip((name, x.numpy()) for name, x in state.items())
  held = {f"prefix.{name}": torch.tensor(np.ascontiguousarray(x)) for name, x in renamed}
  assert held["prefix.transformer.resblocks.1.attn.in_proj_weight"].shape == (24, 8)
  read = single_file_utils.convert_open_clip_checkpoint(clip, held, prefix="prefix.")
  assert set(read) == set(state)
  for name, tensor in state.items():
    assert torch.equal(read[name], tensor), name
  # And back by ourselves, without the last layer and the projection.
  held["prefix.logit_scale"] = torch.zeros(())
  file = tmp_path / "clip.safetensors"
  safetensors.torch.save_file(held, file)
  for layers, projection in ((None, True), (1, False)):
    view = original_text.from_open_clip(WeightFiles(file), "prefix.", layers, projection)
    arrays = {info.name: (info, array) for info, array in view.read(view.tensors)}
    expected = {
      name for name in state if projection or (".layers.1." not in name and not name.startswith("text_projection"))
    }
    assert set(arrays) == expected
    for name, (info, array) in arrays.items():
      assert info.shape == array.shape
      np.testing.assert_array_equal(array, state[name].numpy())
    said = original_text.inferred_config({info.name: info.shape for info in view.tensors}, open_clip=True)
    assert said["num_hidden_layers"] == layers or layers is None
    assert said["architectures"] == ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"]


@pytest.mark.parametrize(
  ("name", "prefixes"),
  [
    ("sd1", ["cond_stage_model.transformer."]),
    ("sd2", ["cond_stage_model.model."]),
    ("sdxl", ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."]),
  ],
)
def test_clip_lies_where_the_original_has_it(name, prefixes, tmp_path):
  unet = tiny_diffusers.unet(name, torch.float32)
  encoders = {}
  for part, projects in (("text_encoder", False), ("text_encoder_2", True))[: len(prefixes)]:
    torch.manual_seed(len(encoders))
    open_clip = projects or name == "sd2"
    config = transformers.CLIPTextConfig(
      vocab_size=20, hidden_size=64, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
      max_position_embeddings=8, projection_dim=24 if projects else 64, eos_token_id=2,
      hidden_act="gelu" if open_clip else "quick_gelu",
    )  # fmt: skip
    encoders[part] = (transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel)(config)
  folder = tmp_path / "folder"
  parts = {"unet": unet, "vae": tiny_diffusers.vae(torch.float32), **encoders}
  for part, model in parts.items():
    model.save_pretrained(folder / part)
  index = {part: ["library", type(model).__name__] for part, model in parts.items()}
  (folder / "model_index.json").write_text(json.dumps(index))
  model = load_diffusers_folder(folder)
  file = tmp_path / "file.safetensors"
  save_single_file(file, model)
  held = safetensors.torch.load_file(file)
  for encoder, prefix in zip(encoders.values(), prefixes, strict=True):
    assert any(key.startswith(prefix) for key in held)
    if prefix.endswith(".model."):
      read = single_file_utils.convert_open_clip_checkpoint(encoder, held, prefix)
    else:
      read = single_file_utils.convert_ldm_clip_checkpoint(held)
    state = {f"text_model.{key.removeprefix('text_model.')}": x for key, x in encoder.state_dict().items()}
    state = {key.removeprefix("text_model.") if "text_projection" in key else key: x for key, x in state.items()}
    assert set(read) == set(state)
    for key, tensor in state.items():
      assert torch.equal(read[key], tensor), key
  # With the folder's configs, and with those that follow from shapes.
  whole = load_single_file(file, config_from=folder)
  assert_same(whole.unet_params, model.unet_params)
  inferred = load_single_file(file, parts=tuple(encoders))
  for again in (whole, inferred):
    for ours, before in zip(again.text_encoders, model.text_encoders, strict=True):
      assert (ours.family, ours.head, ours.config) == (before.family, before.head, before.config)
      assert_same(ours.params, before.params)


def test_mistakes_are_one_sentence(taiyi, tmp_path):
  folder, _ = taiyi
  model = load_diffusers_folder(folder)
  with pytest.raises(UserError, match="must end in .safetensors"):
    save_single_file(tmp_path / "taiyi.ckpt", model)
  with pytest.raises(UserError, match="lacks vae, text_encoder"):
    save_single_file(tmp_path / "taiyi.safetensors", load_diffusers_folder(folder, parts=("unet",)))
  save_single_file(tmp_path / "taiyi.safetensors", model)
  with pytest.raises(UserError, match="already exists"):
    save_single_file(tmp_path / "taiyi.safetensors", model)
  held = safetensors.torch.load_file(tmp_path / "taiyi.safetensors")
  rest = {name: x for name, x in held.items() if not name.startswith("first_stage_model.")}
  safetensors.torch.save_file(rest, tmp_path / "no_vae.safetensors")
  with pytest.raises(UserError, match="no_vae.safetensors holds no vae: no .* first_stage_model"):
    load_single_file(tmp_path / "no_vae.safetensors", config_from=folder)
  assert load_single_file(tmp_path / "no_vae.safetensors", config_from=folder, parts=("unet",)).unet_params
  with pytest.raises(UserError, match="holds no text_encoder_2: .* conditioner.embedders.1.model."):
    load_single_file(tmp_path / "no_vae.safetensors", config_from=folder, parts=("text_encoder_2",))
  safetensors.torch.save_file({"lora.up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
  with pytest.raises(UserError, match="no single file of Stable Diffusion 1, 2 or XL: it holds 1 other"):
    load_single_file(tmp_path / "lora.safetensors")
  torch.save({"state_dict": held, "callbacks": UserError}, tmp_path / "code.ckpt")
  with pytest.raises(UserError, match="which could run code"):
    load_single_file(tmp_path / "code.ckpt")
