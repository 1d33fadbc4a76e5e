"""A tiny model learns a few real images by heart: the loss falls, and drawing by their captions gives them back."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_drawing
from PIL import Image

from fsb_jax.models import diffusion
from fsb_jax.pipelines.text_to_image import TextToImage
from fsb_jax.tasks.image_captions import image_caption_task
from fsb_jax.training.drawing import side_by_side
from fsb_jax.training.images import Preparation
from fsb_jax.training.levers import Levers
from fsb_jax.training.loop import Periods
from fsb_jax.training.optimizers import adamw, schedule

ALL = Path(os.environ.get("FSB_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")
DATA = ALL / "captioned_images_emoji_zh"
# Of different colours and forms: a face, an apple, a house, ...
SHOWN, SIDE = 6, 32


def learned_autoencoder(images, steps=500):
  """An autoencoder that knows these images, and its config, whose latents have a standard deviation of 1."""
  config = diffusion.AutoencoderConfig(
    channels=(16, 32), resnets=1, norm_groups=4, sample_size=SIDE, middle_attention=False
  )
  module = diffusion.Autoencoder(config)
  optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, steps))
  params = jax.tree.map(jnp.asarray, tiny_drawing.drawn(diffusion.abstract_params(module), 0))

  @jax.jit
  def step(params, state):
    def loss(params):
      mean, log_variance = module.apply({"params": params}, images, method="encode")
      decoded = module.apply({"params": params}, mean, method="decode")
      # Variances are learned to be small, so that a draw is decoded as its mean is.
      return jnp.mean((decoded - images) ** 2) + 1e-4 * jnp.mean(mean**2) + 1e-3 * jnp.mean((log_variance + 6) ** 2)

    value, slopes = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(slopes, state)
    return optax.apply_updates(params, updates), state, value

  state = optimizer.init(params)
  for _ in range(steps):
    params, state, value = step(params, state)
  mean, _ = module.apply({"params": params}, images, method="encode")
  print(f"autoencoder: mean squared error {float(value):.5f}")
  return jax.tree.map(np.asarray, params), dataclasses.replace(config, scaling_factor=float(1 / jnp.std(mean)))


@pytest.mark.slow
def test_images_are_drawn_by_their_captions(tmp_path):
  if not DATA.is_dir():
    pytest.skip(f"needs {DATA}")
  lines = (DATA / "captions.jsonl").read_text(encoding="utf-8").splitlines()
  rows = [json.loads(line) for line in lines][:: len(lines) // SHOWN][:SHOWN]
  rows = [{"image": str(DATA / row["image"]), "caption": row["caption"][: tiny_drawing.LENGTH - 2]} for row in rows]
  captions = [row["caption"] for row in rows]
  assert len({*captions}) == SHOWN
  data = tmp_path / "captions.jsonl"
  # Twice, so that a batch has every image twice, under other noise.
  data.write_text("".join(json.dumps(row) + "\n" for row in rows * 2), encoding="utf-8")
  prepare = Preparation(SIDE)
  examples = image_caption_task("emoji", {"train": data}).examples("train")[:SHOWN]
  images = np.stack([prepare(image) for image in examples])
  params, autoencoder = learned_autoencoder(images)
  unet = diffusion.UNetConfig(
    channels=(32, 64), resnets=(1, 1), heads=(4, 4), depths=(0, 1), text_dim=32, text_only=(False, False),
    norm_groups=8, sample_size=SIDE // 2,
  )  # fmt: skip
  model = tiny_drawing.model_folder(
    tmp_path, characters=sorted({*"".join(captions)}), unet=unet, autoencoder=autoencoder, autoencoder_params=params,
    # What is left of an image in the noisiest steps is too little to find its colours from an error of the noise.
    prediction_type="v_prediction",
  )
  steps = 1000
  rate = schedule(kind="cosine", learning_rate=3e-3, train_steps=steps, warmup_ratio=0.05)
  tiny_drawing.run(
    tmp_path / "run", model, data, steps, batch_size=12, optimizer=adamw(learning_rate=rate, weight_decay=0.0),
    levers=Levers(ema_decay=0.99), periods=Periods(log=100, checkpoint=None), learning_rate=rate,
    validation_prompts=captions, validation_guidance=1.0,
  )  # fmt: skip
  losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  print("losses", [round(loss, 3) for loss in losses])
  drawings = TextToImage(tmp_path / "run", batch_size=SHOWN)(captions, steps=30, guidance=1, seed=0)
  drawn = np.stack([np.asarray(drawing.image) for drawing in drawings]) / 255
  real = images / 2 + 0.5
  sheet = np.concatenate([side_by_side(real), np.ones((SIDE * 2, 4, 3)), side_by_side(drawn)], axis=1)
  picture = Path(os.environ.get("FSB_PICTURES") or tmp_path) / "drawn_by_heart.png"
  Image.fromarray((sheet * 255).round().astype(np.uint8)).resize(
    (sheet.shape[1] * 4, sheet.shape[0] * 4), Image.NEAREST
  ).save(picture)
  errors = ((drawn[:, None] - real[None]) ** 2).mean(axis=(2, 3, 4))
  print("mean squared errors of drawings (rows) from images\n", errors.round(3), f"\nsee {picture}")
  assert losses[-1] < 0.3 * losses[0]
  # Each is nearest to its own image, and near.
  assert (errors.argmin(axis=1) == np.arange(SHOWN)).all()
  assert np.diag(errors).max() < 0.02
