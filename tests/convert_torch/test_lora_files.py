"""LoRA files in both kinds of names, against PyTorch's weights with the products added by hand."""

import dataclasses

import numpy as np
import pytest
import tiny_diffusers
import torch
import transformers
from convert_torch import hub, lora_files
from convert_torch.diffusers_folder import DiffusersModel, TextEncoder
from safetensors.numpy import load_file, save_file

from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError

RANK, ALPHA = 3, 6.0
# Linear maps with and without heads, a fused one, 1x1 and 3x3 convolutions, and those of a text encoder.
_BLOCK = "down_blocks.0.attentions.0"
ADAPTED = {
  "unet": (
    f"{_BLOCK}.transformer_blocks.0.attn1.to_q", f"{_BLOCK}.transformer_blocks.0.attn2.to_v",
    f"{_BLOCK}.transformer_blocks.0.attn2.to_out.0", f"{_BLOCK}.transformer_blocks.0.ff.net.0.proj",
    f"{_BLOCK}.proj_in", "conv_in", "up_blocks.1.resnets.0.conv1", "time_embedding.linear_1",
  ),
  "text_encoder": ("encoder.layer.1.attention.self.query", "encoder.layer.0.attention.output.dense"),
}  # fmt: skip


def read(unet, text_encoder, folder, scan_layers=True):
  module, params = tiny_diffusers.read(unet, folder / "unet", dtype="float32", scan_layers=scan_layers)
  text_encoder.save_pretrained(folder / "text_encoder")
  loaded = hub.load_hub_folder(folder / "text_encoder", run=module.config.run)
  return DiffusersModel(
    unet_config=module.config, unet_params=params,
    text_encoders=[TextEncoder(loaded.family, loaded.config, loaded.params, loaded.head)],
  )  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
  """(UNet, text encoder) of theirs."""
  config = transformers.BertConfig(
    vocab_size=16, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=8,
  )  # fmt: skip
  reader = tiny_diffusers.randomised(transformers.BertModel(config), torch.float32)
  return tiny_diffusers.unet(dtype=torch.float32), reader


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory):
  """(a file in diffusers' names, one in kohya's, the model before, the model that PyTorch changed)."""
  folder = tmp_path_factory.mktemp("lora")
  before = read(*theirs, folder / "before")
  random = np.random.default_rng(0)
  diffusers_names, kohya_names = {}, {}
  start = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
  for part, module in zip(("unet", "text_encoder"), theirs):
    for name in ADAPTED[part]:
      weight = module.get_submodule(name).weight
      down = random.normal(size=(RANK, *weight.shape[1:])).astype(np.float32)
      up = random.normal(size=(len(weight), RANK, *(1,) * (weight.ndim - 2))).astype(np.float32)
      diffusers_names |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up * ALPHA / RANK}
      key = start[part] + name.replace(".", "_")
      kohya_names |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
      kohya_names[f"{key}.alpha"] = np.array(ALPHA, np.float32)
      change = up.reshape(len(weight), RANK) @ down.reshape(RANK, -1) * ALPHA / RANK
      with torch.no_grad():
        weight.add_(torch.tensor(change.reshape(weight.shape)))
  save_file(diffusers_names, folder / "diffusers.safetensors")
  save_file(kohya_names, folder / "kohya.safetensors")
  return folder / "diffusers.safetensors", folder / "kohya.safetensors", before, read(*theirs, folder / "after")


def assert_same_weights(model, expected, before):
  pairs = [(model.unet_params, expected.unet_params, before.unet_params)]
  pairs += [
    (ours.params, want.params, was.params)
    for ours, want, was in zip(model.text_encoders, expected.text_encoders, before.text_encoders)
  ]
  changed = 0
  for ours, want, was in pairs:
    ours, want, was = map(models.flatten, (ours, want, was))
    assert {*ours} == {*want}
    for path, x in want.items():
      np.testing.assert_allclose(ours[path], x, rtol=0, atol=2e-5, err_msg=path)
      changed += not np.array_equal(x, was[path])
  # The gated projection is two kernels of ours; the layers of the text encoder are stacked.
  assert changed == len(ADAPTED["unet"]) + 1 + len(ADAPTED["text_encoder"])


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
def test_a_file_changes_what_it_changes_in_pytorch(files, kind):
  path, before, after = files[kind == "kohya"], *files[2:]
  factors = lora_files.load_lora(path, before)
  assert_same_weights(lora_files.with_lora(before, factors), after, before)
  half = lora_files.with_lora(before, factors, strength=0.5)
  kernel = "convolution_in/kernel"
  was, full, middle = (models.flatten(model.unet_params)[kernel] for model in (before, after, half))
  np.testing.assert_allclose(middle, (was + full) / 2, atol=1e-5)


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
def test_and_the_way_back(files, kind, tmp_path):
  _, kohya, before, after = files
  factors = lora_files.load_lora(kohya, before)
  lora_files.save_lora(tmp_path / "new" / "file.safetensors", factors, before, layout=kind)
  again = lora_files.load_lora(tmp_path / "new" / "file.safetensors", before)
  assert_same_weights(lora_files.with_lora(before, again), after, before)
  written, expected = load_file(tmp_path / "new" / "file.safetensors"), load_file(files[kind == "kohya"])
  assert {*written} == {*expected}
  for name, tensor in expected.items():
    if ".ff" in name or "_ff_" in name:
      # Two kernels of ours, each by its own share of the ranks.
      assert not name.endswith("alpha") or tensor * 2 == 2 * RANK * (ALPHA / RANK)
      continue
    np.testing.assert_allclose(written[name], tensor, rtol=1e-6)
    assert written[name].shape == tensor.shape


