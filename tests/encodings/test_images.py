"""Images against transformers' own processor, bit for bit; and what is no image."""

import io
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fsb_jax.encodings import ImageForm, encode_images, image_form, load_image, load_mask
from fsb_jax.errors import UserError


def picture(width=90, height=61, mode="RGB", seed=0):
  random = np.random.default_rng(seed)
  # Smooth and noisy parts: the filter overshoots on either.
  noise = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
  noise[: height // 2] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
  return Image.fromarray(noise).convert(mode) if mode != "RGBA" else Image.fromarray(noise)


def theirs(images, **options):
  return np.moveaxis(CLIPImageProcessorPil(**options)(images, return_tensors="np")["pixel_values"], 1, -1)


SIZES = [(90, 61), (61, 90), (40, 40), (224, 224), (30, 200), (301, 300), (225, 1000)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_the_published_processor(size):
  got, expected = encode_images([picture(*size)]), theirs([picture(*size)])
  assert got.shape == (1, 224, 224, 3) and got.dtype == expected.dtype == np.float32
  np.testing.assert_array_equal(got, expected)
  # Not yet normalised, it is whole numbers.
  plain = ImageForm(scale=1.0, mean=None, deviation=None)
  resized = theirs([picture(*size)], do_rescale=False, do_normalize=False)
  assert resized.dtype == np.uint8 and len(np.unique(resized)) > 50
  np.testing.assert_array_equal(encode_images([picture(*size)], plain), resized)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_pixel_becomes_what_the_processor_makes_of_it(mode):
  image = Image.fromarray(np.arange(61 * 90, dtype=np.uint16).reshape(61, 90)) if mode == "I;16" else picture(mode=mode)
  if mode == "P":
    image.info["transparency"] = 3
  np.testing.assert_array_equal(encode_images([image]), theirs([image]))


@pytest.mark.parametrize(
  "options,form",
  [
    (dict(size={"shortest_edge": 50}, crop_size={"height": 70, "width": 41}), ImageForm(resized=50, cropped=(70, 41))),
    (dict(size={"height": 33, "width": 44}, do_center_crop=False), ImageForm(resized=(33, 44), cropped=None)),
    (dict(do_resize=False, resample=2), ImageForm(resized=None)),
    (dict(resample=2), ImageForm(resample=2)),
    (dict(do_normalize=False, do_rescale=False), ImageForm(scale=1.0, mean=None, deviation=None)),
    (dict(image_mean=[0.5] * 3, image_std=[0.2, 0.3, 0.4]), ImageForm(mean=(0.5,) * 3, deviation=(0.2, 0.3, 0.4))),
  ],
  ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_a_folder_says_is_done(tmp_path, options, form):
  CLIPImageProcessorPil(**options).save_pretrained(tmp_path)
  read = image_form(tmp_path)
  np.testing.assert_array_equal(encode_images([picture()], read), theirs([picture()], **options))
  np.testing.assert_array_equal(encode_images([picture()], form), theirs([picture()], **options))


def test_old_and_new_files_and_none(tmp_path):
  assert image_form(tmp_path) == ImageForm()
  assert image_form(tmp_path, 336) == ImageForm(resized=336, cropped=(336, 336))
  old = {"crop_size": 30, "size": 40, "resample": 2, "do_resize": True, "image_mean": [0.1, 0.2, 0.3]}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
  expected = ImageForm(resized=40, cropped=(30, 30), resample=2, mean=(0.1, 0.2, 0.3))
  assert image_form(tmp_path) == expected
  (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
  assert image_form(tmp_path) == expected
  (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": old, "processor_class": "x"}))
  assert image_form(tmp_path) == expected


@pytest.mark.parametrize("text", ["{", "[1]", '{"size": {"width": 3}}', '{"size": "large"}', '{"crop_size": 0}'])
def test_a_file_that_does_not_say_is_named(tmp_path, text):
  (tmp_path / "preprocessor_config.json").write_text(text)
  with pytest.raises(UserError):
    image_form(tmp_path)


def test_files_are_upright_still_and_on_white(tmp_path):
  upright = picture(40, 30)
  turned = upright.transpose(Image.Transpose.ROTATE_90)
  exif = Image.Exif()
  exif[0x0112] = 6  # is shown turned to the right
  turned.save(tmp_path / "turned.png", exif=exif)
  np.testing.assert_array_equal(load_image(tmp_path / "turned.png"), upright)
  frames = [picture(20, 20, seed=seed).convert("P") for seed in range(3)]
  frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(load_image(tmp_path / "moving.gif"), frames[0].convert("RGB"))
  Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
  assert (np.asarray(load_image(tmp_path / "clear.png")) == 255).all()
  # A path and its image are the same.
  expected = theirs([Image.open(tmp_path / "clear.png")])
  np.testing.assert_array_equal(encode_images([str(tmp_path / "clear.png")]), expected)


def test_masks_are_upright_and_keep_the_colour_beneath_what_is_transparent(tmp_path):
  mask = Image.new("LA", (6, 4), (0, 0))
  mask.paste((255, 255), (0, 0, 3, 4))
  exif = Image.Exif()
  exif[0x0112] = 6
  mask.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "mask.png", exif=exif)
  loaded = load_mask(tmp_path / "mask.png")
  assert loaded.mode == "L"
  np.testing.assert_array_equal(np.asarray(loaded), np.repeat(np.uint8([[255, 255, 255, 0, 0, 0]]), 4, axis=0))


def png_of_size(width, height):
  """A file of few bytes that says it has so many pixels."""
  header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
  data = b"IDAT" + zlib.compress(b"\0")
  chunks = b"".join((len(x) - 4).to_bytes(4) + x + zlib.crc32(x).to_bytes(4) for x in (header, data, b"IEND"))
  return b"\x89PNG\r\n\x1a\n" + chunks


def damaged(kind):
  whole = io.BytesIO()
  picture().save(whole, "JPEG" if kind == "jpeg" else "PNG")
  return whole.getvalue()[: len(whole.getvalue()) // 2]


@pytest.mark.parametrize(
  "name,content,message",
  [
    ("note.txt", "不是图片".encode(), "note.txt is no image that Pillow knows"),
    ("empty.png", b"", "empty.png is no image that Pillow knows"),
    ("cut.jpg", damaged("jpeg"), "the image .*cut.jpg cannot be read"),
    ("cut.png", damaged("png"), "the image .*cut.png cannot be read"),
    ("bomb.png", png_of_size(60000, 60000), "bomb.png has more pixels than fsb_jax reads"),
    (None, None, "there is no image .*nowhere.png"),
  ],
)
def test_what_is_no_image_is_one_sentence(tmp_path, name, content, message):
  path = tmp_path / (name or "nowhere.png")
  if name:
    path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    encode_images([path])
  assert "\n" not in str(error.value)


def test_a_folder_is_no_image(tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    load_image(tmp_path)


def test_images_that_make_no_batch():
  with pytest.raises(UserError, match=r"several sizes \(\(61, 90\), \(90, 61\)\)"):
    encode_images([picture(), picture(61, 90)], ImageForm(resized=None, cropped=None))
  with pytest.raises(UserError, match="an image is 9000000 x 1 pixels, too narrow to be resized to 224"):
    encode_images([Image.new("RGB", (9000000, 1))])
  with pytest.raises(UserError, match="give numbers above 0"):
    ImageForm(resized=0)
  assert encode_images([]).shape == (0, 224, 224, 3)


def test_pillow_is_imported_when_an_image_is_read():
  code = "import sys; from fsb_jax import encodings; encodings.ImageForm(); print('PIL' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
  assert done.stdout.strip() == "False", done.stderr
