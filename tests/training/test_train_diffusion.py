"""Whole runs of models that draw: what they train, keep, resume and give away."""

import json
import signal
import types

import numpy as np
import pytest
import tiny_drawing
from convert_torch import load_single_file
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fsb_jax import checkpoints, cli, models
from fsb_jax.errors import Stopped, UserError
from fsb_jax.models import lora
from fsb_jax.models.diffusion.schedulers import Schedule
from fsb_jax.partitioning import Partitioner
from fsb_jax.training import drawing
from fsb_jax.training.drawing import side_by_side
from fsb_jax.training.images import ImageLoader
from fsb_jax.training.levers import Levers
from fsb_jax.training.loop import Periods
from fsb_jax.training.train_diffusion import Factors, Noise


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """(the model's folder, the images')."""
  folder = tmp_path_factory.mktemp("drawing")
  return tiny_drawing.model_folder(folder), tiny_drawing.images(folder / "images")


def parameters(folder, step=None):
  return models.flatten(checkpoints.load_folder(folder, step)[0])


@pytest.mark.slow
def test_a_run_trains_draws_and_goes_on(inputs, tmp_path):
  model, data = inputs
  metrics = tiny_drawing.run(tmp_path / "run", model, data, 2)
  assert np.isfinite(metrics["loss"]) and 0.5 < metrics["loss"] < 2
  first = parameters(tmp_path / "run")
  tiny_drawing.run(tmp_path / "run", model, data, 4)
  after = parameters(tmp_path / "run")
  moved = {path for path in after if not np.array_equal(first[path], after[path])}
  # The text encoder is frozen.
  assert moved == {path for path in after if path.startswith("unet/")}
  # Latents are made once; pictures are drawn at the end.
  assert np.load(tmp_path / "run" / "latents.npy").shape == (6, 8, 8, 8)
  drawn = tmp_path / "run" / "images" / "step-4.png"
  with Image.open(drawn) as picture:
    assert picture.size == (2 * tiny_drawing.SIDE, 2 * tiny_drawing.SIDE)
  shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Images("drawings")
  assert [image.step for image in shown] == [2, 4]
  assert shown[-1].encoded_image_string == drawn.read_bytes()
  kinds = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert kinds == [2, 4]
  # It is exported to what diffusers loads.
  cli.app(["convert", "export", str(tmp_path / "run"), str(tmp_path / "exported")], standalone_mode=False)
  import diffusers

  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "exported", safety_checker=None)
  kernel = "unet/convolution_in/kernel"
  np.testing.assert_array_equal(pipeline.unet.conv_in.weight.detach().permute(2, 3, 1, 0), after[kernel])
  # Or to a single file by the original's names.
  file = tmp_path / "run.safetensors"
  cli.app(["convert", "export", str(tmp_path / "run"), str(file)], standalone_mode=False)
  again = models.flatten(load_single_file(file, config_from=tmp_path / "exported", parts=("unet",)).unet_params)
  np.testing.assert_array_equal(again[kernel.removeprefix("unet/")], after[kernel])


@pytest.mark.slow
def test_factors_alone(inputs, tmp_path):
  model, data = inputs
  options = dict(
    factors=Factors(rank=2, alpha=4.0), levers=Levers(ema_decay=0.5), noise=Noise(offset=0.1, min_snr_gamma=5.0),
    random_crop=True, flip=True,
  )  # fmt: skip
  tiny_drawing.run(tmp_path / "run", model, data, 2, **options)
  saved = parameters(tmp_path / "run")
  loaded = {path: x for path, x in saved.items() if path.startswith("lora/")}
  assert {"/".join(path.split("/")[1:2]) for path in loaded} == {"unet", "text_encoder"}
  assert all(np.abs(x).max() > 0 for path, x in loaded.items())
  # Images that are cut anew every time are encoded in every step.
  assert not (tmp_path / "run" / "latents.npy").exists()
  # What is drawn with has the factors in its kernels.
  from convert_torch import load_diffusers_folder

  plain, changed = (load_diffusers_folder(folder) for folder in (model, tmp_path / "run"))
  was, now = (models.flatten(each.unet_params) for each in (plain, changed))
  adapted = {path.removeprefix("lora/unet/").removesuffix("/up") for path in loaded if path.endswith("/up")}
  assert {path for path in was if not np.array_equal(was[path], now[path])} == {p for p in adapted if p in was}
  path = "down_0/attentions_0/blocks/layers/attention/query/kernel"
  tree = {path: was[path], **{f"{path}/{k}": loaded[f"lora/unet/{path}/{k}"] for k in ("down", "up")}}
  expected = lora.merged(
    models.unflatten({path: tree[path]}), models.unflatten({p: x for p, x in tree.items() if p != path}), 4.0
  )
  np.testing.assert_array_equal(now[path], models.flatten(expected)[path])
  # The factors alone, as a file.
  from convert_torch import lora_files

  for layout in ("diffusers", "kohya"):
    target = tmp_path / f"{layout}.safetensors"
    cli.app(["convert", "export", str(tmp_path / "run"), str(target), "--family", layout], standalone_mode=False)
    merged = lora_files.with_lora(plain, lora_files.load_lora(target, plain))
    texts = (each.text_encoders[0].params for each in (merged, changed))
    for ours, want in ((merged.unet_params, changed.unet_params), tuple(texts)):
      for name, x in models.flatten(want).items():
        np.testing.assert_allclose(models.flatten(ours)[name], x, atol=1e-6)
  # Drawn with the run, and with the factors beside the model before.
  from fsb_jax.pipelines.text_to_image import TextToImage

  pictures = [
    TextToImage(folder, **options)("红色", steps=2, seed=1, guidance=1)[0]
    for folder, options in ((tmp_path / "run", {}), (model, {"lora": {target: 1.0}}), (model, {}))
  ]
  one, same, other = (np.asarray(picture.image, int) for picture in pictures)
  assert np.abs(one - same).max() <= 1 and np.abs(one - other).max() > 1
  assert pictures[1].settings["lora"] == f"{target}=1.0" and "lora" not in pictures[0].settings
  with pytest.raises(UserError, match="trains other parameters"):
    tiny_drawing.run(tmp_path / "run", model, data, 4)


