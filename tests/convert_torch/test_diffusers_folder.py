"""Folders of diffusers: read, refused where they should be, and written so that diffusers loads them strictly."""

import dataclasses
import shutil

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_diffusers
import torch
import transformers
from convert_torch import load_diffusers_folder, save_diffusers_folder
from convert_torch.diffusers_folder import UNET

from fsb_jax import models
from fsb_jax.checkpoints import read_json
from fsb_jax.errors import UserError

_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一二三四五六七八九十"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A pipeline like Taiyi's: its text encoder is a BERT."""
  folder = tmp_path_factory.mktemp("taiyi") / "pipeline"
  vocabulary = folder.parent / "vocab.txt"
  vocabulary.write_text("\n".join(_VOCABULARY) + "\n", encoding="utf-8")
  torch.manual_seed(0)
  bert = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=len(_VOCABULARY), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
      max_position_embeddings=16,
    )
  )  # fmt: skip
  diffusers.StableDiffusionPipeline(
    vae=tiny_diffusers.vae(torch.float32),
    text_encoder=bert,
    tokenizer=transformers.BertTokenizer(vocab=str(vocabulary)),
    unet=tiny_diffusers.unet("sd1", torch.float32),
    scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", num_train_timesteps=100),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  ).save_pretrained(folder)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")


def tensors(folder):
  files = sorted(folder.rglob("*.safetensors"))
  return {f"{file.parent.name}/{name}": x for file in files for name, x in safetensors.torch.load_file(file).items()}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_there_and_back_bit_for_bit(folder, tmp_path, scan_layers):
  read = load_diffusers_folder(folder, run=models.Run(scan_layers=scan_layers))
  assert [encoder.family for encoder in read.text_encoders] == ["bert"]
  family, config, params, head = read.text_encoders[0]
  assert (family, config.embed_dim, head) == ("bert", 12, "base")
  assert read.tokenizer_folders == (folder / "tokenizer",)
  assert read.scheduler_config["num_train_timesteps"] == 100
  assert set(read.source["sha256"]) == {
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
  }  # fmt: skip
  written = tmp_path / "written"
  save_diffusers_folder(written, read, max_shard_bytes=20_000)
  assert len(list((written / "unet").glob("*.safetensors"))) > 1
  before, after = tensors(folder), tensors(written)
  assert set(before) == set(after)
  for name, tensor in before.items():
    assert torch.equal(tensor, after[name]), name
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(written, local_files_only=True)
  assert isinstance(pipeline.text_encoder, transformers.BertModel)
  assert pipeline.tokenizer("一二")["input_ids"] == [2, 5, 6, 3]
  for part in ("unet", "vae"):
    original = getattr(diffusers.StableDiffusionPipeline.from_pretrained(folder), part)
    assert dict(getattr(pipeline, part).config).items() >= {
      name: value for name, value in original.config.items() if not name.startswith("_")
    }.items()
    _, info = type(original).from_pretrained(written / part, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("name", tiny_diffusers.UNETS)
def test_every_layout_of_a_unet(name, tmp_path):
  model = tiny_diffusers.unet(name, torch.float32)
  unet, params = tiny_diffusers.read(model, tmp_path / "unet", "float32")
  back = tiny_diffusers.in_their_names(unet, params)
  state = model.state_dict()
  assert set(back) == set(state)
  for key, tensor in state.items():
    np.testing.assert_array_equal(back[key], tensor.numpy())
  # And by our own config.json.
  config = UNET.to_hf(unet.config)
  again = diffusers.UNet2DConditionModel.from_config(config)
  again.load_state_dict(state, strict=True)
  assert dataclasses.replace(UNET.from_hf(config), run=unet.config.run) == unet.config


def test_pickles_variants_and_old_names(copy):
  with pytest.raises(UserError, match="lacks the folder vae"):
    shutil.move(copy / "vae", copy / "away")
    load_diffusers_folder(copy)
  shutil.move(copy / "away", copy / "vae")
  whole = load_diffusers_folder(copy, parts=("unet", "vae"))
  assert whole.text_encoders == [] and whole.scheduler_config is None
  # As diffusers wrote autoencoders before version 0.17, and in a pickle of tensors.
  file = copy / "vae" / "diffusion_pytorch_model.safetensors"
  new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  old = {}
  for name, tensor in safetensors.torch.load_file(file).items():
    for today, then in new.items():
      name = name.replace(f"attentions.0.{today}.", f"attentions.0.{then}.")
    old[name] = tensor
  assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
  file.unlink()
  torch.save(old, file.with_suffix(".bin"))
  # In half precision, under the name of a variant.
  file = copy / "unet" / "diffusion_pytorch_model.safetensors"
  half = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
  file.unlink()
  safetensors.torch.save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
  # The only variant is what is meant; of two, or of others than it has, it is not known.
  unet, named = (load_diffusers_folder(copy, parts=("unet",), variant=variant) for variant in (None, "fp16"))
  jax.tree.map(np.testing.assert_array_equal, unet.unet_params, named.unet_params)
  shutil.copyfile(file.with_name("diffusion_pytorch_model.fp16.safetensors"), file.with_suffix(".ema.safetensors"))
  with pytest.raises(UserError, match=r"it has the variants \['ema', 'fp16'\], which variant= asks for"):
    load_diffusers_folder(copy)
  vae = load_diffusers_folder(copy, parts=("vae",))
  jax.tree.map(np.testing.assert_array_equal, vae.autoencoder_params, whole.autoencoder_params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3), unet.unet_params, whole.unet_params)


