"""Batches of images with captions, as a pure function of (seed, epoch, step)."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from fsb_jax import checkpoints
from fsb_jax.encodings.images import ImageForm, encode_images, load_image
from fsb_jax.errors import UserError
from fsb_jax.tasks.image_captions import CaptionedImage
from fsb_jax.training.batching import FILLING, Batching, Plan
from fsb_jax.training.data import Loader
from fsb_jax.training.reporting import say

_BILINEAR = 2
# From -1 to 1.
_CENTRED = ImageForm(resized=None, cropped=None, mean=(0.5,) * 3, deviation=(0.5,) * 3)
# A stream of random numbers beside those of `Batching`.
_AUGMENTATION = 1 << 32


@dataclasses.dataclass(frozen=True)
class Preparation:
  """How an image becomes a square of pixels: its shorter side is made `size` long, then it is cut.

  Attributes:
    size: in pixels.
    random_crop: cut at a place drawn anew every time, else in the middle.
    flip: every other time left and right are exchanged.
  """

  size: int
  random_crop: bool = False
  flip: bool = False

  @property
  def draws(self) -> bool:
    """Whether an image is another one every time."""
    return self.random_crop or self.flip

  def __call__(self, image: CaptionedImage, random: np.random.Generator | None = None) -> np.ndarray:
    """float32 `[size, size, 3]` from -1 to 1; UserError where it cannot be read."""
    from PIL import Image

    picture, size = load_image(image.open()), self.size
    # Cut and rounded as torchvision does.
    width, height = (size * side // min(picture.size) for side in picture.size)
    picture = picture.resize((width, height), resample=_BILINEAR)
    spare = np.array([width - size, height - size])
    left, top = np.round(spare / 2)
    if self.random_crop:
      left, top = random.integers(0, spare + 1)
    picture = picture.crop((int(left), int(top), int(left) + size, int(top) + size))
    if self.flip and random.integers(2):
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return encode_images([picture], _CENTRED)[0]


class _Pairs:
  """The plans of two splits side by side: the first rows of a batch are of the one, the rest of the other."""

  def __init__(self, first: Batching, second: Batching, offset: int):
    self.steps = first.steps
    self._parts, self._offset = (first, second), offset

  def plan(self, epoch: int) -> Plan:
    """See `Batching`."""
    first, second = (part.plan(epoch) for part in self._parts)
    return Plan(np.concatenate([first.rows, second.rows + self._offset], axis=1).astype(np.int32), first.buckets)

  def prepare(self, epoch: int) -> None:
    """See `Batching`."""
    for part in self._parts:
      part.prepare(epoch)


class ImageLoader(Loader):
  """Serves images with captions in batches of one shape, as `Loader` serves texts.

  A batch has `input_ids` and `attention_mask` int32 `[batch, length]`, `weights` and `example_ids` as there, and either
  `pixel_values` float32 `[batch, size, size, 3]` or, once `latents` are set, `latent_mean` and `latent_deviation`
  `[batch, height, width, channels]`. With images of a class beside those of the subject, half of a batch is of either,
  and `prior` float32 `[batch]` is 1 for those of the class.

  Attributes:
    latents: `[images, height, width, 2 * channels]`, means and deviations of all images; None to serve pixels.
  """

  head, label_names, label_slice = "denoising", (), (0, 0)

  def __init__(
    self,
    images: Sequence[CaptionedImage],
    tokenizer: Any,
    preparation: Preparation,
    caption_length: int,
    batch_size: int,
    *,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    class_images: Sequence[CaptionedImage] = (),
  ):
    """Encodes the captions; images are read when their batch comes.

    Args:
      images: to learn from.
      tokenizer: of the captions.
      preparation: of the images.
      caption_length: in tokens; shorter captions are padded, longer ones cut.
      batch_size: images in a batch, over all hosts.
      seed: of the order and of what is drawn of the images.
      rows: see `Loader`.
      class_images: others of the same class, half of every batch; none where empty.

    Raises:
      UserError: an argument does not fit.
    """
    if class_images and batch_size % 2:
      raise UserError(f"BATCH_SIZE {batch_size} must be even: half of it are images of the class")
    self.batch_size, self._seed, self._shuffle = batch_size, seed, True
    self._rows = np.arange(batch_size) if rows is None else np.array(rows, np.int64)
    self._images, self._own = [*images, *class_images], len(images)
    self.num_examples, self.buckets, self.waited = len(self._images), (caption_length,), 0.0
    self._preparation, self.latents = preparation, None
    encoded = tokenizer(
      [image.caption for image in self._images], padding="max_length", max_length=caption_length, truncation=True,
      return_attention_mask=True,
    )  # fmt: skip
    self._ids, self._mask = (np.array(encoded[name], np.int32) for name in ("input_ids", "attention_mask"))

    def batching(count, size, steps=None):
      return Batching(
        np.full(count, caption_length), self.buckets, size, shuffle=True, seed=seed, member_sizes=[count],
        member_counts=[count if steps is None else steps * size],
      )  # fmt: skip

    share = batch_size // 2 if class_images else batch_size
    self._batching = batching(len(images), share)
    if class_images:
      beside = batching(len(class_images), share, self._batching.steps)
      self._batching = _Pairs(self._batching, beside, len(images))

  @functools.cached_property
  def digest(self) -> str:
    """sha256 of everything that decides the batches; see `Loader`."""
    settings = (self._preparation, self.batch_size, self._seed, self._own, self.image_digest)
    found = hashlib.sha256(repr(settings).encode())
    for array in (self._ids, self._mask):
      found.update(np.ascontiguousarray(array))
    return found.hexdigest()

  @functools.cached_property
  def image_digest(self) -> str:
    """sha256 of the image files and of their size in pixels."""
    found = hashlib.sha256(str(self._preparation.size).encode())
    with futures.ThreadPoolExecutor(8) as pool:
      for one in pool.map(lambda image: hashlib.sha256(image.read()).digest(), self._images):
        found.update(one)
    return found.hexdigest()

  @property
  def captions(self) -> list[str]:
    """Of the images to learn from."""
    return [image.caption for image in self._images[: self._own]]

  def pixels(self, index: int) -> np.ndarray:
    """An image as it is where nothing is drawn, `[size, size, 3]`."""
    return dataclasses.replace(self._preparation, random_crop=False, flip=False)(self._images[index])

  def raw(self, index: int) -> dict:
    """Where an image lies, and its caption; `index` is one of `example_ids`."""
    return {"image": self._images[index].where, "caption": self._images[index].caption}

  def _batch(self, planned: np.ndarray, length: int, epoch: int) -> dict[str, np.ndarray]:
    del length
    example_ids = planned[self._rows]
    filling = example_ids == FILLING
    rows = np.where(filling, planned[0], example_ids)
    batch = {"input_ids": self._ids[rows], "attention_mask": self._mask[rows]}
    if self.latents is not None:
      batch["latent_mean"], batch["latent_deviation"] = np.split(self.latents[rows], 2, axis=-1)
    else:
      batch["pixel_values"] = np.stack([self._preparation(self._images[i], self._random(epoch, i)) for i in rows])
    if self._own < self.num_examples:
      batch["prior"] = (rows >= self._own).astype(np.float32)
    return {**batch, "weights": (~filling).astype(np.float32), "example_ids": example_ids}

  def _random(self, epoch: int, example: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[self._seed, epoch], counter=[0, 0, int(example), _AUGMENTATION]))


def cached_latents(
  loader: ImageLoader, encode: Callable[[np.ndarray], np.ndarray], source: str, folder: Path, batch_size: int
) -> np.ndarray:
  """What an autoencoder makes of all images of a loader, made once and then read from `folder`/latents.npy.

  Args:
    loader: of images that are the same every time.
    encode: `[batch_size, size, size, 3]` -> `[batch_size, height, width, 2 * channels]`.
    source: says which autoencoder it is.
    folder: of the run.
    batch_size: images at a time.

  Returns:
    float32 `[images, height, width, 2 * channels]`, mapped from the file.
  """
  path, facts = folder / "latents.npy", folder / "latents.json"
  wanted = {"images": loader.image_digest, "autoencoder": source}
  if not (path.is_file() and facts.is_file() and checkpoints.read_json(facts) == wanted):
    say(f"latents of {loader.num_examples:,} images")
    facts.unlink(missing_ok=True)
    target = None
    for first in range(0, loader.num_examples, batch_size):
      numbers = range(first, min(first + batch_size, loader.num_examples))
      pixels = np.stack([loader.pixels(i) for i in numbers])
      made = encode(np.pad(pixels, [(0, batch_size - len(pixels)), *[(0, 0)] * 3]))[: len(pixels)]
      if target is None:
        target = np.lib.format.open_memmap(path, "w+", np.float32, (loader.num_examples, *made.shape[1:]))
      target[first : first + len(made)] = made
    target.flush()
    # Last: without it the file does not count.
    checkpoints.write_json(facts, wanted)
  return np.load(path, mmap_mode="r")
