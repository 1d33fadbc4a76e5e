"""Drawing against the pipelines of diffusers, from the same noise."""

import json
import shutil
import types
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint
from PIL import Image
from tiny_diffusion import (
  LENGTH,
  PROMPTS,
  SIDE,
  bert_reader,
  clip_reader,
  save_large_pipeline,
  save_pipeline,
  tiny_unet,
)

from fsb_jax.errors import UserError
from fsb_jax.generation import images
from fsb_jax.pipelines import drawing_files, text_to_image
from fsb_jax.pipelines.drawing_files import contact_sheet, write_drawing
from fsb_jax.pipelines.prompt_encoder import ascii_punctuation
from fsb_jax.pipelines.text_to_image import Drawing, TextToImage
from fsb_jax.training import host_memory

STEPS = 4
# Not a square, so that height and width are told apart.
SIZE = dict(height=SIDE, width=SIDE + 8)


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
  """(folder, their pipeline, ours) with a BERT text encoder."""
  return tiny(tmp_path_factory, bert_reader)


@pytest.fixture(scope="module")
def filling(tmp_path_factory):
  """The same, with a UNet that also reads a mask and the image behind it."""
  return tiny(tmp_path_factory, bert_reader, in_channels=9)


def tiny(tmp_path_factory, reader, **options):
  torch.manual_seed(1)
  folder = tmp_path_factory.mktemp("diffusion")
  theirs = save_pipeline(folder / "model", tiny_unet(**options), *reader(folder / "made"))
  return folder / "model", theirs, TextToImage(folder / "model", batch_size=2)