def test_stacked_layers_and_one_alpha(files, tmp_path):
  before = files[2]
  random = np.random.default_rng(1)
  path = "down_0/attentions_0/blocks/layers/cross_attention/query/kernel"
  kernel = models.flatten(before.unet_params)[path]
  factors = {
    f"{path}/down": random.normal(size=(*kernel.shape[:2], RANK)).astype(np.float32),
    f"{path}/up": random.normal(size=(1, RANK, *kernel.shape[2:])).astype(np.float32),
  }
  lora_files.save_lora(tmp_path / "a.safetensors", {"unet": models.unflatten(factors)}, before, alpha=ALPHA)
  changed = lora_files.with_lora(before, lora_files.load_lora(tmp_path / "a.safetensors", before))
  expected = kernel + ALPHA / RANK * np.einsum("lir,lrhd->lihd", *factors.values())
  np.testing.assert_allclose(models.flatten(changed.unet_params)[path], expected, atol=1e-5)
  unrolled = dataclasses.replace(
    before, unet_config=before.unet_config.with_run(scan_layers=False),
    unet_params=checkpoints.to_layout(before.unet_params, False),
  )  # fmt: skip
  changed = lora_files.with_lora(unrolled, lora_files.load_lora(tmp_path / "a.safetensors", unrolled))
  first = models.flatten(changed.unet_params)[path.replace("layers/", "layers_0/")]
  np.testing.assert_allclose(first, expected[0], atol=1e-5)


def test_metadata_of_diffusers_give_the_scale(files, tmp_path):
  before = files[2]
  said = '{"unet.r": 3, "unet.lora_alpha": 12}'
  save_file(load_file(files[0]), tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": said})
  factors = lora_files.load_lora(tmp_path / "a.safetensors", before)
  assert float(models.flatten(factors["unet"])["convolution_in/kernel/alpha"]) == 12
  assert float(models.flatten(factors["text_encoder"])["encoder/layers_1/attention/query/kernel/alpha"]) == RANK
  said = '{"unet.r": 3, "unet.use_dora": true}'
  save_file(load_file(files[0]), tmp_path / "b.safetensors", metadata={"lora_adapter_metadata": said})
  with pytest.raises(UserError, match="use_dora"):
    lora_files.load_lora(tmp_path / "b.safetensors", before)


def test_names_of_the_original_code_and_of_clip(files, tmp_path):
  before = files[2]
  tensors = load_file(files[1])
  stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
  renamed = {name.replace(stem, "lora_unet_input_blocks_1_1_proj_in"): x for name, x in tensors.items() if stem in name}
  save_file(renamed, tmp_path / "a.safetensors")
  (only,) = models.flatten(lora_files.load_lora(tmp_path / "a.safetensors", before)["unet"]).keys() & {
    "down_0/attentions_0/project_in/kernel/down"
  }
  assert only


def test_mistakes_are_told(files, tmp_path):
  before = files[2]
  with pytest.raises(UserError, match="does not exist"):
    lora_files.load_lora(tmp_path, before)
  tensors = load_file(files[0])
  first = next(name for name in tensors if name.endswith("to_q.lora_A.weight"))
  for changes, message in (
    ({"unet.nothing.lora_A.weight": tensors[first]}, "holds unet.nothing.lora_A.weight, which the model has no place"),
    ({first.replace("lora_A", "lora_B"): None}, "only one of the two matrices"),
    ({first: tensors[first][:, :-1]}, r"the model's weight is \[8, 8\]"),
  ):
    path = tmp_path / f"{len(message)}.safetensors"
    save_file({name: x for name, x in {**tensors, **changes}.items() if x is not None}, path)
    with pytest.raises(UserError, match=message):
      lora_files.load_lora(path, before)
  with pytest.raises(UserError, match="already exists"):
    lora_files.save_lora(files[0], {}, before)
  with pytest.raises(UserError, match="is no LoRA factor of this model"):
    odd = {"unet": {"kernel": {"down": np.zeros((2, 2)), "up": np.zeros((2, 2))}}}
    lora_files.save_lora(tmp_path / "new.safetensors", odd, before)
