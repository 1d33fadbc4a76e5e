"""Images to arrays, as CLIP's published processor makes them; Pillow is imported when the first one is read."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsb_jax.errors import UserError

_BICUBIC = 3
_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageForm:
  """What is done with an image; the defaults are those of OpenAI's CLIP.

  Attributes:
    resized: pixels of the shorter edge, or (height, width); None leaves the image as it is.
    cropped: (height, width) of the middle that is kept, black where there is no more image; None for all of it.
    resample: the filter of the resizing, by Pillow's number.
    scale: what numbers of 0 to 255 are multiplied by.
    mean: of each channel, subtracted after that; None for none.
    deviation: of each channel, what is left is divided by; None for none.
  """

  resized: int | tuple[int, int] | None = 224
  cropped: tuple[int, int] | None = (224, 224)
  resample: int = _BICUBIC
  scale: float = 1 / 255
  mean: tuple[float, ...] | None = (0.48145466, 0.4578275, 0.40821073)
  deviation: tuple[float, ...] | None = (0.26862954, 0.26130258, 0.27577711)

  def __post_init__(self):
    sizes = [x for size in (self.resized, self.cropped) for x in _sizes(size)]
    if not all(isinstance(x, int) and x > 0 for x in sizes):
      raise UserError(f"images are resized to {self.resized} and cropped to {self.cropped}; give numbers above 0")


def _sizes(size: int | tuple[int, ...] | None) -> tuple[int, ...]:
  return () if size is None else size if isinstance(size, tuple) else (size,)


def image_form(folder: Path | str, image_size: int = 224) -> ImageForm:
  """How a checkpoint's images are made.

  Args:
    folder: in the Hub's layout; without a preprocessor_config.json or processor_config.json it is OpenAI's form.
    image_size: what its model takes, for a folder that does not say.

  Raises:
    UserError: the file is no JSON object, or asks for what we do not do.
  """
  default = ImageForm(resized=image_size, cropped=(image_size, image_size))
  path = next((path for path in (Path(folder) / name for name in _FILES) if path.is_file()), None)
  if path is None:
    return default
  try:
    read = json.loads(path.read_text("utf-8"))
    read = read.get("image_processor", read)
    return _form_from_hf(read, default)
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise UserError(f"{path} does not say how images are made: {error}") from error


def _form_from_hf(hf: Mapping[str, Any], default: ImageForm) -> ImageForm:
  def asked(step: str) -> bool:
    return hf.get(step, True)

  size, crop = hf.get("size", default.resized), hf.get("crop_size", default.cropped)
  if isinstance(size, Mapping):
    size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
  if isinstance(crop, Mapping):
    crop = crop["height"], crop["width"]
  return ImageForm(
    resized=size if asked("do_resize") else None,
    cropped=((crop, crop) if isinstance(crop, int) else tuple(crop)) if asked("do_center_crop") else None,
    resample=hf.get("resample", default.resample),
    scale=hf.get("rescale_factor", default.scale) if asked("do_rescale") else 1.0,
    mean=tuple(hf.get("image_mean", default.mean)) if asked("do_normalize") else None,
    deviation=tuple(hf.get("image_std", default.deviation)) if asked("do_normalize") else None,
  )


def encode_images(images: Sequence[Any], form: ImageForm | None = None) -> np.ndarray:
  """Pixels of images as a model takes them.

  Args:
    images: paths of files, or Pillow's images. What a file says of its orientation is obeyed; an image of Pillow's is
      taken as it lies.
    form: what is done with them; OpenAI's if not given.

  Returns:
    float32 `[images, height, width, 3]`, bit for bit that of transformers' `CLIPImageProcessorPil`.

  Raises:
    UserError: a file is no image, is damaged or too large; or the form leaves images of several sizes.
  """
  form = form or ImageForm()
  arrays = [_pixels(image, form) for image in images]
  shapes = sorted({array.shape[:2] for array in arrays})
  if len(shapes) > 1:
    raise UserError(f"images of several sizes ({shapes[0]}, {shapes[1]}) make no batch; crop them to one")
  return np.stack(arrays) if arrays else np.zeros((0, *(form.cropped or (0, 0)), 3), np.float32)


def load_image(path: Path | str) -> Any:
  """An image file as Pillow's image in RGB, upright: the first picture of several, what is transparent on white.

  Raises:
    UserError: there is no such file, it is no image, or it is damaged or too large.
  """
  return _loaded(path, _rgb)


def load_mask(path: Path | str) -> Any:
  """An image file in shades of grey; otherwise as `load_image`, but what is transparent has the colour beneath."""
  return _loaded(path, lambda image: image.convert("L"))


def _loaded(path: Path | str, convert: Callable[[Any], Any]) -> Any:
  from PIL import Image, ImageOps, UnidentifiedImageError

  try:
    with Image.open(path) as image:
      return convert(ImageOps.exif_transpose(image))
  except Image.DecompressionBombError as error:
    raise UserError(f"{path} has more pixels than fsb_jax reads ({2 * Image.MAX_IMAGE_PIXELS:,}); shrink it") from error
  except UnidentifiedImageError as error:
    raise UserError(f"{path} is no image that Pillow knows; give a JPEG, PNG, WebP, ... file") from error
  except FileNotFoundError as error:
    raise UserError(f"there is no image {path}") from error
  # Pillow's decoders raise whatever they stumble over in a damaged file.
  except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
    raise UserError(f"the image {path} cannot be read: {error}") from error


def _rgb(image: Any) -> Any:
  from PIL import Image

  if "A" not in image.getbands() and image.info.get("transparency") is None:
    return image.convert("RGB")
  white = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _pixels(image: Any, form: ImageForm) -> np.ndarray:
  name, image = (image, load_image(image)) if isinstance(image, str | Path) else ("an image", _rgb(image))
  if form.resized is not None:
    image = image.resize(_resized(name, image.size, form.resized), resample=form.resample)
  if form.cropped is not None:
    height, width = form.cropped
    # Beyond the image Pillow crops black.
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
  # As wide as the processor's numbers are at every step, so that the last bit is the same.
  array = (np.asarray(image).astype(np.float64) * form.scale).astype(np.float32)
  if form.mean is not None:
    array = (array - np.float32(form.mean)) / np.float32(form.deviation)
  return array


def _resized(name: Any, size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
  """(width, height) that an image of `size` is resized to."""
  from PIL import Image

  if not isinstance(wanted, int):
    return wanted[1], wanted[0]
  short, long = min(size), max(size)
  # Cut, not rounded, as torchvision does.
  longer = int(wanted * long / short)
  if wanted * longer > 2 * Image.MAX_IMAGE_PIXELS:
    raise UserError(f"{name} is {size[0]} x {size[1]} pixels, too narrow to be resized to {wanted}; cut it to a part")
  return (wanted, longer) if size[0] <= size[1] else (longer, wanted)
