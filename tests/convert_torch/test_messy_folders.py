"""Folders as people publish them, and folders that are broken: each loads, or says in one sentence what is wrong."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from convert_torch import load_hub_folder
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file
from tiny_hub import (
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

from fsb_jax import models
from fsb_jax.errors import UserError


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
  """A BERT with a masked language model's head."""
  return hub_folder(tmp_path_factory.mktemp("hub") / "clean")


@pytest.fixture(scope="module")
def params(clean):
  return load_hub_folder(clean).params


def edit_config(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  config.update(changes)
  (folder / "config.json").write_text(json.dumps(config))


def refusal(folder, tmp_path, **changes):
  """What is said of a folder's weights with these changes of its config, in `tmp_path / "other"`."""
  shutil.copytree(folder, tmp_path / "other")
  edit_config(tmp_path / "other", **changes)
  with pytest.raises(UserError) as error:
    load_hub_folder(tmp_path / "other")
  return str(error.value)


def as_torch_files(clean, target, shards):
  """The folder with pickles in place of safetensors."""
  shutil.copytree(clean, target)
  tensors = {name: torch.from_numpy(x) for name, x in tensors_of(clean).items()}
  (target / "model.safetensors").unlink()
  if shards == 1:
    torch.save(tensors, target / "pytorch_model.bin")
    return target
  names = sorted(tensors)
  weight_map = {}
  for i in range(shards):
    file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
    torch.save({name: tensors[name] for name in names[i::shards]}, target / file)
    weight_map.update(dict.fromkeys(names[i::shards], file))
  (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  return target


def test_gamma_and_beta(clean, params, tmp_path):
  def old_names(tensors):
    return {
      name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
      for name, x in tensors.items()
    }

  folder = rewritten(clean, tmp_path / "old", old_names)
  assert "bert.embeddings.LayerNorm.gamma" in tensors_of(folder)
  assert_same_tree(load_hub_folder(folder).params, params)


def test_gamma_beside_weight_is_a_duplicate(clean, tmp_path):
  def both(tensors):
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"]

  with pytest.raises(UserError, match=r"a second bert\.embeddings\.LayerNorm\.weight"):
    load_hub_folder(rewritten(clean, tmp_path / "both", both))


def test_missing_pooler_is_drawn_afresh(clean, tmp_path):
  hub = load_hub_folder(clean, head="sequence_classification")
  assert hub.newly_initialised == ["head/classifier/bias", "head/classifier/kernel", "pooler/bias", "pooler/kernel"]
  assert hub.params["pooler"]["kernel"].shape == (32, 32)
  assert "cls.predictions.bias" in hub.unused


def test_names_without_the_prefix(clean, params, tmp_path):
  bare = rewritten(clean, tmp_path / "bare", lambda t: {name.removeprefix("bert."): x for name, x in t.items()})
  assert_same_tree(load_hub_folder(bare).params, params)


def test_base_model_from_names_with_the_prefix(clean, params):
  hub = load_hub_folder(clean, head="base")
  assert_same_tree(hub.params["encoder"], params["encoder"])
  assert hub.newly_initialised == ["pooler/bias", "pooler/kernel"]


def test_half_the_names_without_the_prefix_is_refused(clean, tmp_path):
  name = "bert.encoder.layer.1.output.dense.bias"
  folder = rewritten(clean, tmp_path / "half", lambda t: {n[5:] if n == name else n: x for n, x in t.items()})
  with pytest.raises(UserError) as error:
    load_hub_folder(folder)
  assert f"  - {name} [32] for encoder/layers/mlp/wo/bias" in str(error.value)
  assert f"  + {name[5:]} [32]" in str(error.value)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_tied_copies(family, tmp_path):
  """PyTorch's pickles hold the tied copies; safetensors leave them out. Equal ones are read over."""
  without = hub_folder(tmp_path / "without", family)
  scope = {"bert": "cls.predictions", "roberta": "lm_head"}[family]

  def copies(tensors):
    tensors[f"{scope}.decoder.weight"] = tensors[f"{family}.embeddings.word_embeddings.weight"]
    tensors[f"{scope}.decoder.bias"] = tensors[f"{scope}.bias"]

  def bias_under_its_other_name(tensors):
    tensors[f"{scope}.decoder.bias"] = tensors.pop(f"{scope}.bias")

  expected = load_hub_folder(without).params
  assert_same_tree(load_hub_folder(rewritten(without, tmp_path / "with", copies)).params, expected)
  other = rewritten(without, tmp_path / "other", bias_under_its_other_name)
  assert_same_tree(load_hub_folder(other).params, expected)


def test_tied_copy_that_differs(clean, tmp_path):
  def differing(tensors):
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1

  folder = rewritten(clean, tmp_path / "differing", differing)
  with pytest.raises(UserError, match=r"decoder.weight differs from .*; set tie_word_embeddings to false"):
    load_hub_folder(folder)
  edit_config(folder, tie_word_embeddings=False)
  decoder = load_hub_folder(folder).params["head"]["masked_lm"]["decoder"]
  tensors = tensors_of(folder)
  np.testing.assert_array_equal(decoder["kernel"].T, tensors["cls.predictions.decoder.weight"])
  np.testing.assert_array_equal(decoder["bias"], tensors["cls.predictions.bias"])


def test_buffers_are_read_over(clean, params, tmp_path):
  def buffers(tensors):
    tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
    tensors["bert.embeddings.token_type_ids"] = np.zeros((1, 40), np.int64)

  hub = load_hub_folder(rewritten(clean, tmp_path / "buffers", buffers))
  assert hub.unused == []
  assert_same_tree(hub.params, params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pickled", [False, True])
def test_half_precision_files(clean, tmp_path, dtype, pickled):
  shutil.copytree(clean, tmp_path / "half")
  tensors = {name: torch.from_numpy(x).to(dtype) for name, x in tensors_of(clean).items()}
  if pickled:
    (tmp_path / "half" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "half" / "pytorch_model.bin")
  else:
    save_torch_file(tensors, tmp_path / "half" / "model.safetensors")
  flat = models.flatten(load_hub_folder(tmp_path / "half").params)
  table = flat["token_embed/embedding"]
  assert {x.dtype for x in flat.values()} == {np.dtype("float32")}
  np.testing.assert_array_equal(table, tensors["bert.embeddings.word_embeddings.weight"].float().numpy())
  kept = load_hub_folder(tmp_path / "half", run=models.Run(param_dtype=str(dtype)[6:])).params
  assert kept["token_embed"]["embedding"].dtype.name == str(dtype)[6:]
  np.testing.assert_array_equal(kept["token_embed"]["embedding"].astype("float32"), table)


def test_sharded_safetensors(params, tmp_path):
  torch_model("bert", "masked_lm").save_pretrained(tmp_path, max_shard_size="20KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 3
  hub = load_hub_folder(tmp_path)
  assert_same_tree(hub.params, params)
  assert sorted(hub.source["sha256"]) == sorted(path.name for path in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_of_tensors(clean, params, tmp_path, shards):
  hub = load_hub_folder(as_torch_files(clean, tmp_path / "bin", shards))
  assert_same_tree(hub.params, params)
  assert len(hub.source["sha256"]) == shards


def test_pickle_in_the_old_format(clean, params, tmp_path):
  folder = as_torch_files(clean, tmp_path / "bin", 1)
  state = torch.load(folder / "pytorch_model.bin", weights_only=True)
  torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
  assert_same_tree(load_hub_folder(folder).params, params)


def test_safetensors_are_preferred(clean, params, tmp_path):
  shutil.copytree(clean, tmp_path / "both")
  (tmp_path / "both" / "pytorch_model.bin").write_bytes(b"not read")
  assert_same_tree(load_hub_folder(tmp_path / "both").params, params)


class Malicious:
  """Creates a file when unpickled without care."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_malicious_pickle_is_refused_and_does_not_run(clean, tmp_path, new_format):
  folder = as_torch_files(clean, tmp_path / "bin", 1)
  proof = tmp_path / "ran"
  state = {"x": Malicious(proof)}
  torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
  with pytest.raises(UserError, match=r"is refused: its pickle asks to load \w+\.mkdir, which could run code"):
    load_hub_folder(folder)
  assert not proof.exists()
  torch.load(folder / "pytorch_model.bin", weights_only=False)
  assert proof.exists()  # it is what it claims to be


def test_pickle_of_more_than_tensors(clean, tmp_path):
  folder = as_torch_files(clean, tmp_path / "bin", 1)
  torch.save({"state_dict": {}, "epoch": 3}, folder / "pytorch_model.bin")
  with pytest.raises(UserError, match="not a plain dictionary of tensors"):
    load_hub_folder(folder)


def test_pickle_cut_short(clean, tmp_path):
  folder = as_torch_files(clean, tmp_path / "bin", 1)
  whole = (folder / "pytorch_model.bin").read_bytes()
  for size in (0, 100, len(whole) // 2):
    (folder / "pytorch_model.bin").write_bytes(whole[:size])
    with pytest.raises(UserError, match=rf"pytorch_model.bin \({size} bytes\) is cut short or damaged"):
      load_hub_folder(folder)


def test_all_misfits_are_listed_at_once(clean, tmp_path):
  def spoil(tensors):
    tensors["bert.extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["bert.encoder.layer.7.output.dense.bias"] = np.zeros(32, np.float32)
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((100, 32), np.float32)
    tensors["bert.encoder.layer.0.output.dense.weight"] = np.zeros((32, 48), np.int8)

  with pytest.raises(UserError) as error:
    load_hub_folder(rewritten(clean, tmp_path / "spoilt", spoil))
  lines = str(error.value).split("\n")
  assert "bert with head masked_lm" in lines[0]
  assert sorted(lines[1:]) == [
    "  ! bert.embeddings.word_embeddings.weight is [100, 32], token_embed/embedding needs [101, 32] "
    "(config.json says vocab_size=101)",
    "  ! bert.encoder.layer.0.output.dense.weight holds I8, not floating point numbers",
    "  ! the files hold 8 layers (config.json says num_hidden_layers=3)",
    "  + bert.encoder.layer.7.output.dense.bias [32]",
    "  + bert.extra.weight [2, 3]",
    "  - bert.encoder.layer.1.output.dense.bias [32] for encoder/layers/mlp/wo/bias",
  ]


def test_missing_layer(clean, tmp_path):
  def shorter(tensors):
    return {name: x for name, x in tensors.items() if ".layer.2." not in name}

  with pytest.raises(UserError) as error:
    load_hub_folder(rewritten(clean, tmp_path / "short", shorter))
  assert str(error.value).count("\n  - bert.encoder.layer.2.") == 16
  assert "\n  ! the files hold 2 layers (config.json says num_hidden_layers=3)" in str(error.value)


@pytest.mark.parametrize(
  "field,value,line",
  [
    ("max_position_embeddings", 64, "position_embeddings.weight is [40, 32], position_embed/embedding needs [64, 32]"),
    ("intermediate_size", 96, "intermediate.dense.weight is [48, 32], encoder/layers/mlp/wi/kernel needs [96, 32]"),
    ("vocab_size", 110, "word_embeddings.weight is [101, 32], token_embed/embedding needs [110, 32]"),
  ],
)
def test_a_config_that_contradicts_the_weights(clean, tmp_path, field, value, line):
  assert f"{line} (config.json says {field}={value})\n" in refusal(clean, tmp_path, **{field: value}) + "\n"


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
  return hub_folder(tmp_path_factory.mktemp("hub") / "deberta", "deberta_v2")


@pytest.mark.parametrize(
  "field,value,tensor",
  [
    ("position_buckets", 16, "rel_embeddings.weight is [16, 32], encoder/relative_embed/embedding needs [32, 32]"),
    ("conv_kernel_size", 0, "+ deberta.encoder.conv.conv.weight [32, 32, 3]"),
    ("norm_rel_ebd", "none", "+ deberta.encoder.LayerNorm.weight [32]"),
    ("share_att_key", False, "pos_key_proj.weight [32, 32] for encoder/layers/attention/distance_key/kernel"),
    ("position_biased_input", False, "+ deberta.embeddings.position_embeddings.weight [40, 32]"),
    ("type_vocab_size", 0, "+ deberta.embeddings.token_type_embeddings.weight [2, 32]"),
  ],
)
def test_a_config_without_a_part_of_the_weights_or_with_one_more(deberta, tmp_path, field, value, tensor):
  assert f"{tensor} (config.json says {field}={value}" in refusal(deberta, tmp_path, **{field: value})
  if field == "conv_kernel_size":
    config = json.loads((deberta / "config.json").read_text())
    del config[field]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"conv\.weight \[32, 32, 3\] \(config.json does not say conv_kernel_size\)"):
      load_hub_folder(tmp_path / "other")


def test_wrong_number_of_labels_is_an_error_unless_asked_for(tmp_path):
  folder = hub_folder(tmp_path / "hub", head="token_classification")
  edit_config(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
  with pytest.raises(UserError, match=r"classifier.weight is \[3, 32\], .* needs \[2, 32\] .*num_labels=2"):
    load_hub_folder(folder)
  assert load_hub_folder(folder, num_labels=4).newly_initialised == ["head/classifier/bias", "head/classifier/kernel"]


@pytest.mark.parametrize("size", [0, 5, 1000, -10])
def test_truncated_safetensors(clean, tmp_path, size):
  shutil.copytree(clean, tmp_path / "cut")
  whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
  (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:size])
  with pytest.raises(UserError, match=r"model.safetensors \(\d+ bytes\) is cut short or not a safetensors file"):
    load_hub_folder(tmp_path / "cut")


@pytest.fixture
def sharded(tmp_path):
  torch_model("bert", "masked_lm").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
  return tmp_path / "sharded"


def edit_index(folder, change):
  path = folder / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  change(index)
  path.write_text(json.dumps(index))


def test_missing_shard(sharded):
  lost = sorted(sharded.glob("*.safetensors"))[1]
  lost.unlink()
  with pytest.raises(UserError, match=f"index.json names {lost.name}, which the folder lacks"):
    load_hub_folder(sharded)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "evil.bin", ".."])
def test_index_that_points_elsewhere(sharded, name):
  (sharded.parent / "secret.safetensors").write_bytes(b"")
  edit_index(sharded, lambda index: index["weight_map"].update({"bert.pooler.dense.bias": name}))
  with pytest.raises(UserError, match="which is not a .safetensors file in the same folder"):
    load_hub_folder(sharded)


def test_index_that_promises_what_its_shard_lacks(sharded):
  first = sorted(path.name for path in sharded.glob("*.safetensors"))[0]
  edit_index(sharded, lambda index: index["weight_map"].update({"bert.pooler.dense.bias": first}))
  with pytest.raises(UserError, match=f"promises bert.pooler.dense.bias in {first}, which does not hold it"):
    load_hub_folder(sharded)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"])
def test_index_of_another_form(sharded, index):
  (sharded / "model.safetensors.index.json").write_text(index)
  with pytest.raises(UserError, match="weight_map|JSON"):
    load_hub_folder(sharded)


def test_same_tensor_in_two_shards(sharded):
  first = sorted(sharded.glob("*.safetensors"))[0]
  tensors = {**load_file(first), "bert.pooler.dense.bias": np.zeros(32, np.float32)}
  save_file(tensors, sharded / "more.safetensors")
  edit_index(sharded, lambda index: index["weight_map"].update({"bert.pooler.dense.bias": "more.safetensors"}))
  with pytest.raises(UserError) as error:
    load_hub_folder(sharded)
  assert str(error.value).count(": a second ") == len(tensors) - 1


def test_no_tokenizer_and_no_labels(clean):
  hub = load_hub_folder(clean)
  assert (hub.num_labels, hub.label_names) == (3, None)


def test_not_a_model_folder(clean, tmp_path):
  with pytest.raises(UserError, match="is not a folder"):
    load_hub_folder(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"has no config\.json"):
    load_hub_folder(tmp_path)
  shutil.copy(clean / "config.json", tmp_path)
  with pytest.raises(UserError, match="has no weights: looked for model.safetensors, model.safetensors.index"):
    load_hub_folder(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    load_hub_folder(tmp_path)


def test_config_that_we_do_not_know(clean, tmp_path):
  shutil.copytree(clean, tmp_path / "x")
  edit_config(tmp_path / "x", model_type="nonesuch")
  with pytest.raises(UserError, match="model_type 'nonesuch'"):
    load_hub_folder(tmp_path / "x")
  edit_config(tmp_path / "x", model_type="bert", architectures=["BertForSomethingElse"])
  with pytest.raises(UserError, match="BertForSomethingElse is not a head"):
    load_hub_folder(tmp_path / "x")
  assert load_hub_folder(tmp_path / "x", head="masked_lm").newly_initialised == []
  edit_config(tmp_path / "x", architectures=None)
  with pytest.raises(UserError, match="names no architecture; pass head="):
    load_hub_folder(tmp_path / "x")
  edit_config(tmp_path / "x", architectures=["BertForMaskedLM"], id2label={"0": "a", "2": "b"})
  with pytest.raises(UserError, match="id2label has keys"):
    load_hub_folder(tmp_path / "x")


def test_old_folder_computes_what_transformers_computes(clean, tmp_path):
  """Everything old at once: gamma and beta, buffers, tied copies, float16, a pickle."""
  model = torch_class("bert", "masked_lm").from_pretrained(clean, attn_implementation="eager").half().float().eval()
  state = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x.half()
    for name, x in model.state_dict().items()
  }
  state["bert.embeddings.position_ids"] = torch.arange(40)[None]
  folder = as_torch_files(clean, tmp_path / "old", 1)
  torch.save(state, folder / "pytorch_model.bin")
  arrays = inputs("bert", "masked_lm")
  ours = our_outputs(load_hub_folder(folder), arrays)
  for name, reference in torch_outputs(model, arrays).items():
    assert_close(ours[name], reference)