@pytest.fixture
def fixed(monkeypatch):
  """Their pipelines begin with this noise, and take the most likely latents of an image as ours do."""
  noise = np.random.default_rng(3).normal(size=(2, SIDE // 2, SIDE // 2 + 4, 4)).astype(np.float32)
  given = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
  for module in (pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint):
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: given)
  monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
  return types.SimpleNamespace(noise=noise, latents=given)


def picture():
  """An image, and a mask of its left half."""
  y, x = np.mgrid[:SIDE, : SIDE + 8]
  pixels = np.stack([x * 10, y * 16, (x * y) % 256], axis=-1).astype(np.uint8)
  return Image.fromarray(pixels), Image.fromarray(((x < SIDE // 2) * 255).astype(np.uint8))


def pixels(drawings):
  return np.stack([np.asarray(drawing.image, np.float32) for drawing in drawings])


def assert_same(drawings, expected):
  """The same bytes, but for the few that are rounded the other way."""
  expected = (expected * 255).round()
  assert expected.std() > 5
  difference = np.abs(pixels(drawings) - expected)
  assert difference.mean() < 0.01 and difference.max() <= 1, (difference.mean(), difference.max())


@pytest.mark.parametrize(
  "options",
  [
    {"negative_prompt": "模糊", "guidance_rescale": 0.7}, {"guidance_scale": 1.0},
    *(pytest.param(each, marks=pytest.mark.slow) for each in ({}, {"num_images_per_prompt": 2})),
  ],
  ids=str,
)  # fmt: skip
def test_text(stable, fixed, options):
  _, theirs, ours = stable
  prompts = list(PROMPTS[: 1 if "num_images_per_prompt" in options else 2])
  told = {**options, "negative_prompt": [options["negative_prompt"]] * 2} if "negative_prompt" in options else options
  expected = theirs(
    prompts, **SIZE, num_inference_steps=STEPS, latents=fixed.latents, output_type="np", **told
  ).images
  names = {"guidance_scale": "guidance", "num_images_per_prompt": "images_per_prompt"}
  mine = {names.get(name, name): value for name, value in options.items()}
  assert_same(ours(prompts, steps=STEPS, noise=fixed.noise, **SIZE, **mine), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++"])
def test_other_schedulers(stable, fixed, name):
  folder, theirs, ours = stable
  kinds = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpm++": "DPMSolverMultistepScheduler"}
  scheduler = getattr(diffusers, kinds[name]).from_pretrained(folder, subfolder="scheduler")
  parts = {**theirs.components, "scheduler": scheduler}
  theirs = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
  expected = theirs(
    list(PROMPTS), **SIZE, num_inference_steps=STEPS, latents=fixed.latents, output_type="np"
  ).images
  assert_same(ours(PROMPTS, steps=STEPS, noise=fixed.noise, scheduler=name, **SIZE), expected)


def test_image(stable, fixed):
  _, theirs, ours = stable
  theirs = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
  image, _ = picture()
  expected = theirs(
    list(PROMPTS), image=image, strength=0.8, num_inference_steps=STEPS, output_type="np", generator=None
  ).images
  assert_same(ours(PROMPTS, image=image, steps=STEPS, noise=fixed.noise), expected)


@pytest.mark.parametrize("strength", [1.0, pytest.param(0.6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["stable", pytest.param("filling", marks=pytest.mark.slow)])
def test_hole(request, fixed, kind, strength):
  _, theirs, ours = request.getfixturevalue(kind)
  theirs = diffusers.StableDiffusionInpaintPipeline(**theirs.components, requires_safety_checker=False)
  image, mask = picture()
  expected = theirs(
    list(PROMPTS), image=image, mask_image=mask, strength=strength, **SIZE, num_inference_steps=STEPS,
    output_type="np",
  ).images  # fmt: skip
  drawn = ours(PROMPTS, image=image, mask=mask, strength=strength, steps=STEPS, noise=fixed.noise)
  assert_same(drawn, expected)


@pytest.mark.slow
def test_reader_of_clip(tmp_path_factory, fixed):
  """77 causal tokens in the published ones."""
  _, theirs, ours = tiny(tmp_path_factory, clip_reader)
  expected = theirs(
    ["a cat", "a dog"], **SIZE, num_inference_steps=STEPS, latents=fixed.latents, output_type="np"
  ).images
  assert_same(ours(["a cat", "a dog"], steps=STEPS, noise=fixed.noise, **SIZE), expected)


@pytest.mark.slow
@pytest.mark.parametrize("negative", [None, "a dog"])
def test_two_readers(tmp_path, fixed, negative):
  """Stable Diffusion XL."""
  torch.manual_seed(2)
  theirs = save_large_pipeline(tmp_path / "model")
  expected = theirs(
    ["a cat", "a hat"], negative_prompt=negative and [negative] * 2, **SIZE,
    num_inference_steps=STEPS, guidance_scale=4.0, latents=fixed.latents, output_type="np",
  ).images  # fmt: skip
  ours = TextToImage(tmp_path / "model")
  drawn = ours(["a cat", "a hat"], negative_prompt=negative, steps=STEPS, guidance=4.0, noise=fixed.noise, **SIZE)
  assert_same(drawn, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=4, fsdp=2), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_mesh(stable, fixed, mesh):
  folder, _, ours = stable
  image, mask = picture()
  for options in (SIZE, {"image": image, "mask": mask}):
    expected = ours(PROMPTS, steps=2, noise=fixed.noise, **options)
    on_mesh = TextToImage(folder, mesh=mesh)
    drawn = on_mesh(PROMPTS, steps=2, noise=fixed.noise, **options)
    assert np.abs(pixels(drawn) - pixels(expected)).max() <= 1
  in_tiles = (draw(PROMPTS, steps=2, noise=fixed.noise, tiled=True, **SIZE) for draw in (on_mesh, ours))
  assert np.abs(np.subtract(*map(pixels, in_tiles))).max() <= 1


def test_large_images_in_tiles(stable, fixed):
  _, theirs, ours = stable
  options = dict(num_inference_steps=2, guidance_scale=7.5, output_type="np", **SIZE)
  theirs.vae.enable_tiling()
  try:
    expected = theirs(list(PROMPTS), latents=fixed.latents, **options).images
  finally:
    theirs.vae.disable_tiling()
  drawn = ours(PROMPTS, steps=2, noise=fixed.noise, tiled=True, **SIZE)
  assert_same(drawn, expected)
  assert np.abs(pixels(drawn) - pixels(ours(PROMPTS, steps=2, noise=fixed.noise, **SIZE))).max() > 1


# The tests below draw with one sampler, so that little is compiled.
DRAWS = dict(scheduler="euler_ancestral", steps=2)


def test_an_image_depends_on_its_own_seed(stable):
  ours = stable[2]
  together = ours(PROMPTS[0], seed=5, images_per_prompt=2, **DRAWS)
  assert [drawing.seed for drawing in together] == [5, 6]
  assert np.abs(pixels(together[:1]) - pixels(together[1:])).max() > 5
  filled_up = ours(PROMPTS[0], seed=[5, 7, 6], images_per_prompt=3, **DRAWS)
  assert np.array_equal(pixels([filled_up[0], filled_up[2]]), pixels(together))


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_batch_size(stable):
  together = stable[2](PROMPTS[0], seed=5, images_per_prompt=2, **DRAWS)
  apart = TextToImage(stable[0], batch_size=1)(PROMPTS[0], seed=[6, 5], images_per_prompt=2, **DRAWS)
  # Rounded to bytes no more than a step is left.
  assert np.abs(pixels(together[::-1]) - pixels(apart)).max() <= 1


def test_another_number_of_steps_compiles_nothing_large(stable):
  ours = stable[2]
  programs = images._programs(ours._model.unet, ours._model.autoencoder, None)

  def compiled(steps):
    ours(PROMPTS, seed=5, scheduler=DRAWS["scheduler"], steps=steps)
    return [program._cache_size() for program in (programs.read_texts, programs.step)]

  before = compiled(2)
  assert compiled(3) == before


def test_noise_is_of_its_seed_and_step():
  def noise(seeds, index):
    return np.asarray(images.seeded_noise(np.asarray(seeds, np.uint32), index, (3, 2)))

  assert np.array_equal(noise([4, 9, 4], 1)[[1, 2]], np.concatenate([noise([9], 1), noise([4], 1)]))
  assert np.abs(noise([4], 1) - noise([4], 2)).max() > 0.1


def test_prompts_are_read_whole_with_their_padding(stable):
  _, theirs, ours = stable
  ids = theirs.tokenizer(PROMPTS[1], padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
  with torch.no_grad():
    expected = theirs.text_encoder(ids)[0].numpy()
  states, vectors = ours._encoders[0]([PROMPTS[1]])
  assert vectors is None
  np.testing.assert_allclose(states, expected, atol=1e-4)


def test_what_is_cut_off_is_said(stable):
  with pytest.warns(UserWarning, match="longer than the 16 tokens that are read; cut off: 直 下"):
    stable[2]._encoders[0]([PROMPTS[0][:2] * 6 + "猫" + "猫" + "直下"])


def test_punctuation():
  assert ascii_punctuation("你好，世界！“油画”。（４ｋ）") == '你好,世界!"油画".(4k)'


def test_an_image_to_begin_with_is_upright(stable, tmp_path, monkeypatch):
  exif = Image.Exif()
  exif[0x0112] = 6  # is shown turned to the right
  Image.new("RGB", (SIDE, 2 * SIDE)).save(tmp_path / "photo.png", exif=exif)
  told = {}

  def draw(*arguments, **options):
    told.update(options)
    return np.zeros((1, SIDE, 2 * SIDE, 3))

  monkeypatch.setattr(text_to_image, "generate_images", draw)
  (drawing,) = stable[2](PROMPTS[0], image=tmp_path / "photo.png", guidance_rescale=0.5)
  assert (told["width"], told["height"]) == (2 * SIDE, SIDE)
  assert drawing.settings["guidance_rescale"] == 0.5


def test_the_safety_checker_blacks_out(stable):
  folder, _, _ = stable
  flags = [False, True]
  ours = TextToImage(folder, safety_checker=lambda images: images.shape[1:] == (SIDE, SIDE, 3) and flags)
  drawn = ours(PROMPTS, seed=1, **DRAWS)
  assert [drawing.flagged for drawing in drawn] == [False, True]
  assert pixels(drawn[:1]).max() > 0 and pixels(drawn[1:]).max() == 0
  # No image is lost where it says too little.
  flags.pop()
  with pytest.raises(UserError, match="says something of 1 images, but is asked of 2"):
    ours(PROMPTS, seed=1, **DRAWS)


def test_progress(stable):
  told = []
  stable[2](PROMPTS, seed=1, **DRAWS, on_step=lambda done, of: told.append((done, of)))
  assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(prompts=[]), "nothing to draw"),
    (dict(width=15), "size 15x16: width and height must be multiples of 2"),
    (dict(steps=0), "steps=0"),
    (dict(seed=[1, 2]), "2 seeds for 1 images"),
    (dict(seed=-1), "seed=-1"),
    (dict(scheduler="plms"), "unknown scheduler 'plms'"),
    (dict(strength=0.5), "give the image too"),
    (dict(width=0), "size 0x16"),
    (dict(guidance=float("nan")), "guidance=nan must be a number"),
    (dict(image=3), "image int cannot be read as an image"),
    (dict(image=np.zeros((4, 4, 3), np.float32)), "its numbers are float32; give bytes"),
    (dict(image="none.png"), "there is no image none.png"),
    (dict(mask=np.zeros((4, 4), np.uint8)), "give the image too"),
    (dict(image=np.zeros((4, 4, 3), np.uint8), strength=0.0), "strength=0.0 must be above 0"),
    (dict(image=np.zeros((4, 4, 3), np.uint8), strength=0.1, steps=3), "all 3 steps would be left out"),
    (dict(noise=np.zeros((1, 3, 3, 4))), r"noise has shape \(1, 3, 3, 4\)"),
    (dict(images_per_prompt=0), "images_per_prompt=0"),
  ],
)
def test_mistakes(stable, options, words):
  with pytest.raises(UserError, match=words):
    stable[2](**{"prompts": PROMPTS[0], **options})


def test_overflow_is_said(stable, fixed):
  with pytest.raises(UserError, match="not made of numbers"):
    stable[2](PROMPTS, steps=STEPS, noise=np.full_like(fixed.noise, np.nan), **SIZE)


def test_a_folder_without_an_autoencoder(stable, tmp_path):
  shutil.copytree(stable[0], tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
  with pytest.raises(UserError, match=r"lacks vae, the autoencoder \(VAE\)"):
    TextToImage(tmp_path / "model")


def test_a_single_file_is_imported_first(tmp_path):
  (tmp_path / "model.ckpt").touch()
  with pytest.raises(UserError, match="fsb convert import .*model.ckpt FOLDER"):
    TextToImage(tmp_path / "model.ckpt")


def test_a_folder_without_a_tokenizer(stable, tmp_path):
  shutil.copytree(stable[0], tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer"))
  index = json.loads((tmp_path / "model" / "model_index.json").read_text())
  del index["tokenizer"]
  (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="has 1 text encoders and 0 tokenizers"):
    TextToImage(tmp_path / "model")


def test_files(stable, fsb, tmp_path):
  arguments = ("--model", str(stable[0]), "--prompt", PROMPTS[0], "--steps", "2", "--seed", "3", "--count", "2")
  status, out, _ = fsb("draw", *arguments, "--scheduler", "euler_ancestral", "--output", "out")
  assert status == 0
  assert out.split() == ["out/0001.png", "out/0002.png", "out/sheet-0001.png"]
  told = Image.open("out/0002.png").text
  assert told["prompt"] == PROMPTS[0] and told["seed"] == "4" and told["steps"] == "2"
  assert told["scheduler"] == "euler_ancestral"
  assert told["model"] == str(stable[0]) and told["size"] == "16x16" and "version" in told
  assert Image.open("out/sheet-0001.png").size == (2 * SIDE, SIDE)
  drawing = Drawing(image=Image.new("RGB", (4, 4)), seed=1, settings={})
  before = (tmp_path / "out/0001.png").read_bytes()
  assert write_drawing(drawing, tmp_path / "out").name == "0003.png"
  assert (tmp_path / "out/0001.png").read_bytes() == before


def test_what_is_drawn_stays_when_a_later_one_fails(stable, fsb, monkeypatch):
  """Batches are of two."""
  monkeypatch.setattr(drawing_files, "TextToImage", lambda *_, **__: stable[2])
  batches = iter([np.zeros((2, SIDE, SIDE, 3))])

  def draw(*_, **__):
    if (batch := next(batches, None)) is None:
      raise UserError("not made of numbers")
    return batch

  monkeypatch.setattr(text_to_image, "generate_images", draw)
  status, _, _ = fsb("draw", "--model", "any", "--prompt", PROMPTS[0], "--count", "3", "--output", "out")
  assert status == 2 and sorted(path.name for path in Path("out").iterdir()) == ["0001.png", "0002.png"]


def test_options_on_the_command_line(stable, fsb, monkeypatch):
  made, kept = [], []
  monkeypatch.setattr(host_memory, "keep_freed_memory", lambda: kept.append(True))

  def load(model, **options):
    made.append(options)
    return stable[2]

  monkeypatch.setattr(drawing_files, "TextToImage", load)
  size = ("--size", f"{SIDE + 8}x{SIDE}", "--scheduler", DRAWS["scheduler"], "--steps", "2", "--seed", "3")
  arguments = ("draw", "--model", "any", "--prompt", PROMPTS[0], *size)
  assert fsb(*arguments, "--output", "whole")[0] == 0
  assert fsb(*arguments, "--tiled", "--dtype", "bfloat16", "--variant", "fp16", "--output", "tiles")[0] == 0
  assert fsb(*arguments, "--guidance-rescale", "0.7", "--batch-size", "2", "--output", "rescaled")[0] == 0
  # Its steps allocate as much as those of training do.
  assert kept == [True] * 3
  assert made == [
    dict(batch_size=batch_size, lora={}, dtype=dtype, param_dtype=dtype, variant=variant)
    for dtype, variant, batch_size in (("float32", None, 4), ("bfloat16", "fp16", 4), ("float32", None, 2))
  ]
  whole, tiles, rescaled = (
    np.float32(Image.open(f"{folder}/0001.png")) for folder in ("whole", "tiles", "rescaled")
  )
  assert np.abs(whole - tiles).max() > 1
  assert np.array_equal(pixels(stable[2](PROMPTS[0], seed=3, tiled=True, **DRAWS, **SIZE)), tiles[None])
  assert np.abs(whole - rescaled).max() > 1
  assert np.array_equal(pixels(stable[2](PROMPTS[0], seed=3, guidance_rescale=0.7, **DRAWS, **SIZE)), rescaled[None])


@pytest.mark.slow
def test_sixteen_bits_draw_nearly_the_same(stable, fixed):
  rounded = TextToImage(stable[0], dtype="bfloat16", param_dtype="bfloat16")
  drawn, expected = (draw(PROMPTS, steps=2, noise=fixed.noise, **SIZE) for draw in (rounded, stable[2]))
  assert 0 < np.abs(pixels(drawn) - pixels(expected)).mean() < 5


@pytest.mark.parametrize(
  "arguments, words",
  [
    ((), "nothing to draw: give --prompt"),
    (("--prompt", "猫", "--size", "512"), "--size 512 must be WIDTHxHEIGHT"),
    (("--prompt", "猫", "--dtype", "float8"), "unknown dtype 'float8'"),
    (("--prompt", "猫", "--image", "none.png"), "--image none.png is not a file"),
    (("--prompt", "猫", "--model", "nowhere/at/all"), "neither a folder nor a Hub id"),
  ],
)
def test_mistakes_on_the_command_line(fsb, arguments, words):
  status, _, error = fsb("draw", "--model", "x/y", *arguments)
  assert status == 2 and words in error and error.count("\n") == 1


def test_contact_sheets_are_not_too_wide():
  sheet = contact_sheet([Image.new("RGB", (1024, 512))] * 5)
  assert sheet.size == (3 * 533, 2 * 266)
