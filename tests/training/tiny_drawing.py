"""Runs of a tiny model that draws, on a few images made here."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
from convert_torch.diffusers_folder import DiffusersModel, TextEncoder, save_diffusers_folder
from PIL import Image

from fsb_jax import encodings, models
from fsb_jax.models import diffusion
from fsb_jax.training import train_diffusion
from fsb_jax.training.levers import Levers
from fsb_jax.training.loop import Periods
from fsb_jax.training.optimizers import adamw

LENGTH, SIDE = 8, 16
WORDS = "红绿蓝黄黑白"
SCHEDULER = {
  "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
  "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "num_train_timesteps": 1000,
}  # fmt: skip
UNET = diffusion.UNetConfig(
  channels=(16, 32), resnets=(1, 1), heads=(8, 8), depths=(1, 0), text_dim=16, text_only=(False, False), norm_groups=4,
  sample_size=SIDE // 2,
)  # fmt: skip
AUTOENCODER = diffusion.AutoencoderConfig(channels=(8, 16), resnets=1, norm_groups=4, sample_size=SIDE)


def images(folder, count=6, words=WORDS):
  """Writes images of one colour each, a caption beside each; of several sizes, none of them square."""
  folder.mkdir()
  random = np.random.default_rng(0)
  for i in range(count):
    pixels = np.empty((SIDE + 3 * i, SIDE + 8, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    pixels[: SIDE // 2, : SIDE // 2] = random.integers(0, 256, 3)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / f"{i}.txt").write_text(words[i % len(words)] + "色", encoding="utf-8")
  return folder


def drawn(module, inputs, seed):
  """Fresh parameters as host arrays."""
  params = jax.jit(lambda key: module.init(key, **inputs))(jax.random.key(seed))["params"]
  return jax.tree.map(np.asarray, nn.meta.unbox(params))


def model_folder(folder, characters=WORDS + "色", unet=UNET, autoencoder=AUTOENCODER, autoencoder_params=None):
  """Writes a tiny random model in the layout of diffusers."""
  encodings.bert_tokenizer_from_characters(characters, folder / "tokenizer")
  vocab_size = len(encodings.load_tokenizer(folder / "tokenizer"))
  text = dataclasses.replace(
    models.sized("bert", "tiny"), vocab_size=vocab_size, embed_dim=unet.text_dim, num_heads=8, num_layers=2, mlp_dim=16,
    positions=models.LearnedPositions(length=LENGTH), initializer_range=0.3,
  )  # fmt: skip
  reader, module = models.build("bert", text), diffusion.UNet(unet)
  if autoencoder_params is None:
    made = diffusion.Autoencoder(autoencoder)
    autoencoder_params = drawn(made, diffusion.dummy_inputs(made), 1)
  index = {
    "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
  }  # fmt: skip
  model = DiffusersModel(
    unet_config=unet, unet_params=drawn(module, diffusion.dummy_inputs(module), 2), autoencoder_config=autoencoder,
    autoencoder_params=autoencoder_params, scheduler_config=SCHEDULER, model_index=index,
    text_encoders=[TextEncoder("bert", text, drawn(reader, {"input_ids": models.dummy_ids(reader)}, 3), "base")],
    tokenizer_folders=(folder / "tokenizer",), hf_configs={"text_encoder": {"model_type": "bert"}},
  )  # fmt: skip
  save_diffusers_folder(folder / "model", model)
  return folder / "model"


def run(folder, model, data, steps, **changes):
  """Trains; `changes` replace arguments of `train`."""
  arguments = dict(
    model_dir=str(folder), initial_checkpoint_path=str(model), data=str(data), train_steps=steps, batch_size=8,
    optimizer=adamw(learning_rate=1e-3), periods=Periods(log=2, evaluate=None, checkpoint=2),
    levers=Levers(parameter_rates={"^text_encoder/": 0.0}), dropout_rate=0.0, mesh={"data": 2, "fsdp": 2, "tensor": 2},
  )  # fmt: skip
  return train_diffusion.train(**{**arguments, **changes})
