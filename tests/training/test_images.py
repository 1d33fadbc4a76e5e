"""Batches of images: what they hold, in which order, and how images are cut."""

import numpy as np
import pytest
import tiny_drawing
from PIL import Image

from fsb_jax import encodings
from fsb_jax.errors import UserError
from fsb_jax.tasks.image_captions import CaptionedImage, image_caption_task
from fsb_jax.training.images import ImageLoader, Preparation, cached_latents


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  data = tiny_drawing.images(folder / "images")
  others = tiny_drawing.images(folder / "others", count=5, words="白")
  encodings.bert_tokenizer_from_characters(tiny_drawing.WORDS + "色", folder / "tokenizer")
  images, class_images = (image_caption_task("images", {"train": each}).examples("train") for each in (data, others))
  return images, class_images, encodings.load_tokenizer(folder / "tokenizer")


def loader(made, batch_size=4, **options):
  images, _, tokenizer = made
  return ImageLoader(images, tokenizer, options.pop("preparation", Preparation(16)), 8, batch_size, **options)


def test_an_epoch_has_every_image_once_with_its_caption(made):
  batches = list(loader(made).batches(0))
  assert len(batches) == loader(made).steps_per_epoch() == 2
  ids = np.concatenate([batch["example_ids"] for batch in batches])
  weights = np.concatenate([batch["weights"] for batch in batches])
  assert sorted(ids[weights > 0]) == list(range(6)) and (ids[weights == 0] == -1).all() and len(ids) == 8
  tokenizer = made[2]
  for batch in batches:
    assert batch["pixel_values"].shape == (4, 16, 16, 3) and batch["input_ids"].shape == (4, 8)
    for row, example in enumerate(batch["example_ids"]):
      if example >= 0:
        text = tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True).replace(" ", "")
        assert text == made[0][example].caption
        np.testing.assert_array_equal(batch["pixel_values"][row], Preparation(16)(made[0][example]))
        assert batch["attention_mask"][row].sum() == 4


def test_the_stream_goes_on_anywhere_and_hosts_have_their_rows(made):
  options = dict(seed=3, preparation=Preparation(16, random_crop=True, flip=True))
  whole = list(loader(made, **options).stream(0, 6))
  for start in (1, 4):
    for batch, again in zip(whole[start:], loader(made, **options).stream(start, 6), strict=True):
      for name, array in batch.items():
        np.testing.assert_array_equal(again[name], array)
  part = next(loader(made, rows=[1, 3], **options).stream(2, 3))
  np.testing.assert_array_equal(part["pixel_values"], whole[2]["pixel_values"][[1, 3]])
  orders = [np.concatenate([batch["example_ids"] for batch in whole[i : i + 2]]).tolist() for i in (0, 2, 4)]
  assert len({*map(tuple, orders)}) == 3
  # Drawn anew in every epoch.
  again = [batch["pixel_values"][batch["example_ids"] == 5] for batch in whole]
  first, second, *_ = (pixels[0] for pixels in again if len(pixels))
  assert not np.array_equal(first, second)


def test_half_of_a_batch_is_of_the_class(made):
  batches = list(loader(made, class_images=made[1]).batches(0))
  assert len(batches) == 3
  for batch in batches:
    np.testing.assert_array_equal(batch["prior"], [0, 0, 1, 1])
    assert (batch["example_ids"][:2] < 6).all() and (batch["example_ids"][2:] >= 6).all()
  own = np.concatenate([batch["example_ids"][:2] for batch in batches])
  beside = np.concatenate([batch["example_ids"][2:] for batch in batches])
  # All of the subject; of the class the first pass, and one of the next.
  assert sorted(own) == list(range(6)) and {*beside} == set(range(6, 11)) and len(beside) == 6
  with pytest.raises(UserError, match="BATCH_SIZE 3 must be even"):
    loader(made, 3, class_images=made[1])


def gradient_image(tmp_path, width, height):
  """Red tells the column, green the row."""
  y, x = np.mgrid[:height, :width]
  path = tmp_path / "gradient.png"
  Image.fromarray(np.stack([x * 4, y * 4, 0 * x], axis=-1).astype(np.uint8)).save(path)
  return CaptionedImage(str(path), "", path.read_bytes)


def test_images_are_cut_in_the_middle_or_anywhere(tmp_path):
  image = gradient_image(tmp_path, 40, 16)
  middle = np.round((Preparation(16)(image) + 1) * 127.5)
  np.testing.assert_array_equal(middle[0, :, 0], np.arange(12, 28) * 4)
  np.testing.assert_array_equal(middle[:, 0, 1], np.arange(16) * 4)
  random = np.random.default_rng(0)
  lefts, flipped = set(), 0
  for _ in range(300):
    row = np.round((Preparation(16, random_crop=True, flip=True)(image, random)[0, :, 0] + 1) * 127.5) / 4
    flipped += row[0] > row[1]
    lefts.add(int(row.min()))
    np.testing.assert_array_equal(np.sort(row), np.arange(row.min(), row.min() + 16))
  assert lefts == set(range(25)) and 100 < flipped < 200
  # The shorter side is made as long as asked for.
  tall = gradient_image(tmp_path, 32, 48)
  assert Preparation(16)(tall).shape == (16, 16, 3)


def test_a_damaged_image_is_named(made, tmp_path):
  path = tmp_path / "broken.png"
  path.write_bytes(made[0][0].read()[:60])
  broken = CaptionedImage(str(path), "红色", path.read_bytes)
  images = [*made[0], broken]
  with pytest.raises(UserError, match=r"broken\.png"):
    list(ImageLoader(images, made[2], Preparation(16), 8, 7).batches(0))


def test_latents_are_made_once(made, tmp_path):
  calls = []

  def encode(pixels):
    calls.append(len(pixels))
    mean = pixels[:, ::2, ::2, :1]
    return np.concatenate([mean, 0 * mean + 0.5], axis=-1)

  served = loader(made)
  latents = cached_latents(served, encode, "one", tmp_path, batch_size=4)
  assert calls == [4, 4] and latents.shape == (6, 8, 8, 2)
  np.testing.assert_array_equal(latents[5, ..., 0], Preparation(16)(made[0][5])[::2, ::2, 0])
  cached_latents(loader(made), encode, "one", tmp_path, batch_size=4)
  assert len(calls) == 2
  # Another autoencoder, or other images.
  cached_latents(loader(made), encode, "two", tmp_path, batch_size=6)
  assert len(calls) == 3
  cached_latents(loader(made, preparation=Preparation(8)), encode, "two", tmp_path, batch_size=6)
  assert len(calls) == 4
  latents = served.latents = cached_latents(loader(made), encode, "two", tmp_path, batch_size=6)
  batch = next(served.batches(0))
  assert "pixel_values" not in batch and (batch["latent_deviation"] == 0.5).all()
  np.testing.assert_array_equal(batch["latent_mean"][..., 0], latents[batch["example_ids"], ..., 0])
