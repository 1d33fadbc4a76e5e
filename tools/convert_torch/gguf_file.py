"""A GGUF file of llama.cpp, as the Hub folder it was made from: its names, forms and config.json.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Numbers in blocks are made float32 one tensor at a
time, as llama.cpp does.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert_torch import io
from fsb_jax.errors import UserError
from fsb_jax.models.scaled_rotary import Llama3Scaling

_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16"}
# Kinds of blocks that become float32.
_BLOCKS = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# What the angles per step are divided by, in place of a scaling in the metadata.
_ANGLE_FACTORS = "rope_freqs.weight"


class GgufFile:
  """A GGUF file of a LLaMA, opened but not read; has what `io.WeightFiles` has.

  Attributes:
    path: the file.
    paths: the same, in a list.
    tensors: what it holds, by the Hub's names.
    config: what config.json would say.
  """

  def __init__(self, path: Path | str):
    """Reads the header.

    Raises:
      UserError: the `gguf` package is missing, the file is damaged, or it holds no whole LLaMA.
    """
    self.path = Path(path)
    self.paths = [self.path]
    reader = _open(self.path)
    self._fields = reader.fields
    self._stored = {_hub_name(tensor.name): tensor for tensor in reader.tensors}
    self.tensors = [
      io.TensorInfo(name, tuple(tensor.shape[::-1].tolist()), _dtype(tensor.tensor_type.name), self.path)
      for name, tensor in self._stored.items()
      if name != _ANGLE_FACTORS
    ]
    self.config = self._config()

  def read(self, tensors: Iterable[io.TensorInfo]) -> Iterator[tuple[io.TensorInfo, np.ndarray]]:
    """Yields the tensors, each made of numbers when its turn comes."""
    heads = {"q_proj": self.config["num_attention_heads"], "k_proj": self.config["num_key_value_heads"]}
    for info in tensors:
      array = _numbers(self._stored[info.name]).reshape(info.shape)
      part = info.name.split(".")[-2]
      yield info, _halves(array, heads[part]) if part in heads else array

  def sha256(self) -> dict[str, str]:
    """The hash of the file, by its name."""
    return {path.name: io.sha256(path) for path in self.paths}

  def _config(self) -> dict:
    path, get = self.path, self.value
    architecture = get("general.architecture", str)
    if architecture != "llama":
      raise UserError(f"{path} holds a {architecture} model; fsb_jax reads GGUF files of llama only")
    if get("split.count", int, 1) > 1:
      raise UserError(f"{path} is one of {get('split.count', int)} parts; join them with llama-gguf-split --merge")
    if get("llama.expert_count", int, 0):
      raise UserError(f"{path} is a mixture of experts, which fsb_jax does not support")
    embedding = next((info for info in self.tensors if info.name == "model.embed_tokens.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
      raise UserError(f"{path} has no token_embd.weight [tokens, width], so it holds no whole model")
    names = (re.match(r"model\.layers\.(\d+)\.", info.name) for info in self.tensors)
    held = len({match[1] for match in names if match})
    if held != get("llama.block_count", int):
      raise UserError(f"{path} says llama.block_count={get('llama.block_count', int)} and holds {held} blocks")
    width, heads = get("llama.embedding_length", int), get("llama.attention.head_count", int)
    kv_heads = get("llama.attention.head_count_kv", int, heads)
    if not heads or width % heads or not kv_heads or heads % kv_heads:
      raise UserError(
        f"{path} says llama.embedding_length={width}, head_count={heads} and head_count_kv={kv_heads}, of which each "
        "must be a multiple of the next"
      )
    head_dim = get("llama.attention.key_length", int, width // heads)
    turned = get("llama.rope.dimension_count", int, head_dim)
    if turned != head_dim or get("llama.attention.value_length", int, head_dim) != head_dim:
      raise UserError(f"{path} turns {turned} of {head_dim} features of a head, which fsb_jax does not support")
    base = get("llama.rope.freq_base", float, 10000.0)
    tokens = {
      f"{ours}_token_id": get(f"tokenizer.ggml.{theirs}_token_id", int, None)
      for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      # The metadata may lack it.
      "vocab_size": embedding.shape[0],
      "hidden_size": width,
      "num_hidden_layers": held,
      "num_attention_heads": heads,
      "num_key_value_heads": kv_heads,
      "head_dim": head_dim,
      "intermediate_size": get("llama.feed_forward_length", int),
      "max_position_embeddings": get("llama.context_length", int),
      "rms_norm_eps": get("llama.attention.layer_norm_rms_epsilon", float),
      "rope_theta": base,
      "rope_scaling": self._scaling(base, head_dim),
      "tie_word_embeddings": "lm_head.weight" not in self._stored,
      **tokens,
    }

  def _scaling(self, base: float, head_dim: int) -> dict | None:
    kind = self.value("llama.rope.scaling.type", str, "none")
    factor = self.value("llama.rope.scaling.factor", float, self.value("llama.rope.scale_linear", float, 1.0))
    if _ANGLE_FACTORS in self._stored:
      return self._scaling_of_factors(base, head_dim)
    if kind == "none" or (kind == "linear" and factor == 1):
      return None
    original = self.value("llama.rope.scaling.original_context_length", int, None)
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}

  def _scaling_of_factors(self, base: float, head_dim: int) -> dict:
    """That of Llama 3.1 to 3.3, whose constants the file does not name, but for the factor."""
    factors = _numbers(self._stored[_ANGLE_FACTORS])
    said = {"factor": float(factors.max(initial=1)), "low": 1.0, "high": 4.0, "original_length": 8192}
    plain = base ** -(np.arange(0, head_dim, 2) / head_dim)
    known, _ = Llama3Scaling(**said).frequencies(plain, base)
    if factors.shape != plain.shape or not np.allclose(plain / factors, known, rtol=1e-5, atol=0):
      raise UserError(f"{self.path} scales its angles by {_ANGLE_FACTORS} otherwise than Llama 3.1 does")
    return {
      "rope_type": "llama3", "factor": said["factor"], "low_freq_factor": said["low"],
      "high_freq_factor": said["high"], "original_max_position_embeddings": said["original_length"],
    }  # fmt: skip

  def value(self, name: str, kind: type, *default: Any) -> Any:
    """A value of the metadata, of `kind`; UserError where it is of another, or is lacking without a default."""
    if name not in self._fields and default:
      return default[0]
    value = self._contents(name)
    if type(value) is not kind or (kind is not str and not value >= 0):
      says = f"says {name}={str(value)[:80]!r}" if name in self._fields else f"lacks {name}"
      raise UserError(f"{self.path} {says}; the metadata needs {_KINDS[kind]} there")
    # They are float32, whose 1e-5 is no double's.
    return float(str(np.float32(value))) if kind is float else value

  def values(self, name: str, kind: type, count: int | None = None, *default: list) -> list:
    """A list of the metadata, of `count` values of `kind`; UserError as for `value`."""
    if name not in self._fields and default:
      return default[0]
    values = self._contents(name)
    if type(values) is not list or not values or any(type(value) is not kind for value in values):
      says = f"holds no such list in {name}" if name in self._fields else f"lacks {name}"
      raise UserError(f"{self.path} {says}; the metadata needs a list there, each value {_KINDS[kind]}")
    if count is not None and len(values) != count:
      raise UserError(f"{self.path} holds {len(values)} values in {name}, and needs {count}: one for each token")
    return values

  def _contents(self, name: str) -> Any:
    try:
      return self._fields[name].contents() if name in self._fields else None
    except UnicodeDecodeError:
      raise UserError(f"{self.path} has a text in {name} that is not UTF-8; download it again") from None


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _open(path: Path):
  try:
    import gguf
  except ImportError:
    raise UserError(f"reading {path} needs the gguf package: pip install 'fsb_jax[gguf]'") from None

  class Reader(gguf.GGUFReader):
    def _get(self, offset, dtype, count=1, override_order=None):
      # The library's own gives nothing beyond the end of a file, and would count such nothings for ever.
      dtype = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
      return np.frombuffer(self.data, dtype, int(count), int(offset))

    def _get_field_parts(self, orig_offs, raw_type):
      # The library's own makes arrays of every value of a list, which takes it seconds for a vocabulary.
      if raw_type != gguf.GGUFValueType.ARRAY:
        return super()._get_field_parts(orig_offs, raw_type)
      kind, count = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
      start = orig_offs + 12
      if kind in self.gguf_scalar_to_np:
        parts = [self._get(start, self.gguf_scalar_to_np[kind], count)]
        size = parts[0].nbytes
      elif kind == gguf.GGUFValueType.STRING:
        parts, size = _texts(memoryview(self.data)[start:], count, self.byte_order)
      else:
        raise ValueError(f"a list of {kind.name}")
      return 12 + size, parts, list(range(len(parts))), [gguf.GGUFValueType.ARRAY, kind]

  try:
    reader = Reader(path)
  except (ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
    raise UserError(
      f"{path} ({path.stat().st_size} bytes) is cut short or not a GGUF file ({error}); download it again"
    ) from None
  if reader.endianess != gguf.GGUFEndian.LITTLE:
    raise UserError(f"{path} is of a big-endian machine; convert it with gguf-convert-endian")
  return reader


def _texts(data: memoryview, count: int, order: str) -> tuple[list[memoryview], int]:
  """`count` texts, each after its length, and their bytes with those of the lengths; ValueError beyond the end."""
  texts, place, length = [], 0, struct.Struct({"I": "=Q", "S": ">Q"}[order])
  while len(texts) < count:
    if place + 8 > len(data):
      raise ValueError("a list of texts goes beyond the end")
    end = place + 8 + length.unpack_from(data, place)[0]
    texts.append(data[place + 8 : end])
    place = end
  if place > len(data):
    raise ValueError("a text goes beyond the end")
  return texts, place


def _hub_name(name: str) -> str:
  """The Hub's name of a tensor; its own where the Hub has no such tensor, for the engine to report."""
  match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
  if match is None or match[2] not in _NAMES:
    return name
  layer = "" if match[1] is None else f"model.layers.{match[1]}."
  return f"{layer}{_NAMES[match[2]]}.{match[3]}"


def _dtype(kind: str) -> str:
  """Of the numbers that a tensor becomes; the file's own name where they are none that we read."""
  return _PLAIN.get(kind, "float32" if kind in _BLOCKS else kind)


def _numbers(tensor) -> np.ndarray:
  from gguf.quants import dequantize

  return tensor.data if tensor.data.dtype.kind == "f" else dequantize(tensor.data, tensor.tensor_type)


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows of every head from (0, d/2, 1, d/2 + 1, ...), which llama.cpp turns in pairs, back to their order."""
  return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
