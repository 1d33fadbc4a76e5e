"""Runs of a tiny model that draws, on a few images made here."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
from convert_torch.diffusers_folder import DiffusersModel, TextEncoder, save_diffusers_folder
from PIL import Image

from fsb_jax import encodings, models
from fsb_jax.models import diffusion
from fsb_jax.partitioning import make_mesh
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
  channels=(8, 16), resnets=(1, 1), heads=(2, 2), depths=(1, 0), text_dim=8, text_only=(False, False), norm_groups=4,
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


def drawn(boxed, seed):
  """Fresh parameters as host arrays, for shapes; nothing is compiled."""
  random = np.random.default_rng(seed)
  made = {}
  for path, shape in models.flatten(nn.meta.unbox(boxed)).items():
    deviation = 0.0 if path.endswith("bias") else 0.02 if path.endswith("scale") else np.prod(shape.shape[:-1]) ** -0.5
    made[path] = random.normal(path.endswith("scale"), deviation, shape.shape).astype(np.float32)
  return models.unflatten(made)


def model_folder(
  folder, characters=WORDS + "色", unet=UNET, autoencoder=AUTOENCODER, autoencoder_params=None, **scheduler
):
  """Writes a tiny random model in the layout of diffusers; `scheduler` are options of its noise."""
  encodings.bert_tokenizer_from_characters(characters, folder / "tokenizer")
  vocab_size = len(encodings.load_tokenizer(folder / "tokenizer"))
  text = dataclasses.replace(
    models.sized("bert", "tiny"), vocab_size=vocab_size, embed_dim=unet.text_dim, num_heads=2, num_layers=1, mlp_dim=16,
    positions=models.LearnedPositions(length=LENGTH), initializer_range=0.3,
  )  # fmt: skip
  reader, module = models.build("bert", text), diffusion.UNet(unet)
  if autoencoder_params is None:
    made = diffusion.Autoencoder(autoencoder)
    autoencoder_params = drawn(diffusion.abstract_params(made), 1)
  index = {
    "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
  }  # fmt: skip
  model = DiffusersModel(
    unet_config=unet, unet_params=drawn(diffusion.abstract_params(module), 2), autoencoder_config=autoencoder,
    autoencoder_params=autoencoder_params, scheduler_config={**SCHEDULER, **scheduler}, model_index=index,
    text_encoders=[TextEncoder("bert", text, drawn(models.abstract_params(reader), 3), "base")],
    tokenizer_folders=(folder / "tokenizer",), hf_configs={"text_encoder": {"model_type": "bert"}},
  )  # fmt: skip
  save_diffusers_folder(folder / "model", model)
  return folder / "model"


def run(folder, model, data, steps, **changes):
  """Trains; `changes` replace arguments of `train`."""
  arguments = dict(
    model_dir=str(folder), initial_checkpoint_path=str(model), data=str(data), train_steps=steps, batch_size=8,
    optimizer=adamw(learning_rate=1e-3), periods=Periods(log=2, evaluate=None, checkpoint=2),
    levers=Levers(parameter_rates={"^text_encoder/": 0.0}), dropout_rate=0.0, mesh=make_mesh(devices=jax.devices()[:1]),
  )  # fmt: skip
  return train_diffusion.train(**{**arguments, **changes})
