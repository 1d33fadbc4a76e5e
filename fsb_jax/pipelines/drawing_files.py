"""`fsb draw`: drawings as PNG files that hold what they were drawn from."""

import math
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fsb_jax.errors import UserError
from fsb_jax.pipelines.text_to_image import Drawing, TextToImage

_SHEET_WIDTH = 1600


def draw_to_folder(
  model: str, prompts: Sequence[str], folder: Path, *, size: str | None, batch_size: int = 4,
  lora: Mapping[str, float] = {}, dtype: str = "float32", variant: str | None = None, **options: Any,
) -> list[Path]:
  """Draws, and writes a file for every drawing and a contact sheet of several.

  Args:
    model: see `TextToImage`.
    prompts: what to draw.
    folder: where files go; it is made where it is missing, and no file in it is overwritten.
    size: "WIDTHxHEIGHT" in pixels.
    batch_size: see `TextToImage`.
    lora: see `TextToImage`.
    dtype: of activations and parameters.
    variant: see `TextToImage`.
    **options: of `TextToImage.__call__`.

  Returns:
    The files.
  """
  if not prompts:
    raise UserError("nothing to draw: give --prompt, once or several times")
  if size is not None:
    parts = re.fullmatch(r"(\d+)[xX×](\d+)", size)
    if parts is None:
      raise UserError(f"--size {size} must be WIDTHxHEIGHT, such as 512x512")
    options |= {"width": int(parts[1]), "height": int(parts[2])}
  for name in ("image", "mask"):
    if options.get(name) is not None and not Path(options[name]).is_file():
      raise UserError(f"--{name} {options[name]} is not a file")
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--output {folder} cannot be made: {error}") from error
  with warnings.catch_warnings():
    warnings.showwarning = lambda message, *_, **__: print(f"fsb: {message}", file=sys.stderr)
    draw = TextToImage(model, batch_size=batch_size, lora=lora, dtype=dtype, param_dtype=dtype, variant=variant)
    paths: list[Path] = []
    # One by one, for a hundred take hours: what is drawn is there, whatever happens to the rest.
    drawings = draw(
      prompts, on_step=_progress if sys.stderr.isatty() else None,
      on_drawing=lambda drawing: paths.append(write_drawing(drawing, folder)), **options,
    )  # fmt: skip
  if len(drawings) > 1:
    names = "\n".join(f"{path.name} {drawing.settings['prompt']}" for path, drawing in zip(paths, drawings))
    paths.append(_write(contact_sheet([drawing.image for drawing in drawings]), folder, "sheet-", {"files": names}))
  return paths


def write_drawing(drawing: Drawing, folder: Path) -> Path:
  """Writes a drawing to NUMBER.png, the first number that the folder does not have."""
  return _write(drawing.image, folder, "", {**drawing.settings, "seed": drawing.seed})


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
  """Images of one size beside each other, as many rows as columns or fewer, at most 1600 pixels wide."""
  columns = math.ceil(math.sqrt(len(images)))
  width = min(images[0].width, _SHEET_WIDTH // columns)
  height = round(images[0].height * width / images[0].width)
  sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
  for i, image in enumerate(images):
    sheet.paste(image.resize((width, height), Image.LANCZOS), (i % columns * width, i // columns * height))
  return sheet


def _write(image: Image.Image, folder: Path, prefix: str, settings: dict[str, Any]) -> Path:
  text = PngInfo()
  for name, value in settings.items():
    text.add_itxt(name, str(value))
  number = 1
  while True:
    path = folder / f"{prefix}{number:04d}.png"
    try:
      # Also where another run writes there at this moment.
      with path.open("xb") as file:
        image.save(file, "PNG", pnginfo=text)
      return path
    except FileExistsError:
      number += 1


def _progress(done: int, of: int) -> None:
  print(f"\rdrawing: step {done} of {of}", end="\n" if done == of else "", file=sys.stderr, flush=True)
