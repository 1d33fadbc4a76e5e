"""Hub folder -> ours -> the same numbers -> Hub folder, for every head of every family."""

import dataclasses
import json
import re

import numpy as np
import pytest
from convert_torch import io, load_hub_folder, save_hub_folder
from convert_torch.weights import table
from tiny_hub import (
  DECODERS,
  ENCODER_DECODERS,
  EVERY_FAMILY,
  EVERY_HEAD,
  LM,
  TAKING_TURNS,
  assert_close,
  assert_same_tree,
  hub_folder,
  inputs,
  our_outputs,
  rewritten,
  tensors_of,
  torch_class,
  torch_model,
  torch_outputs,
)

from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError

UNROLLED = models.Run(scan_layers=False)


def save_as_hub(folder, hub, **options):
  save_hub_folder(
    folder,
    hub.params,
    family=hub.family,
    config=hub.config,
    head=hub.head,
    num_labels=hub.num_labels,
    label_names=hub.label_names,
    hf_config=hub.hf_config,
    **options,
  )
  return folder


def assert_transformers_takes(folder, original, model):
  """The folder holds the tensors transformers itself wrote, bit for bit, and loads without a word."""
  written, expected = tensors_of(folder), tensors_of(original)
  assert written.keys() == expected.keys()
  for name in expected:
    assert written[name].dtype == expected[name].dtype
    np.testing.assert_array_equal(written[name], expected[name], err_msg=name)
  again, info = type(model).from_pretrained(folder, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  model.load_state_dict(again.state_dict(), strict=True)
  assert again.config.num_labels == model.config.num_labels


@pytest.mark.parametrize("family,head", TAKING_TURNS)
def test_round_trip(tmp_path, family, head):
  model = torch_model(family, head)
  model.save_pretrained(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub")
  assert (hub.family, hub.head, hub.newly_initialised, hub.unused) == (family, head, [], [])
  arrays = inputs(family, head)
  ours, theirs = our_outputs(hub, arrays), torch_outputs(model, arrays)
  assert theirs.keys() <= ours.keys()
  for name, reference in theirs.items():
    assert_close(ours[name], reference)

  unrolled = load_hub_folder(tmp_path / "hub", run=UNROLLED)
  stacks = [unrolled.params[name] for name in ("encoder", "decoder") if name in unrolled.params]
  assert {"layers_2", "group_2"} & {*stacks[-1]}
  assert_same_tree(hub.params, checkpoints.to_layout(unrolled.params, scan_layers=True))

  assert_transformers_takes(save_as_hub(tmp_path / "from_scanned", hub), tmp_path / "hub", model)
  assert_transformers_takes(save_as_hub(tmp_path / "from_unrolled", unrolled), tmp_path / "hub", model)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_unrolled_layers_and_a_padded_vocabulary_compute_the_same(tmp_path, family):
  model = torch_model(family, LM[family])
  model.save_pretrained(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub", run=models.Run(scan_layers=False, vocab_multiple=16))
  assert hub.params["token_embed"]["embedding"].shape == (112, hub.config.token_width)
  arrays = inputs(family, LM[family])
  logits = our_outputs(hub, arrays)["logits"]
  assert_close(logits[..., :101], torch_outputs(model, arrays)["logits"])
  assert np.isneginf(logits[..., 101:]).all()
  assert_transformers_takes(save_as_hub(tmp_path / "again", hub), tmp_path / "hub", model)


@pytest.mark.slow
@pytest.mark.parametrize("family,head", EVERY_HEAD)
def test_unrolled_layers_compute_the_same_for_every_head(tmp_path, family, head):
  model = torch_model(family, head)
  model.save_pretrained(tmp_path)
  arrays = inputs(family, head)
  ours = our_outputs(load_hub_folder(tmp_path, run=UNROLLED), arrays)
  for name, reference in torch_outputs(model, arrays).items():
    assert_close(ours[name], reference)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_untied_decoder(tmp_path, family):
  model = torch_model(family, LM[family], tie_word_embeddings=False)
  model.save_pretrained(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub", run=models.Run(vocab_multiple=16))
  (head,) = hub.params["head"].values()
  assert head["decoder"]["kernel"].shape == (hub.config.token_width, 112)
  biases = [x for path, x in models.flatten(hub.params["head"]).items() if re.fullmatch(r"\w+/(decoder/)?bias", path)]
  assert [bias.shape for bias in biases] == ([] if family in ("gpt2", "llama", "mt5", "t5") else [(112,)])
  arrays = inputs(family, LM[family])
  assert_close(our_outputs(hub, arrays)["logits"][..., :101], torch_outputs(model, arrays)["logits"])
  # transformers 5 keeps a second bias of most heads, which nothing reads; we write what is read in its place.
  written, expected = tensors_of(save_as_hub(tmp_path / "again", hub)), tensors_of(tmp_path / "hub")
  assert len(hub.unused) == (0 if family in ("electra", "xlnet", *DECODERS, *ENCODER_DECODERS) else 1)
  for idle in hub.unused:
    np.testing.assert_array_equal(written[idle], expected[idle.replace("bias", "decoder.bias")])
    expected[idle] = written[idle]
  # transformers 5 leaves these out of its file, and misses them when it reads it.
  expected |= {copy: expected[original] for copy, original in table(family).untied_copies.items()}
  assert written.keys() == expected.keys()
  assert all(np.array_equal(written[name], expected[name]) for name in expected)
  again, info = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  # A tensor under several names is written once.
  state = {name: x.numpy() for name, x in again.state_dict().items()}
  assert {*written} <= {*state} and all(np.array_equal(state[name], written[name]) for name in written)


def test_a_kernel_that_differs_from_what_transformers_ties_it_to_is_kept_apart(tmp_path):
  """Version 5 writes old, untied T5s as tied ones, with both tensors."""
  model = torch_model("t5", "conditional_generation", tie_word_embeddings=False)
  assert not model.config.scale_decoder_outputs
  model.config.tie_word_embeddings = True
  model.save_pretrained(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub")
  assert not hub.config.tie_embeddings and not hub.config.scale_logits
  arrays = inputs("t5", "conditional_generation")
  assert_close(our_outputs(hub, arrays)["logits"], torch_outputs(model, arrays)["logits"])
  assert models.family("t5").config_from_hf(hub.hf_config) == dataclasses.replace(hub.config, run=models.Run())
  again = load_hub_folder(save_as_hub(tmp_path / "again", hub))
  assert_same_tree(again.params, hub.params)
  base = load_hub_folder(tmp_path / "hub", head="base")
  assert base.unused == ["lm_head.weight"]


def test_tables_that_bart_shares_must_be_equal(tmp_path):
  hub_folder(tmp_path / "hub", "bart", "base")

  def change(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1

  folder = rewritten(tmp_path / "hub", tmp_path / "changed", change)
  with pytest.raises(UserError, match="encoder.embed_tokens.weight differs from .*, which it always repeats"):
    load_hub_folder(folder)


def test_head_is_chosen_by_the_caller_or_the_architecture(tmp_path):
  hub_folder(tmp_path / "hub", head="pretraining")
  assert load_hub_folder(tmp_path / "hub").head == "pretraining"
  classifier = load_hub_folder(tmp_path / "hub", head="sequence_classification", num_labels=5)
  assert classifier.newly_initialised == ["head/classifier/bias", "head/classifier/kernel"]
  assert classifier.params["head"]["classifier"]["kernel"].shape == (32, 5)
  assert "cls.seq_relationship.weight" in classifier.unused and "bert.pooler.dense.weight" not in classifier.unused
  base = load_hub_folder(tmp_path / "hub", head="base")
  assert "head" not in base.params and base.newly_initialised == []


def test_fresh_values_follow_the_seed_and_the_models_own_initialisation(tmp_path):
  hub_folder(tmp_path / "hub")
  one, again, other = (load_hub_folder(tmp_path / "hub", head="token_classification", seed=s) for s in (1, 1, 2))
  kernel = one.params["head"]["classifier"]["kernel"]
  np.testing.assert_array_equal(kernel, again.params["head"]["classifier"]["kernel"])
  assert not np.array_equal(kernel, other.params["head"]["classifier"]["kernel"])
  assert 0.2 < kernel.std() < 0.4  # initializer_range is 0.3
  assert (one.params["head"]["classifier"]["bias"] == 0).all()


def test_labels(tmp_path):
  names = ["差", "中", "好"]
  hub_folder(
    tmp_path / "hub",
    head="sequence_classification",
    id2label=dict(enumerate(names)),
    label2id={name: i for i, name in enumerate(names)},
  )
  hub = load_hub_folder(tmp_path / "hub")
  assert (hub.num_labels, hub.label_names) == (3, ("差", "中", "好"))
  written = json.loads((save_as_hub(tmp_path / "again", hub) / "config.json").read_text("utf-8"))
  assert written["id2label"] == {"0": "差", "1": "中", "2": "好"}
  wider = load_hub_folder(tmp_path / "hub", num_labels=4)
  assert (wider.num_labels, wider.label_names) == (4, None)
  assert wider.newly_initialised == ["head/classifier/bias", "head/classifier/kernel"]
  assert wider.unused == ["classifier.bias", "classifier.weight"]
  written = json.loads((save_as_hub(tmp_path / "wider", wider) / "config.json").read_text("utf-8"))
  assert written["id2label"] == {str(i): f"LABEL_{i}" for i in range(4)}
  assert written["label2id"] == {f"LABEL_{i}": i for i in range(4)}


def test_a_span_head_from_a_config_with_three_labels_exports_with_two(tmp_path):
  hub_folder(tmp_path / "hub", head="masked_lm")
  hub = load_hub_folder(tmp_path / "hub", head="question_answering")
  save_as_hub(tmp_path / "again", hub)
  _, info = torch_class("bert", "question_answering").from_pretrained(tmp_path / "again", output_loading_info=True)
  assert not info["missing_keys"] and not info["mismatched_keys"]


def test_config_of_the_export(tmp_path):
  hub_folder(tmp_path / "hub")
  config = json.loads((tmp_path / "hub" / "config.json").read_text())
  config.update(dtype="float16", torch_dtype="float16", task_specific_params={"kept": 1})
  (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
  hub = load_hub_folder(tmp_path / "hub", head="base")
  written = json.loads((save_as_hub(tmp_path / "again", hub) / "config.json").read_text())
  assert written["architectures"] == ["BertModel"]
  assert written["task_specific_params"] == {"kept": 1}
  # transformers would cast to what the config says: it must be what the file holds.
  assert written["dtype"] == written["torch_dtype"] == "float32"
  assert written.keys() == config.keys()
  assert {name: config[name] for name in ("vocab_size", "hidden_size", "layer_norm_eps")} == {
    name: written[name] for name in ("vocab_size", "hidden_size", "layer_norm_eps")
  }


@pytest.mark.parametrize("dtype,relative", [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_export_in_half_precision(tmp_path, dtype, relative):
  hub_folder(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub")
  save_as_hub(tmp_path / "half", hub, dtype=dtype)
  assert {info.dtype for info in io.WeightFiles(tmp_path / "half").tensors} == {dtype}
  model = torch_class("bert", "masked_lm").from_pretrained(tmp_path / "half")
  assert str(model.dtype) == f"torch.{dtype}"
  for path, x in models.flatten(load_hub_folder(tmp_path / "half").params).items():
    np.testing.assert_allclose(x, models.flatten(hub.params)[path], rtol=relative, atol=1e-6)


def test_export_refuses_numbers_that_do_not_fit_the_dtype(tmp_path):
  hub_folder(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub")
  hub.params["token_embed"]["embedding"][0, 0] = 1e5
  with pytest.raises(UserError, match="word_embeddings.weight holds numbers too large for float16"):
    save_as_hub(tmp_path / "half", hub, dtype="float16")
  assert not (tmp_path / "half").exists()


def test_export_in_shards(tmp_path):
  model = torch_model("bert", "masked_lm")
  model.save_pretrained(tmp_path / "hub")
  (tmp_path / "hub" / "vocab.txt").write_text("[PAD]\n")
  hub = load_hub_folder(tmp_path / "hub")
  folder = save_as_hub(tmp_path / "shards", hub, max_shard_bytes=20_000, tokenizer_from=tmp_path / "hub")
  index = json.loads((folder / "model.safetensors.index.json").read_text())
  assert len(set(index["weight_map"].values())) > 3
  assert all((folder / name).stat().st_size < 25_000 for name in index["weight_map"].values())
  assert (folder / "vocab.txt").read_text() == "[PAD]\n"
  again, info = type(model).from_pretrained(folder, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for name, tensor in model.state_dict().items():
    assert (again.state_dict()[name] == tensor).all(), name
  assert_same_tree(load_hub_folder(folder).params, hub.params)


def test_export_overwrites_nothing_and_leaves_nothing_half_done(tmp_path):
  hub_folder(tmp_path / "hub")
  hub = load_hub_folder(tmp_path / "hub")
  before = sorted(path.name for path in tmp_path.iterdir())
  with pytest.raises(UserError, match="not empty"):
    save_as_hub(tmp_path / "hub", hub)
  del hub.params["encoder"]["layers"]["mlp"]["wi"]["bias"]
  hub.params["encoder"]["extra"] = np.zeros(3)
  with pytest.raises(UserError) as error:
    save_as_hub(tmp_path / "again", hub)
  assert "- encoder/layers/mlp/wi/bias (3, 48)" in str(error.value)
  assert "+ encoder/extra (3,)" in str(error.value)
  assert sorted(path.name for path in tmp_path.iterdir()) == before
