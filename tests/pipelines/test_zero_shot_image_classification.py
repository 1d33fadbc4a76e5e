"""Labels of an image from a CLIP, a Taiyi-CLIP and a text tower with another's images, against transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from convert_torch.cli import import_checkpoint
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import torch_clip
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fsb_jax import encodings, pipeline
from fsb_jax.errors import UserError
from fsb_jax.pipelines.image_text import ImageText

LABELS = ["猫", "一只大狗", "鱼"]
CHARACTERS = sorted(set("".join(LABELS)) | set("的照片张"))


def reads_images(folder):
  """A CLIP of transformers, and what its images are made by, in a folder."""
  model = torch_clip("CLIPModel")
  with torch.no_grad():
    model.logit_scale.fill_(1.5)
  model.save_pretrained(folder)
  processor = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 26, "width": 26})
  processor.save_pretrained(folder)
  return model, processor


def reads_texts(folder, labels=24):
  """A BERT whose classes are a text's vector, with its tokenizer, in a folder."""
  torch.manual_seed(3)
  tokenizer = encodings.bert_tokenizer_from_characters(CHARACTERS, folder)
  config = transformers.BertConfig(
    vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=20, num_labels=labels, initializer_range=0.3,
  )  # fmt: skip
  model = transformers.BertForSequenceClassification(config).eval()
  model.save_pretrained(folder)
  return model, tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("place")
  random = np.random.default_rng(0)
  for name in ("a.png", "b.png", "c.png"):
    Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
  return folder, reads_images(folder / "images"), reads_texts(folder / "texts")


def unit(vectors):
  return vectors / vectors.norm(dim=-1, keepdim=True)


def expected_scores(place, paths, template="{}"):
  _, (clip, processor), (bert, tokenizer) = place
  with torch.no_grad():
    pixels = processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    images = unit(clip.get_image_features(pixels).pooler_output)
    texts = tokenizer([template.replace("{}", label) for label in LABELS], padding=True, return_tensors="pt")
    return (clip.logit_scale.exp() * images @ unit(bert(**texts).logits).T).softmax(-1).numpy()


def test_a_text_tower_alone_with_the_images_of_another(place):
  folder = place[0]
  paths = [folder / name for name in ("a.png", "b.png", "c.png")]
  template = "一张{}的照片"
  # Two at a time, the last one with a row to spare.
  answer = pipeline(
    "zero_shot_image_classification", folder / "texts", image_model=folder / "images", labels=LABELS,
    template=template, batch_size=2,
  )  # fmt: skip
  got, expected = answer(paths), expected_scores(place, paths, template)
  for found, row in zip(got, expected, strict=True):
    np.testing.assert_allclose([found["scores"][label] for label in LABELS], row, atol=1e-5)
    assert found["label"] == LABELS[row.argmax()] and found["score"] == max(found["scores"].values())
  assert np.ptp(expected, axis=0).max() > 0.02
  with Image.open(paths[0]) as image:
    assert answer(image)["scores"] == pytest.approx(got[0]["scores"], abs=1e-6)


def test_a_whole_taiyi_of_ours_reads_both(place, tmp_path):
  """Its features are of the first token; the folder is one of ours, with the processor's file in it."""
  folder, (clip, _), (bert, tokenizer) = place
  torch.manual_seed(5)
  projection = torch.randn(24, 32)
  hf = {
    "model_type": "clip", "architectures": ["TaiyiCLIPModel"], "projection_dim": 24,
    "text_config": bert.config.to_dict(), "vision_config": clip.config.vision_config.to_dict(),
  }  # fmt: skip

  tensors = {name: x for name, x in clip.state_dict().items() if not name.startswith("text_model.")}
  tensors |= {f"text_model.{name}": x for name, x in bert.bert.state_dict().items()}
  (tmp_path / "hub").mkdir()
  save_file({**tensors, "text_projection.weight": projection}, tmp_path / "hub" / "model.safetensors")
  (tmp_path / "hub" / "config.json").write_text(json.dumps(hf))
  for source, name in (("images", "preprocessor_config.json"), ("texts", "vocab.txt")):
    (tmp_path / "hub" / name).write_bytes((folder / source / name).read_bytes())
  import_checkpoint(tmp_path / "hub", tmp_path / "ours")
  reader = ImageText(tmp_path / "ours")
  assert reader.form == encodings.image_form(folder / "images") and reader.scale == pytest.approx(np.exp(1.5))
  with torch.no_grad():
    texts = tokenizer(LABELS, padding=True, return_tensors="pt")
    expected = unit(bert.bert(**texts).last_hidden_state[:, 0] @ projection.T)
  np.testing.assert_allclose(reader.texts(LABELS), expected.numpy(), atol=1e-5)
  assert reader.images([folder / "a.png"]).shape == (1, 24)


def test_from_the_shell(place, fsb):
  folder = place[0]
  images = ("--option", f"image_model={folder / 'images'}")
  asked = (
    "predict", "zero_shot_image_classification", "--model", folder / "texts", "--text", folder / "a.png", *images
  )  # fmt: skip
  line = json.loads(fsb(*asked, "--option", "labels=" + ",".join(LABELS))[1])
  expected = expected_scores(place, [folder / "a.png"])[0]
  assert line["text"].endswith("a.png") and line["score"] == pytest.approx(float(expected.max()), abs=1e-5)
  status, _, error = fsb(*asked, "--option", "labels=猫,狗", "--option", "lable=1")
  assert status == 2 and "zero_shot_image_classification has no option 'lable'" in error
  status, _, error = fsb(*asked, "--option", "labels=猫")
  assert status == 2 and "labels=['猫'] is no choice; give at least two" in error


def test_what_does_not_belong_together(place, tmp_path):
  folder = place[0]
  with pytest.raises(UserError, match="reads texts alone; give image_model="):
    ImageText(folder / "texts")
  with pytest.raises(UserError, match="images holds no tokenizer"):
    ImageText(folder / "images")
  with pytest.raises(UserError, match="reads images itself; leave image_model out"):
    ImageText(folder / "images", image_model=folder / "images")
  with pytest.raises(UserError, match="is a bert, and no CLIP"):
    ImageText(folder / "texts", image_model=folder / "texts")
  reads_texts(tmp_path / "other", labels=7)
  with pytest.raises(UserError, match="vectors of 7 numbers and .* of 24: they were not trained together"):
    ImageText(tmp_path / "other", image_model=folder / "images")
  with pytest.raises(UserError, match="max_length=21 must be between 2 and 20"):
    ImageText(folder / "texts", image_model=folder / "images", max_length=21)
  with pytest.raises(UserError, match="template='照片' must have one {}"):
    pipeline("zero_shot_image_classification", folder / "texts", labels=LABELS, template="照片")
