"""Images with captions from every kind of source; mistakes name their file."""

import json

import pytest
from PIL import Image

from fsb_jax.errors import UserError
from fsb_jax.tasks.image_captions import image_caption_task

COLOURS = {"红": (255, 0, 0), "绿": (0, 255, 0), "蓝": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "images" / "deeper").mkdir(parents=True)
  for i, (caption, colour) in enumerate(COLOURS.items()):
    path = tmp_path / "images" / ("deeper" if i == 2 else ".") / f"{i}.png"
    Image.new("RGB", (4, 4), colour).save(path)
    path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
  return tmp_path / "images"


@pytest.fixture
def json_lines(folder):
  path = folder.parent / "captions.jsonl"
  names = ["0.png", "1.png", "deeper/2.png"]
  rows = [{"file": f"images/{name}", "text": caption} for name, caption in zip(names, COLOURS)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


@pytest.fixture
def records(folder):
  import tensorflow as tf

  for part in range(2):
    with tf.io.TFRecordWriter(str(folder.parent / f"part-{part}.tfrecord")) as writer:
      for i, caption in list(enumerate(COLOURS))[part * 2 : part * 2 + 2]:
        (path,) = folder.rglob(f"{i}.png")
        features = {
          name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
          for name, value in (("image", path.read_bytes()), ("caption", caption.encode()))
        }
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
  return folder.parent / "part-*.tfrecord"


def assert_all_there(task):
  examples = task.examples("train")
  assert [example.caption for example in examples] == [*COLOURS]
  # Read twice, and out of order.
  for example, colour in [*zip(examples, COLOURS.values())][::-1] * 2:
    with Image.open(example.open()) as image:
      assert image.convert("RGB").getpixel((0, 0)) == colour


def test_a_folder(folder):
  assert_all_there(image_caption_task("images", {"train": folder}))
  Image.new("RGB", (4, 4)).save(folder / "sheet-0001.png")
  task = image_caption_task("images", {"train": folder}, caption="一只狗")
  assert [example.caption for example in task.examples("train")] == ["一只狗"] * 3


def test_json_lines(json_lines):
  assert_all_there(image_caption_task("images", {"train": json_lines}, image_column="file", caption_column="text"))


def test_records(records):
  assert_all_there(image_caption_task("images", {"train": records}))


def test_seqio_knows_the_task(folder):
  import seqio

  image_caption_task("images", {"train": folder, "test": None})
  task = seqio.get_mixture_or_task("images")
  assert task.splits == ("train",)
  rows = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
  assert [row["caption"].decode() for row in rows] == [*COLOURS]
  assert rows[0]["image"] == (folder / "0.png").read_bytes()


def test_mistakes_name_their_file(folder, json_lines, records):
  part = folder.parent / "part-0.tfrecord"
  whole = part.read_bytes()
  part.write_bytes(whole[:-3])
  with pytest.raises(UserError, match=r"part-0.tfrecord, record 1: cut short"):
    image_caption_task("images", {"train": part})
  part.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
  with pytest.raises(UserError, match=r"record 0: cut short or damaged"):
    image_caption_task("images", {"train": part})
  part.write_bytes(whole)
  with pytest.raises(UserError, match=r"record 0: field 'words' must .*caption, image"):
    image_caption_task("images", {"train": part}, caption_column="words")
  with pytest.raises(UserError, match="CAPTION is for a folder"):
    image_caption_task("images", {"train": part}, caption="狗")
  with pytest.raises(UserError, match="line 1: no field 'image'"):
    image_caption_task("images", {"train": json_lines})
  with pytest.raises(UserError, match=r"0\.png, record 0: cut short or damaged, or no TFRecord"):
    image_caption_task("images", {"train": folder / "0.png"})
  (folder / "1.png").unlink()
  with pytest.raises(UserError, match=r"line 2: there is no image .*1\.png"):
    image_caption_task("images", {"train": json_lines}, image_column="file", caption_column="text")
  (folder / "0.txt").unlink()
  with pytest.raises(UserError, match=r"0\.png has no caption; write one into 0\.txt"):
    image_caption_task("images", {"train": folder})
  with pytest.raises(UserError, match="nothing-here does not exist"):
    image_caption_task("images", {"train": folder / "nothing-here"})
  with pytest.raises(UserError, match="names no files"):
    image_caption_task("images", {"train": None})
  (folder.parent / "empty").mkdir()
  with pytest.raises(UserError, match="empty holds no image"):
    image_caption_task("images", {"train": folder.parent / "empty"})