def test_a_tensor_too_many_or_too_few_is_told(copy):
  file = copy / "unet" / "diffusion_pytorch_model.safetensors"
  held = safetensors.torch.load_file(file)
  held["mid_block.extra.weight"] = held.pop("conv_in.bias")
  safetensors.torch.save_file(held, file)
  with pytest.raises(UserError, match=r"(?s)unet does not fit.* - conv_in.bias .*\+ mid_block.extra.weight"):
    load_diffusers_folder(copy, parts=("unet",))


@pytest.mark.parametrize(
  ("part", "field", "value"),
  [
    ("unet", "class_embed_type", "timestep"),
    ("unet", "num_class_embeds", 1000),
    ("unet", "dual_cross_attention", True),
    ("unet", "resnet_time_scale_shift", "scale_shift"),
    ("unet", "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
    ("unet", "up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
    ("unet", "mid_block_type", None),
    ("unet", "addition_embed_type", "image"),
    ("unet", "attention_head_dim", [2, 3]),
    ("unet", "transformer_layers_per_block", [[1], 1]),
    ("unet", "cross_attention_dim", [12, 13]),
    ("unet", "time_cond_proj_dim", 8),
    ("vae", "act_fn", "gelu"),
    ("vae", "latents_mean", [0.0]),
    ("vae", "up_block_types", ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]),
  ],
)
def test_options_that_we_lack_are_refused_by_name(copy, part, field, value):
  import json

  path = copy / part / "config.json"
  path.write_text(json.dumps({**read_json(path), field: value}))
  with pytest.raises(UserError, match=rf"{part}: config.json says {field}="):
    load_diffusers_folder(copy, parts=(part,))


def test_mistakes_are_one_sentence(copy, tmp_path):
  with pytest.raises(UserError, match="no model_index.json"):
    load_diffusers_folder(tmp_path)
  with pytest.raises(UserError, match="no part 'decoder'; known: unet, vae"):
    load_diffusers_folder(copy, parts=("decoder",))
  read = load_diffusers_folder(copy, parts=("unet",))
  with pytest.raises(UserError, match="already exists"):
    save_diffusers_folder(copy, read)
  with pytest.raises(UserError, match="unknown dtype 'int8'"):
    save_diffusers_folder(tmp_path / "new", read, dtype="int8")
  read.unet_params["convolution_in"]["bias"] = np.zeros(3)
  with pytest.raises(UserError, match="! convolution_in/bias"):
    save_diffusers_folder(tmp_path / "new", read)
  assert not (tmp_path / "new").exists()