def test_mistakes_are_told_before_the_work(inputs, tmp_path):
  model, data = inputs
  for changes, message in (
    ({"resolution": 18}, "RESOLUTION 18 must be a multiple of 4"),
    ({"batch_size": 6, "microbatches": 4}, "BATCH_SIZE 6 cannot be"),
    ({"caption": "猫", "data": str(data / "0.png")}, "CAPTION is for a folder"),
    ({"data": str(tmp_path)}, "holds no image"),
    ({"caption_length": 9}, "has positions for 8"),
  ):
    with pytest.raises(UserError, match=message):
      tiny_drawing.run(tmp_path / "run", model, **{"data": data, "steps": 1, **changes})
  assert not (tmp_path / "run").exists()
  with pytest.raises(UserError, match="MIN_SNR_GAMMA"):
    Noise(min_snr_gamma=0)


def test_a_sheet_has_as_many_rows_as_columns_or_fewer():
  images = np.arange(3)[:, None, None, None] / 4 * np.ones((3, 2, 2, 3))
  sheet = side_by_side(images)
  assert sheet.shape == (4, 4, 3)
  assert [sheet[i, j, 0] for i, j in ((0, 0), (0, 2), (2, 0), (2, 2))] == [0, 0.25, 0.5, 1]


def test_pictures_of_progress_are_drawn_as_fsb_draw_draws(monkeypatch):
  told = []
  monkeypatch.setattr(drawing, "generate_images", lambda model, schedule, prompts, *_, **__: told.append(
    (schedule, prompts.hidden_states.shape)
  ))  # fmt: skip
  states = types.SimpleNamespace(last_hidden_state=np.zeros((8, 4, 2), np.float32))
  denoiser = types.SimpleNamespace(
    text_encoder=types.SimpleNamespace(apply=lambda *_: states), unet=None, schedule=Schedule(sampler="ddim")
  )

  def tokenizer(texts, **_):
    assert texts[:2] == ["一只猫", ""] and len(texts) == 8
    return {"input_ids": np.zeros((8, 4))}

  # One prompt, not three of a character each.
  partitioner, params = Partitioner({"data": 8}), {"text_encoder": {}, "unet": {}}
  drawing.Drawing(denoiser, None, {}, partitioner, tokenizer, 4, 16, None, "一只猫", 7.5, 0)(params)
  ((schedule, shape),) = told
  # A file of DDIM that does not speak of it would have latents clipped to [-1, 1].
  assert not schedule.clip_sample and schedule.steps_offset == 1 and shape == (1, 4, 2)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(inputs, tmp_path, monkeypatch):
  model, data = inputs
  others = tiny_drawing.images(tmp_path / "others", count=3, words="白")
  options = dict(random_crop=True, flip=True, class_data=str(others), periods=Periods(log=1, checkpoint=None))
  tiny_drawing.run(tmp_path / "whole", model, data, 3, **options)
  stream = ImageLoader.stream

  def stopped(self, first_step, last_step):
    for number, batch in enumerate(stream(self, first_step, last_step), first_step):
      if number == 1:
        signal.raise_signal(signal.SIGTERM)
      yield batch

  monkeypatch.setattr(ImageLoader, "stream", stopped)
  with pytest.raises(Stopped):
    tiny_drawing.run(tmp_path / "stopped", model, data, 3, **options)
  monkeypatch.undo()
  assert checkpoints.CheckpointStore(tmp_path / "stopped").latest_step() == 2
  tiny_drawing.run(tmp_path / "stopped", model, data, 3, **options)
  whole, again = (parameters(tmp_path / name) for name in ("whole", "stopped"))
  assert {*whole} == {*again}
  for path, x in whole.items():
    np.testing.assert_array_equal(again[path], x, err_msg=path)
