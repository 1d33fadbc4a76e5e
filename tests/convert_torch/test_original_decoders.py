"""Folders of the original code's writers against what it computed: outputs, loss, gradients, and texts it wrote."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from convert_torch import load_hub_folder
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from test_goldens import ALL, HERE
from test_originals import arrays_of, check, check_export
from tiny_hub import ORIGINAL_DECODERS, assert_close, tensors_of
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.attention import Attention
from fsb_jax.models.cache import new_cache
from fsb_jax.models.outputs import TextInfillOutput
from fsb_jax.models.positions import LearnedPositions
from fsb_jax.training.losses import OBJECTIVES

# Of those that differ in one part alone, one every day.
WRITERS = ["deltalm", "megatron_t5_relu", pytest.param("megatron_t5_gelu", marks=pytest.mark.slow)]


def folder_of(name):
  """A folder kept here, or one that the test is skipped without."""
  folder = next((path / name for path in (HERE, ALL) if (path / name).is_dir()), None)
  if folder is None:
    pytest.skip(f"no golden {name} at {ALL}; set FSB_GOLDENS_DIR")
  return folder


def shifted(labels, config):
  """Labels one place later, after the id that begins a text."""
  start = np.full_like(labels[:, :1], config.decoder.start_token_id)
  return np.concatenate([start, np.where(labels < 0, config.pad_token_id, labels)[:, :-1]], axis=1)


def load(name, head=None, **run):
  """A folder, what the original was given, and what it computed."""
  folder = folder_of(name)
  hub = load_hub_folder(folder, head=head, run=models.Run(**run))
  given, expected = arrays_of(folder)
  # Transformer-XL's, one more dimension than ours take, is the triangle that ours make.
  given = {name: x for name, x in given.items() if x.ndim < 4}
  if hub.config.decoder is not None and "labels" in given:
    given.setdefault("decoder_input_ids", shifted(given["labels"], hub.config))
  return hub, given, expected


@pytest.mark.parametrize("name", WRITERS)
def test_outputs_loss_and_gradients(name):
  hub, given, expected = load(name)
  assert (hub.newly_initialised, hub.unused) == ([], [])
  compared = check(hub, OBJECTIVES["lm"], given, expected)
  assert compared >= {"logits", "encoder_hidden_states", "decoder_hidden_states"}


TRANSFORMER_XL = ["transfo_xl_denoise", "transfo_xl_denoise_abs"]


@pytest.mark.parametrize("name", ["transfo_xl_denoise", pytest.param("transfo_xl_denoise_abs", marks=pytest.mark.slow)])
def test_loss_and_gradients_of_transformer_xl(name):
  hub, given, expected = load(name)
  assert (hub.head, hub.newly_initialised, hub.unused) == ("causal_lm", [], [])
  # Its loss was taken of labels in their places.
  assert check(hub, OBJECTIVES["lm"], given, expected) == {"logits"}


@pytest.mark.parametrize(
  "name,scan_layers",
  [
    ("transfo_xl_denoise", True),
    pytest.param("transfo_xl_denoise", False, marks=pytest.mark.slow),
    pytest.param("transfo_xl_denoise_abs", True, marks=pytest.mark.slow),
    ("transfo_xl_denoise_abs", False),
  ],
)
def test_two_segments_of_transformer_xl(name, scan_layers):
  """What the original remembers as hidden states is in the cache as keys and values."""
  hub, given, expected = load(name, scan_layers=scan_layers)
  model = models.build(hub.family, hub.config, hub.head)

  def read(ids, cache):
    return model.apply({"params": hub.params}, ids, cache=cache, output_hidden_states=True)

  read = jax.jit(read, compiler_options=QUICK)
  cache = new_cache(hub.config, len(given["input_ids"]), 20)
  norm = hub.params["decoder"]["final_norm"]
  for segment in ("", "2"):
    output = read(given[f"input_ids{segment}"], cache)
    cache = output.cache
    assert_close(np.asarray(output.logits), expected[f"logits{segment}"])
    states = np.stack(output.hidden_states)
    theirs = np.stack([expected[f"mems{segment}.{i}"] for i in range(len(states))])[:, :, -states.shape[2] :]
    assert_close(states[:-1], theirs[:-1])
    # The last one is that before the final norm.
    centred = theirs[-1] - theirs[-1].mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    assert_close(states[-1], normed * norm["scale"] + norm["bias"])


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"hidden_size": None}, "config.json lacks hidden_size"),
    ({"relative_encoding": None}, "config.json lacks relative_encoding"),
    ({"relative_encoding": False}, "config.json lacks max_sequence_length"),
    ({"num_attention_heads": 3}, "hidden_size=128, which is no multiple of num_attention_heads=3"),
  ],
)
def test_what_transformer_xl_refuses(changes, message):
  family = models.family("transfo_xl")
  hf = {**family.config_to_hf(family.sizes["tiny"]), **changes}
  with pytest.raises(UserError, match=message):
    family.config_from_hf({name: value for name, value in hf.items() if value is not None})


INFILL = ["bart_textinfill_cls", "bart_textinfill_reg"]


def weighted(hub, given):
  """What was given, and the weights that the folder gives the classes of what is read."""
  classes = hub.params["head"]["label_weights"][np.maximum(given["encoder_labels"], 0)]
  regresses = hub.config.head_sizes.encoder_loss_type == 1
  return given if regresses else {**given, "encoder_weights": classes}


@pytest.mark.parametrize("name", ["bart_textinfill_cls", pytest.param("bart_textinfill_reg", marks=pytest.mark.slow)])
def test_text_infilling(name):
  hub, given, expected = load(name)
  assert (hub.head, hub.num_labels, hub.newly_initialised, hub.unused) == ("text_infill", 3, [], [])
  # What its method for the encoder alone returns, and what the encoder made, by our names.
  expected["encoder_last_hidden_state"] = expected.pop("encoder_last")
  np.testing.assert_array_equal(expected["encoder_logits"], expected["get_encoder_logits"])
  compared = check(hub, OBJECTIVES["text_infill"], weighted(hub, given), expected)
  assert compared == {"logits", "encoder_logits", "encoder_last_hidden_state"}


@pytest.mark.parametrize("name", ["bart_textinfill_reg", pytest.param("bart_textinfill_cls", marks=pytest.mark.slow)])
def test_the_parts_of_text_infillings_loss(name):
  hub, given, expected = load(name)
  batch, objective = weighted(hub, given), OBJECTIVES["text_infill"]
  weights = objective.weights(batch)
  parts = {"encoder": "encoder_loss", "lm": "decoder_loss"}
  for weight in (1.0, 0.25):
    output = TextInfillOutput(
      logits=expected["logits"], encoder_logits=expected["encoder_logits"], encoder_loss_weight=weight
    )
    for part, value in objective.sums(output, batch).items():
      reference = expected[parts[part]] * (weight if part == "encoder" else 1)
      assert_close(np.asarray(value / weights[part]), np.asarray(reference))
  # A row that fills the batch up counts for nothing.
  filled = {**{x: np.concatenate([value, value[:1]]) for x, value in batch.items()}, "weights": np.array([1, 1, 1, 0])}
  output = TextInfillOutput(
    logits=np.concatenate([expected["logits"], 0 * expected["logits"][:1]]),
    encoder_logits=np.concatenate([expected["encoder_logits"], 0 * expected["encoder_logits"][:1]]),
  )
  assert_close(np.asarray(objective(output, filled)), expected["loss"])


def test_what_text_infilling_is_told_is_kept_and_checked():
  family = models.family("bart")
  hf = family.config_to_hf(family.sizes["tiny"])
  assert "encoder_loss_type" not in hf and "loss_weight" not in hf
  config = family.config_from_hf({**hf, "encoder_loss_type": 1, "loss_weight": 0.5})
  assert (config.head_sizes.encoder_loss_type, config.head_sizes.loss_weight) == (1, 0.5)
  assert family.config_from_hf(family.config_to_hf(config)) == config
  with pytest.raises(UserError, match="encoder_loss_type=2; known: 0"):
    family.config_from_hf({**hf, "encoder_loss_type": 2})
  assert family.head_of("BartForTextInfill") == "text_infill" and not family.in_transformers("text_infill")


def test_an_encoder_alone():
  hub, given, expected = load("megatron_t5_encoder")
  assert (hub.head, hub.newly_initialised, hub.unused) == ("encoder", [], [])
  assert check(hub, None, given, expected) == {"hidden_states"}
  assert not any(path.startswith("decoder/") for path in models.flatten(hub.params))


def test_an_encoder_alone_from_a_whole_folder():
  hub, given, expected = load("megatron_t5_relu", head="encoder")
  assert hub.newly_initialised == []
  assert {name.partition(".")[0] for name in hub.unused} == {"decoder", "lm_head_bias"}
  model = models.build(hub.family, hub.config, hub.head)
  states = model.apply({"params": hub.params}, given["input_ids"], given["attention_mask"]).last_hidden_state
  assert_close(np.asarray(states), expected["encoder_hidden_states.2"])


@pytest.mark.parametrize(
  "name", ["deltalm", "megatron_t5_relu", "megatron_t5_encoder", *TRANSFORMER_XL, *INFILL]
)
def test_exports_are_the_originals_tensors(name, tmp_path):
  hub, _, _ = load(name)
  folder = folder_of(name)
  # Of position ids the original keeps three copies.
  left_out = {"lm_head.weight", *(f"{x}coder.embed_tokens.position_ids" for x in ("en", "de"))}
  copies = {*table(hub.family).copies, *table(hub.family).untied_copies, *left_out}
  check_export(hub, folder, tmp_path / "again", copies)
  original = tensors_of(folder)
  for tensor, array in tensors_of(tmp_path / "again").items():
    np.testing.assert_array_equal(array, original[tensor], err_msg=tensor)


def decoding(hub, given, cache, *, bits=32):
  """Step by step with a cache: a function from ids `[batch, new]` to their logits."""
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  params = jax.tree.map(lambda x: x.astype(f"float{bits}"), hub.params)
  known = {}
  if hub.config.decoder is not None:
    mask = given["attention_mask"]
    encode = jax.jit(lambda ids: model.apply({"params": params}, ids, mask, method="encode"), compiler_options=QUICK)
    encoded = encode(given["input_ids"])
    known = {"encoder_outputs": encoded, "attention_mask": mask}

  def step(ids, cache):
    name = "input_ids" if hub.config.decoder is None else "decoder_input_ids"
    output = model.apply({"params": params}, **known, **{name: ids}, cache=cache)
    return output.logits, output.cache

  step = jax.jit(step, compiler_options=QUICK)

  def logits(ids):
    nonlocal cache
    result, cache = step(ids, cache)
    return np.asarray(result)

  return logits


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_texts(name):
  hub, given, expected = load(name, scan_layers=False)
  written = [np.full((3, 1), hub.config.decoder.start_token_id)]
  logits = decoding(hub, given, new_cache(hub.config.decoder_config, 3, 20))
  highest = []
  for _ in range(20):
    scores = logits(written[-1])[:, -1]
    ended = (np.concatenate(written[1:], axis=1) == hub.hf_config["eos_token_id"]).any(1) if written[1:] else False
    written.append(np.where(ended, hub.config.pad_token_id, scores.argmax(-1))[:, None])
    highest.append(scores.max(-1))
  np.testing.assert_array_equal(np.concatenate(written, axis=1), expected["gen_greedy_sequences"])
  assert_close(np.stack(highest, axis=1), expected["gen_greedy_step_logits_max"])
  if "cached_greedy_sequences" in expected:
    # With its cache the original gives every token position 0, and writes something else.
    assert not np.array_equal(expected["cached_greedy_sequences"], expected["gen_greedy_sequences"][:, :7])


@pytest.mark.parametrize(
  "name,scan_layers",
  [
    ("deltalm", True),
    pytest.param("deltalm", False, marks=pytest.mark.slow),
    ("transfo_xl_denoise", True),
    pytest.param("transfo_xl_denoise", False, marks=pytest.mark.slow),
    pytest.param("transfo_xl_denoise_abs", True, marks=pytest.mark.slow),
    pytest.param("megatron_t5_relu", True, marks=pytest.mark.slow),
    pytest.param("megatron_t5_relu", False, marks=pytest.mark.slow),
  ],
)
def test_with_a_cache_logits_are_the_same(name, scan_layers):
  with jax.enable_x64(True):
    hub, given, _ = load(name, scan_layers=scan_layers, dtype="float64", param_dtype="float64")
    model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
    apply = jax.jit(model.apply, compiler_options=QUICK)
    whole = apply({"params": hub.params}, **{x: given[x] for x in models.input_names(model) if x in given}).logits
    ids = given["input_ids" if hub.config.decoder is None else "decoder_input_ids"]
    logits = decoding(hub, given, new_cache(hub.config.decoder_config, len(ids), 12), bits=64)
    steps = [logits(ids[:, :3])] + [logits(ids[:, i : i + 1]) for i in range(3, ids.shape[1])]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=1e-9, atol=1e-9)


def test_what_deltalm_says_is_kept():
  family = models.family("deltalm")
  config = family.sizes["tiny"]
  assert config.final_norm is False and config.decoder_config.final_norm is False
  normed = dataclasses.replace(config, final_norm=True)
  hf = family.config_to_hf(normed)
  assert hf["encoder_normalize_before"] is True and family.config_from_hf(hf) == normed
  # The decoder has none either way.
  assert normed.decoder_config.final_norm is False
  for said in ("Deltalm", "deltalm"):
    assert models.family_of_hub_config({"model_type": said}) is family


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"d_kv": None}, "config.json lacks d_kv"),
    ({"max_position_embeddings": None}, "config.json lacks max_position_embeddings"),
    ({"feed_forward_proj": "gated-gelu"}, "config.json says feed_forward_proj='gated-gelu', which fsb_jax does not"),
  ],
)
def test_what_megatron_t5_refuses(changes, message):
  family = models.family("megatron_t5")
  hf = {**family.config_to_hf(family.sizes["tiny"]), **changes}
  with pytest.raises(UserError, match=message):
    family.config_from_hf({name: value for name, value in hf.items() if value is not None})


@pytest.mark.parametrize(
  "family,size,published",
  [
    ("deltalm", "randeng_362m", 362e6),
    ("transfo_xl", "randeng_1_1b", 1.1e9),
    # Its name is that of T5's large size, whose numbers of layers and widths it has; its vocabulary is smaller.
    ("megatron_t5", "randeng_770m", 728e6),
  ],
)
def test_published_sizes(family, size, published):
  config = models.sized(family, size)
  shapes = param_shapes(models.build(family, config, next(iter(models.family(family).heads))))
  assert sum(map(math.prod, shapes.values())) == pytest.approx(published, rel=0.05 if published > 1e9 else 0.005)


@pytest.mark.parametrize("family", ORIGINAL_DECODERS)
def test_configs_are_kept(family):
  chosen = models.family(family)
  for config in chosen.sizes.values():
    assert chosen.config_from_hf(chosen.config_to_hf(config)) == config
    dropped = dataclasses.replace(config.dropout, hidden=0.3)
    changed = dataclasses.replace(config, vocab_size=77, num_layers=5, dropout=dropped)
    if config.decoder is None:
      changed = dataclasses.replace(changed, memory=None, positions=LearnedPositions(length=9), attention=Attention)
    else:
      changed = dataclasses.replace(
        changed, decoder=dataclasses.replace(config.decoder, num_layers=3, start_token_id=7), pad_token_id=6,
        activations=("relu",), initializer_range=0.5,
      )  # fmt: skip
    again = chosen.config_from_hf(chosen.config_to_hf(changed))
    # Megatron-T5's second dropout follows from the first.
    assert dataclasses.replace(again, dropout=changed.dropout) == changed and again.dropout.hidden == 0.3


def test_megatron_t5_is_told_from_t5_by_capitals():
  assert models.family_of_hub_config({"model_type": "T5"}).name == "megatron_t5"
  assert models.family_of_hub_config({"model_type": "t5"}).name == "t5"
