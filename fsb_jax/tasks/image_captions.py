"""Images with captions, from a folder, JSON lines or TFRecords, to train models on that draw."""

import dataclasses
import functools
import glob
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, read_json_lines
from fsb_jax.tasks.text_task import require_task_name, text_of

# Bytes of a TFRecord before and after its data: its length and a checksum of that; a checksum of the data.
_HEAD, _TAIL = 12, 4
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class _NamedBytes(io.BytesIO):
  """A file in memory that messages call by its place."""

  def __init__(self, data: bytes, where: str):
    super().__init__(data)
    self._where = where

  def __str__(self) -> str:
    return self._where


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
  """An image, not read yet, and what it shows.

  Attributes:
    where: the file, and the place in it where it holds several.
    caption: in words.
    read: gives the bytes of the image file; UserError where they cannot be read.
  """

  where: str
  caption: str
  read: Callable[[], bytes]

  def open(self) -> io.BytesIO:
    """The image file, for Pillow; `str` of it is `where`."""
    return _NamedBytes(self.read(), self.where)


@dataclasses.dataclass(frozen=True)
class ImageCaptionTask:
  """Images with captions, under a name.

  Attributes:
    name: under which SeqIO knows it.
    summary: what the images are, in a few words.
    files: from split name to where its images come from.
    image_column: the field of a JSON line, or of a record, with the image.
    caption_column: the one with the caption.
    caption: that of every image of a folder, in place of files beside them; None for those.
  """

  name: str
  summary: str
  files: Mapping[str, str]
  image_column: str
  caption_column: str
  caption: str | None = None

  head = "denoising"

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    return tuple(self.files)

  def examples(self, split: str) -> list[CaptionedImage]:
    """The images of a split, in the order of their names or lines; UserError where one has no caption."""
    if split not in self.files:
      raise UserError(f"Image task {self.name} has no split {split!r}; its splits are {', '.join(self.splits)}.")
    path = self.files[split]
    if os.path.isdir(path):
      return list(_of_folder(Path(path), self.caption))
    if self.caption is not None:
      raise UserError(f"CAPTION is for a folder of images, which {path} is not; leave it out.")
    return list(_of_files(path, self.image_column, self.caption_column))


def image_caption_task(
  name: str,
  files: Mapping[str, str | os.PathLike | None],
  image_column: str = "image",
  caption_column: str = "caption",
  caption: str | None = None,
) -> ImageCaptionTask:
  """Declares images with captions as a SeqIO task that gives `image` (the file's bytes) and `caption`.

  Args:
    name: the task's name.
    files: from split name to a folder, where NAME.txt beside NAME.jpg (or .png, ...) is its caption, to a file of JSON
      lines, whose images are paths from its folder, or to TFRecords (a file or a pattern such as `part-*.tfrecord`),
      whose images are the bytes of image files; None for no such split. The contact sheets that `fsb draw` leaves in
      a folder are passed over.
    image_column: the field of a JSON line, or of a record, with the image.
    caption_column: the one with the caption.
    caption: that of every image of a folder, in place of files beside them.

  Raises:
    UserError: no such files, no image in them, or one without a caption.
  """
  require_task_name(name)
  given = {split: os.path.expanduser(os.fspath(path)) for split, path in files.items() if path is not None}
  if not given:
    raise UserError(f"Image task {name} names no files.")
  summary = "images of " + ", ".join(Path(path).name for path in given.values())
  task = ImageCaptionTask(name, summary, given, image_column, caption_column, caption)
  for split in task.splits:
    if not task.examples(split):
      raise UserError(f"{given[split]} holds no image with a caption; a folder has NAME.txt beside NAME.jpg.")
  _register(task)
  return task


def _of_files(path: str, image_column: str, caption_column: str) -> Iterator[CaptionedImage]:
  if path.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
    for where, fields in read_json_lines(DataFile(Path(path))):
      image = Path(path).parent / text_of(where, fields, image_column)
      if not image.is_file():
        raise UserError(f"{where}: there is no image {image}.")
      yield CaptionedImage(str(image), text_of(where, fields, caption_column), functools.partial(_bytes, image))
  else:
    found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    if not found:
      raise UserError(f"{path} does not exist; give a folder of images, a .jsonl file or TFRecords.")
    for each in found:
      yield from _of_records(Path(each), image_column, caption_column)


def _of_folder(folder: Path, caption: str | None) -> Iterator[CaptionedImage]:
  for image in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES):
    if image.name.startswith("sheet-"):
      continue
    if caption is not None:
      yield CaptionedImage(str(image), caption, functools.partial(_bytes, image))
      continue
    text = image.with_suffix(".txt")
    if not text.is_file():
      raise UserError(f"{image} has no caption; write one into {text.name} beside it, or give one CAPTION for all.")
    try:
      own = text.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
      raise UserError(f"{text}: not UTF-8 ({error}).") from error
    yield CaptionedImage(str(image), own, functools.partial(_bytes, image))


def _bytes(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"the image {path} cannot be read: {error}") from error


def _of_records(path: Path, image_column: str, caption_column: str) -> Iterator[CaptionedImage]:
  """The records of a file; captions are read at once, images when they are asked for."""
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory
  # It compares all checksums, once; what is read later is what stood there.
  records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  start = 0
  for number in itertools.count():
    where = f"{path}, record {number}"
    try:
      data = next(records, None)
    except tf.errors.DataLossError as error:
      raise UserError(f"{where}: cut short or damaged, or no TFRecord; fetch the file again.") from error
    if data is None:
      return
    (caption,) = _column(_example(data, where), caption_column, where)
    try:
      text = caption.decode("utf-8")
    except UnicodeDecodeError as error:
      raise UserError(f"{where}: its caption is not UTF-8 ({error}).") from error
    read = functools.partial(_image_at, path, start, len(data), image_column, where)
    yield CaptionedImage(where, text, read)
    start += _HEAD + len(data) + _TAIL


def _image_at(path: Path, start: int, length: int, image_column: str, where: str) -> bytes:
  with path.open("rb") as file:
    file.seek(start + _HEAD)
    (image,) = _column(_example(file.read(length), where), image_column, where)
  return image


def _example(data: bytes, where: str) -> Any:
  import tensorflow as tf
  from google.protobuf.message import DecodeError

  try:
    return tf.train.Example.FromString(data)
  except DecodeError as error:
    raise UserError(f"{where}: no tf.train.Example ({error}).") from error


def _column(record: Any, name: str, where: str) -> list[bytes]:
  columns = record.features.feature
  values = list(columns[name].bytes_list.value) if name in columns else []
  if len(values) != 1:
    known = ", ".join(sorted(columns))
    raise UserError(f"{where}: field {name!r} must hold one string of bytes; the record has the fields {known}.")
  return values


def _register(task: ImageCaptionTask) -> None:
  """Makes SeqIO know the task, in place of one of that name."""
  import seqio
  import tensorflow as tf

  def dataset(split, shuffle_files=False, seed=None):
    del shuffle_files, seed  # one file
    signature = {"image": tf.TensorSpec([], tf.string), "caption": tf.TensorSpec([], tf.string)}

    def rows():
      for example in task.examples(split):
        yield {"image": example.read(), "caption": example.caption}

    return tf.data.Dataset.from_generator(rows, output_signature=signature)

  feature = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
  seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add(
    task.name,
    source=seqio.FunctionDataSource(dataset, splits=task.splits),
    preprocessors=[],
    output_features={"image": feature, "caption": feature},
  )
