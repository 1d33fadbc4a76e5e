"""Text encoders inside single files: transformers' names under a prefix, or open_clip's with fused projections."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from convert_torch.io import TensorInfo, WeightFiles

# open_clip's names inside a layer (https://github.com/mlfoundations/open_clip, src/open_clip/transformer.py).
_IN_LAYER = {
  "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
  "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
_OUTSIDE = {
  "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
  "text_model.embeddings.position_embedding.weight": "positional_embedding",
  "text_model.final_layer_norm.weight": "ln_final.weight",
  "text_model.final_layer_norm.bias": "ln_final.bias",
}
_FUSED = ("q_proj", "k_proj", "v_proj")
_PROJECTION = "text_projection"


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a tensor of transformers' lies.

  Attributes:
    info: the tensor in the file.
    part: which third of it; None for the whole.
    transposed: its axes are the other way round.
  """

  info: TensorInfo
  part: int | None = None
  transposed: bool = False

  def shape(self) -> tuple[int, ...]:
    """Of what it gives."""
    shape = self.info.shape if self.part is None else (self.info.shape[0] // 3, *self.info.shape[1:])
    return shape[::-1] if self.transposed else shape

  def form(self, array: np.ndarray) -> np.ndarray:
    """What it gives, of the whole tensor."""
    array = array if self.part is None else np.split(array, 3)[self.part]
    return array.T if self.transposed else array


class RenamedFiles:
  """Some tensors of opened files by other names; has what `io.WeightFiles` has.

  Attributes:
    paths: the files.
    tensors: what is seen of them, by the new names.
  """

  def __init__(self, files: WeightFiles, sources: Mapping[str, Source]):
    """Shows `files` as if their tensors had the names in `sources`."""
    self._files = files
    self.paths = files.paths
    self._sources = {
      TensorInfo(name, source.shape(), source.info.dtype, source.info.file): source for name, source in sources.items()
    }
    self.tensors = list(self._sources)

  def read(self, tensors: Iterable[TensorInfo]) -> Iterator[tuple[TensorInfo, np.ndarray]]:
    """Yields the tensors, those of one tensor in the file one after the other."""
    wanted: dict[TensorInfo, list[TensorInfo]] = collections.defaultdict(list)
    for info in tensors:
      wanted[self._sources[info].info].append(info)
    for held, array in self._files.read(wanted):
      for info in wanted[held]:
        yield info, self._sources[info].form(array)

  def sha256(self) -> dict[str, str]:
    """The hash of every file, by name."""
    return self._files.sha256()


def under(files: WeightFiles, prefix: str, keep_prefix: bool = False) -> RenamedFiles:
  """The tensors whose names begin with `prefix`, without it unless `keep_prefix`."""
  chosen = [info for info in files.tensors if info.name.startswith(prefix)]
  return RenamedFiles(
    files, {info.name if keep_prefix else info.name.removeprefix(prefix): Source(info) for info in chosen}
  )


def from_open_clip(files: WeightFiles, prefix: str, layers: int | None, projection: bool) -> RenamedFiles:
  """A text encoder of open_clip by transformers' names.

  Args:
    files: the opened file.
    prefix: what begins its names.
    layers: how many the model has, None for all; the file may have one more, which Stable Diffusion 2 does not use.
    projection: whether the model projects its pooled output.
  """
  held = {info.name.removeprefix(prefix): info for info in files.tensors if info.name.startswith(prefix)}
  sources: dict[str, Source] = {}
  names = {theirs: name for name, theirs in _OUTSIDE.items()}
  in_layer = {theirs: name for name, theirs in _IN_LAYER.items()}
  for name, info in held.items():
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
    if match is not None and int(match[1]) == layers:
      continue
    if match is not None:
      layer, kind = f"text_model.encoder.layers.{match[1]}", match[3]
      if match[2] == "attn.in_proj":
        sources |= {f"{layer}.self_attn.{part}.{kind}": Source(info, i) for i, part in enumerate(_FUSED)}
      else:
        sources[f"{layer}.{in_layer.get(match[2], match[2])}.{kind}"] = Source(info)
    elif name == _PROJECTION:
      if projection:
        sources[f"{_PROJECTION}.weight"] = Source(info, transposed=True)
    elif name not in ("logit_scale", "attn_mask"):
      sources[names.get(name, name)] = Source(info)
  return RenamedFiles(files, sources)


def to_open_clip(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
  """Undoes `from_open_clip`, but for what it left out."""
  fused: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
  for name, array in tensors:
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
      whole = _PROJECTION if name == f"{_PROJECTION}.weight" else _OUTSIDE[name]
      yield whole, array.T if whole == _PROJECTION else array
      continue
    layer, inside, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
    part = inside.removeprefix("self_attn.")
    if part not in _FUSED:
      yield f"{layer}.{_IN_LAYER[inside]}.{kind}", array
      continue
    key = f"{layer}.attn.in_proj_{kind}"
    fused[key][part] = array
    if len(fused[key]) == len(_FUSED):
      yield key, np.concatenate([fused[key][part] for part in _FUSED])


def inferred_config(shapes: Mapping[str, tuple[int, ...]], open_clip: bool) -> dict[str, Any]:
  """config.json of a text encoder from the shapes of its tensors by transformers' names.

  Every published one has heads of 64.

  Args:
    shapes: name -> shape.
    open_clip: whether it is open_clip's, which has another activation than OpenAI's.
  """

  def layers(pattern):
    return 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))

  words = shapes.get("embeddings.word_embeddings.weight")
  if words is not None:
    return {
      "model_type": "bert", "architectures": ["BertModel"], "vocab_size": words[0], "hidden_size": words[1],
      "num_hidden_layers": layers(r"encoder\.layer\.(\d+)\."), "num_attention_heads": words[1] // 64,
      "intermediate_size": shapes["encoder.layer.0.intermediate.dense.weight"][0],
      "max_position_embeddings": shapes["embeddings.position_embeddings.weight"][0],
      "type_vocab_size": shapes["embeddings.token_type_embeddings.weight"][0],
    }  # fmt: skip
  words = shapes["text_model.embeddings.token_embedding.weight"]
  projection = shapes.get(f"{_PROJECTION}.weight")
  return {
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"],
    "vocab_size": words[0], "hidden_size": words[1],
    "num_hidden_layers": layers(r"text_model\.encoder\.layers\.(\d+)\."),
    "num_attention_heads": words[1] // 64,
    "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
    "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
    "projection_dim": words[1] if projection is None else projection[0],
    "hidden_act": "gelu" if open_clip else "quick_gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
  }  # fmt: skip
