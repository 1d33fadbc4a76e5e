"""CLIP's towers against transformers in float64: outputs, hidden states, attentions and every gradient."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiny_clip import TEXT, VISION, as_torch, batch_of, by_name, crossing, exact_softmax, named_tensors, ours, torch_clip
from tiny_hub import QUICK

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.clip import text_ends
from fsb_jax.training.losses import OBJECTIVES

CASES = {
  "clip": ("clip", "clip", "CLIPModel", {}),
  # Old files: texts are read at their highest id.
  "legacy": ("clip", "base", "CLIPModel", {"eos_token_id": 2}),
  "text": ("clip_text", "base", "CLIPTextModel", {}),
  # As in SDXL.
  "text_projection": ("clip_text", "projection", "CLIPTextModelWithProjection", {"hidden_act": "gelu"}),
  "vision": ("clip_vision", "base", "CLIPVisionModel", {}),
  "vision_projection": ("clip_vision", "projection", "CLIPVisionModelWithProjection", {"hidden_act": "gelu"}),
}
EVERY_DAY = ("clip", "text_projection")


def assert_equal(got, expected):
  assert got.shape == expected.shape and got.dtype == expected.dtype == np.float64
  assert np.abs(expected).max() > 1e-6
  assert (np.abs(got - expected) <= 1e-9 * np.maximum(1, np.abs(expected))).all(), np.abs(got - expected).max()


def weighted(outputs):
  """A loss that every output has a part in."""
  names = [name for name in ("last_hidden_state", "pooler_output", "text_embeds", "image_embeds") if name in outputs]
  return sum((outputs[name] ** 2 * (place + 1)).sum() for place, name in enumerate(names))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in EVERY_DAY else pytest.mark.slow) for c in CASES])
def test_everything_is_that_of_transformers(case, scan):
  family, head, architecture, changes = CASES[case]
  if case in EVERY_DAY and scan is (case == "clip"):
    pytest.skip("every day one of them is stacked and one is not")
  theirs = torch_clip(architecture, **changes).double()
  run = dict(dtype="float64", param_dtype="float64", scan_layers=scan)
  config = models.family(family).config_from_hf(theirs.config.to_dict()).with_run(**run)
  model = models.build(family, config, head)
  batch = batch_of(model)
  both = family == "clip"
  options = dict(output_hidden_states=True, output_attentions=True)
  with exact_softmax():
    result = theirs(**as_torch(batch), **options, **({"return_loss": True} if both else {}))
  expected = {name: x for name, x in by_name(result) if name != "loss" and "model_output.pooler" not in name}
  loss = result.loss if both else weighted(result)
  loss.backward()

  def loss_of(params):
    outputs = model.apply({"params": params}, **batch, **options)
    return (OBJECTIVES["clip"](outputs, batch) if both else weighted(vars(outputs))), outputs

  with jax.enable_x64(True):
    params = crossing(family, head, config, named_tensors(theirs))
    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=QUICK)
    (our_loss, outputs), gradients = step(params)
  got = dict(by_name(outputs))
  assert expected.keys() <= got.keys()
  assert {"text_model_output.hidden_states", "vision_model_output.attentions"} <= expected.keys() or not both
  for name, reference in expected.items():
    assert_equal(got[name], reference)
  np.testing.assert_allclose(our_loss, loss.detach().numpy(), rtol=1e-9)
    wanted = crossing(family, head, config, named_tensors(theirs, lambda parameter: parameter.grad))
  wanted = models.flatten(wanted)
  for path, gradient in models.flatten(gradients).items():
    assert np.abs(gradient - wanted[path]).max() <= 1e-9 * max(1, np.abs(wanted[path]).max()), path
    # A constant added to all scores of a query changes nothing.
    assert np.abs(wanted[path]).max() > 1e-6 or path.endswith("attention/key/bias"), path


def test_taiyi_reads_the_first_token_in_its_getters_and_the_pooler_in_its_forward():
  bert = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
  torch.manual_seed(0)
  text = transformers.BertModel(transformers.BertConfig(**bert, max_position_embeddings=16, initializer_range=0.3)).double().eval()
  clip = torch_clip("CLIPModel").double()
  hf = {
    "model_type": "clip", "projection_dim": 24, "text_config": text.config.to_dict(),
    "vision_config": clip.config.vision_config.to_dict(),
  }  # fmt: skip
  family = models.family_of_hub_config(hf)
  config = family.config_from_hf(hf).with_run(dtype="float64", param_dtype="float64")
  tensors = {name: x for name, x in named_tensors(clip).items() if not name.startswith("text_model.")}
  tensors |= {f"text_model.{name}": x for name, x in named_tensors(text).items()}
  model = models.build("taiyi_clip", config, "clip")
  batch = {**batch_of(model), "token_type_ids": np.eye(3, 10, dtype=np.int64)}
  batch["input_ids"] %= 60
  arrays = as_torch(batch)
  pixels = arrays.pop("pixel_values")
  with exact_softmax(), torch.no_grad():
    read, images = text(**arrays), clip.get_image_features(pixels).pooler_output
    features = {"clip": clip.text_projection(read.last_hidden_state[:, 0]), "base": clip.text_projection(read.pooler_output)}
  assert (features["clip"] - features["base"]).abs().max() > 0.1
  with jax.enable_x64(True):
    params = crossing("taiyi_clip", "clip", config, tensors)
    texts = {name: x for name, x in batch.items() if name != "pixel_values"}
    for head, expected in features.items():
      got = ours("taiyi_clip", head, config, params, batch)
      unit = expected / expected.norm(dim=-1, keepdim=True)
      assert_equal(np.asarray(got.text_embeds), unit.numpy())
    # Of either.
    got = ours("taiyi_clip", "base", config, params, texts, method="get_text_features")
    assert_equal(np.asarray(got), features["clip"].numpy())
    got = ours("taiyi_clip", "base", config, params, {"pixel_values": batch["pixel_values"]}, method="get_image_features")
    assert_equal(np.asarray(got), images.numpy())


def test_texts_end_at_the_first_end_token_or_at_their_highest_id():
  ids = jnp.array([[5, 9, 3, 9, 9], [5, 7, 3, 2, 2], [9, 1, 1, 1, 1]])
  assert text_ends(ids, 9).tolist() == [1, 0, 0] and text_ends(ids, 2).tolist() == [0, 3, 0]
  assert text_ends(ids, None).tolist() == [1, 1, 0]


def test_the_hidden_state_before_the_last_is_not_normalised():
  config = models.sized("clip_text", "tiny", scan_layers=False)
  model = models.build("clip_text", config)
  ids = np.arange(12).reshape(2, 6)
  shapes = nn.meta.unbox(models.abstract_params(model))
  random = np.random.default_rng(0)
  params = jax.tree.map(lambda x: random.normal(scale=0.3, size=x.shape).astype(np.float32), shapes)
  out = ours("clip_text", "base", config, params, {"input_ids": ids}, output_hidden_states=True)
  assert len(out.hidden_states) == config.num_layers + 1
  shorter = dataclasses.replace(config, num_layers=config.num_layers - 1)
  before = ours("clip_text", "base", shorter, params, {"input_ids": ids}, output_hidden_states=True)
  np.testing.assert_allclose(out.hidden_states[-2], before.hidden_states[-1], atol=1e-4)
  assert np.abs(out.hidden_states[-2] - before.last_hidden_state).max() > 0.1


def test_what_is_missing_or_of_another_size_is_said():
  model = models.build("clip", models.sized("clip", "tiny"), "clip")
  params = models.abstract_params(model)
  ids = jax.ShapeDtypeStruct((2, 5), "int32")
  with pytest.raises(ValueError, match="pixel_values are missing; of texts alone method='get_text_features'"):
    jax.eval_shape(model.apply, {"params": params}, ids)
  with pytest.raises(ValueError, match=r"shape \(2, 3, 32, 32\); the model takes \[batch, 32, 32, 3\]"):
    jax.eval_shape(model.apply, {"params": params}, ids, jax.ShapeDtypeStruct((2, 3, 32, 32), "float32"))


@pytest.mark.parametrize(
  "family,changes,message",
  [
    ("clip_text", {"eos_token_id": [1, 2]}, r"eos_token_id=\[1, 2\]; a text is read at one end token"),
    ("clip_text", {"hidden_act": "mish"}, "hidden_act='mish', which fsb_jax does not know"),
    ("clip_text", {"num_attention_heads": 5}, "hidden_size=512, which is no multiple of num_attention_heads=5"),
    ("clip_text", {"is_decoder": True}, "is_decoder=True"),
    ("clip_vision", {"image_size": [224, 336]}, r"image_size=\[224, 336\]; fsb_jax reads square images"),
    ("clip", {"vision_config": {"hidden_act": "mish"}}, "hidden_act='mish'"),
    ("taiyi_clip", {"text_config": {"model_type": "bert"}}, "config.json lacks vocab_size"),
  ],
)
def test_what_is_not_supported_is_refused_in_one_sentence(family, changes, message):
  with pytest.raises(UserError, match=message):
    models.family(family).config_from_hf(changes)


def test_what_a_config_leaves_out_is_transformers_default():
  for family, theirs in (
    ("clip", transformers.CLIPConfig()), ("clip_text", transformers.CLIPTextConfig()),
    ("clip_vision", transformers.CLIPVisionConfig()),
  ):  # fmt: skip
    chosen = models.family(family)
    assert chosen.config_from_hf({}) == chosen.config_from_hf(theirs.to_dict())


def test_every_field_goes_out_and_comes_back():
  vision = models.family("clip_vision").config_from_hf({**VISION, "attention_dropout": 0.3, "layer_norm_eps": 1e-3})
  chosen = models.family("clip")
  text = {**TEXT, "attention_dropout": 0.2, "pad_token_id": None, "hidden_act": "gelu"}
  config = dataclasses.replace(
    chosen.config_from_hf({"text_config": text, "projection_dim": 24}), vision=vision, logit_scale=3.5
  )
  assert (config.pad_token_id, config.end_token_id, config.dropout.attention) == (None, 97, 0.2)
  assert chosen.config_from_hf(chosen.config_to_hf(config)) == config
  # What config.json says beside it stays, nested or not.
  said = {"text_config": {"bos_token_id": 98, "hidden_size": 1}, "initializer_factor": 2.0}
  written = models.updated(said, chosen.config_to_hf(config))
  assert written["initializer_factor"] == 2.0
  assert (written["text_config"]["bos_token_id"], written["text_config"]["hidden_size"]) == (98, 32)


def test_sizes_of_old_files_stand_in_a_second_place():
  nested = {"text_config": {"hidden_size": 512}, "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12}}
  assert models.family("clip").config_from_hf({**nested, "vision_config_dict": None}).embed_dim == 768


def test_published_sizes():
  published = {
    # As transformers counts openai/clip-vit-*, Stable Diffusion 1's text encoder and SDXL's second.
    ("clip", "vit_base_patch32", "clip"): 151_277_313,
    ("clip", "vit_large_patch14", "clip"): 427_616_513,
    ("clip_text", "vit_large_patch14", "base"): 123_060_480,
    ("clip_text", "vit_bigg_14", "projection"): 694_659_840,
    ("clip_vision", "vit_base_patch32", "base"): 87_456_000,
    ("clip_vision", "vit_large_patch14", "base"): 303_179_776,
  }
  for (family, size, head), count in published.items():
    boxed = models.abstract_params(models.build(family, models.sized(family, size), head))
    assert sum(x.size for x in jax.tree.leaves(boxed)) == count, (family, size)
  # Named by what the text tower has.
  for size, count in (("taiyi_102m", 0.102e9), ("taiyi_326m", 0.326e9)):
    boxed = models.abstract_params(models.build("taiyi_clip", models.sized("taiyi_clip", size)))
    assert sum(x.size for x in jax.tree.leaves(boxed["text"])) == pytest.approx(count, rel=0.01)
