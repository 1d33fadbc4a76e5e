"""Vectors of texts and images in one space: of a CLIP, or of a text tower that was trained beside another's images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsb_jax import checkpoints, encodings
from fsb_jax.errors import UserError
from fsb_jax.pretrained import Loaded, from_pretrained, require_tokenizer

_LENGTH_MULTIPLE = 16
_FAMILIES = ("clip", "taiyi_clip")


class ImageText:
  """Reads texts and images.

  Taiyi-CLIP was released in two forms, which are alike here: a whole CLIP, and a text tower alone, a BERT that
  classifies texts whose logits are the text's vector; the images are then read by the CLIP it was trained beside.

  Args:
    model: a CLIP's folder or Hub id; or that of a text tower alone, with `image_model`.
    image_model: the CLIP whose images the text tower was trained with, such as "openai/clip-vit-base-patch32"; only for
      a text tower alone.
    max_length: longest text in tokens; the model's own limit if not given.
    batch_size: texts or images at a time.
    **options: of `from_pretrained`, such as dtype= or mesh=.

  Attributes:
    scale: what cosines are multiplied by before a softmax.

  Raises:
    UserError: a model is none of these, or the two do not belong together.
  """

  def __init__(
    self, model: str | Path, *, image_model: str | Path | None = None, max_length: int | None = None,
    batch_size: int = 32, **options: Any,
  ):  # fmt: skip
    loaded = from_pretrained(model, **options)
    alone = loaded.metadata.head == "sequence_classification"
    if not alone and loaded.metadata.family not in _FAMILIES:
      raise UserError(f"{model} is a {loaded.metadata.family} with head {loaded.metadata.head}, and no CLIP")
    if alone and image_model is None:
      raise UserError(
        f"{model} reads texts alone; give image_model=, the CLIP that its images are of, such as "
        "openai/clip-vit-base-patch32"
      )
    if not alone and image_model is not None:
      raise UserError(f"{model} reads images itself; leave image_model out")
    require_tokenizer(loaded, model)
    images = loaded
    if alone:
      images = from_pretrained(image_model, **{**options, "load_tokenizer": False})
      if images.metadata.family not in _FAMILIES:
        raise UserError(f"image_model {image_model} is a {images.metadata.family}, and no CLIP")
      if loaded.metadata.num_labels != images.config.projection_dim:
        raise UserError(
          f"{model} makes vectors of {loaded.metadata.num_labels} numbers and {image_model} of "
          f"{images.config.projection_dim}: they were not trained together"
        )
    self.scale = float(np.exp(np.asarray(images.params["logit_scale"], np.float32)))
    self.tokenizer = loaded.tokenizer
    self.form = encodings.image_form(checkpoints.home(images.folder), images.config.vision.image_size)
    self._batch_size = batch_size
    limit = loaded.config.positions.usable_length
    if max_length is not None and not 2 <= max_length <= limit:
      raise UserError(f"max_length={max_length} must be between 2 and {limit}, what {model} has positions for")
    self._max_length = max_length or limit
    self._texts = jax.jit(_text_reader(loaded, alone))
    self._images = jax.jit(lambda params, pixels: _features(images, params, "get_image_features", pixel_values=pixels))
    self._params = loaded.params, images.params

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Vectors of length one, float32 `[texts, projection]`."""
    return self._batched(self._read_texts, texts)

  def images(self, images: Sequence[Any]) -> np.ndarray:
    """The same of images, paths of files or Pillow's."""
    return self._batched(self._read_images, images)

  def _batched(self, read: Callable[[Sequence], jax.Array], items: Sequence) -> np.ndarray:
    if isinstance(items, str | Path) or not len(items):
      raise UserError("give a list of at least one text or image")
    first = range(0, len(items), self._batch_size)
    vectors = np.concatenate([np.asarray(read(items[i : i + self._batch_size])) for i in first])
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

  def _read_texts(self, texts: Sequence[str]) -> jax.Array:
    encoded = self.tokenizer(list(texts), truncation=True, max_length=self._max_length)
    ids = encoded["input_ids"]
    # Few shapes, few compilations: rows to a power of two, lengths to a multiple.
    longest = max(map(len, ids))
    length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self._max_length)
    arrays = {name: np.zeros((_rows(texts), length), np.int32) for name in ("input_ids", "attention_mask")}
    arrays["input_ids"][:] = self.tokenizer.pad_token_id or 0
    for row, (tokens, mask) in enumerate(zip(ids, encoded["attention_mask"])):
      arrays["input_ids"][row, : len(tokens)] = tokens
      arrays["attention_mask"][row, : len(tokens)] = mask
    # A row of nothing but padding would see nothing.
    arrays["attention_mask"][len(texts) :, 0] = 1
    return self._texts(self._params[0], arrays)[: len(texts)]

  def _read_images(self, images: Sequence[Any]) -> jax.Array:
    pixels = encodings.encode_images(images, self.form)
    filled = np.concatenate([pixels, np.zeros((_rows(images) - len(images), *pixels.shape[1:]), np.float32)])
    return self._images(self._params[1], filled)[: len(images)]


def _rows(items: Sequence) -> int:
  return 1 << (len(items) - 1).bit_length()


def _text_reader(loaded: Loaded, alone: bool) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
  """(params, arrays) -> vectors of texts."""
  if not alone:
    return lambda params, arrays: _features(loaded, params, "get_text_features", **arrays)
  return lambda params, arrays: loaded.model.apply({"params": params}, **arrays).logits.astype(jnp.float32)


def _features(loaded: Loaded, params: Any, method: str, **arrays: jax.Array) -> jax.Array:
  return loaded.model.apply({"params": params}, **arrays, method=method).astype(jnp.float32)
