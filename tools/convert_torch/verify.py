"""The proof that a conversion computes the same numbers: PyTorch's model and ours on the same inputs."""

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from convert_torch import engine, hub, io, parts, sources
from convert_torch.weights import table
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError

# Of max(1, largest absolute value of the reference), per output. In float32 PyTorch itself strays from its own
# float64 result by up to about 1e-5 of that.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}

# Version 5 of transformers puts the projected vectors there; they are compared at length one.
_OTHERWISE = ("text_model_output.pooler_output", "vision_model_output.pooler_output")
_BATCH, _LENGTH = 4, 32
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_SENTENCES = (
  ("今天心情不好", "今天很开心"),
  ("中国的首都是北京，它有三千多年的历史。", "上海是中国最大的城市之一"),
  ("The quick brown fox jumps over the lazy dog.", "A dog sleeps."),
  ("机器学习 (machine learning) 在2023年有哪些进展？", "不知道"),
)


def verify(
  hub_folder: Path | str, ours: hub.HubModel | None = None, *, write_to: Path | str | None = None, seed: int = 0
) -> dict:
  """Compares PyTorch's model with ours, in float64 (where it runs in that) and float32.

  Inputs are random ids with padding and token types and, where the folder has a tokenizer, real sentences.
  Parameters that the folder lacks are given our values on PyTorch's side too, and are listed.

  Args:
    hub_folder: what PyTorch loads.
    ours: the model to compare; by default what `load_hub_folder` reads from the same folder.
    write_to: a file to write the certificate to.
    seed: of the random inputs.

  Returns:
    The certificate, ready for JSON: `passed`, `results` (one per dtype, kind of input and output, with the largest
    absolute difference, the reference's magnitude and the tolerance), hashes of the weight files, versions.

  Raises:
    UserError: no PyTorch here, transformers lacks the family or the head, or its model cannot be loaded.
  """
  hub_folder = Path(hub_folder)
  _torch()
  if sources.is_gguf(hub_folder) or parts.part_folders(hub_folder):
    raise UserError(f"{hub_folder} is nothing that transformers loads; verify the Hub folder that it was made from")

  hashes = io.WeightFiles(hub_folder).sha256()  # first: it says in one sentence what is wrong with a folder
  ours = ours or hub.load_hub_folder(hub_folder)
  weights = table(ours.family)
  if not (weights.in_transformers and models.family(ours.family).in_transformers(ours.head)):
    raise UserError(
      f"transformers has no {ours.family} model with head {ours.head} to verify against; fsb_jax's tests compare it "
      "with what the original code computed"
    )
  inputs = {"random ids": random_inputs(ours, seed)}
  if any((hub_folder / name).is_file() for name in _VOCABULARIES):
    inputs["sentences"] = _sentence_inputs(hub_folder, ours)
  results, fresh = [], []
  for dtype, tolerance in TOLERANCES.items():
    if dtype == "float64" and not weights.float64_in_transformers:
      continue
    theirs, fresh = _run_torch(hub_folder, ours, inputs, dtype)
    mine = _run_ours(ours, inputs, dtype)
    for kind in inputs:
      results += [
        {"dtype": dtype, "inputs": kind, "output": name, **_difference(mine[kind][name], reference, tolerance)}
        for name, reference in theirs[kind].items()
      ]
  certificate = {
    "passed": all(result["passed"] for result in results),
    "hub_folder": str(hub_folder),
    "family": ours.family,
    "head": ours.head,
    "num_labels": ours.num_labels,
    "scan_layers": ours.config.run.scan_layers,
    "param_dtype": ours.config.run.param_dtype,
    "given_our_values": fresh,
    "results": results,
    "sha256": hashes,
    "versions": {**checkpoints.installed_versions(), "torch": _torch().__version__},
  }
  if write_to is not None:
    Path(write_to).write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  return certificate


def random_inputs(ours: hub.HubModel, seed: int) -> dict[str, np.ndarray]:
  """Random ids with rows of several lengths: `input_ids`, `attention_mask`, `token_type_ids` `[batch, length]`.

  A model with a decoder has it write random `decoder_input_ids`, too; one that reads images has random `pixel_values`.
  """
  config, random = ours.config, np.random.default_rng(seed)
  if not config.vocab_size:
    return _completed(ours, {}, seed)
  length = min(_LENGTH, getattr(config.positions, "usable_length", _LENGTH))
  lengths = np.array([length, max(1, length // 2), min(3, length), max(1, length - 1)])
  mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
  ids = random.integers(0, config.vocab_size, (_BATCH, length))
  ids = np.where(ids == config.pad_token_id, (ids + 1) % config.vocab_size, ids)
  padding = ours.hf_config.get("pad_token_id") or 0
  inputs = {"input_ids": np.where(mask, ids, padding).astype(np.int32), "attention_mask": mask}
  if config.token_types:
    inputs["token_type_ids"] = random.integers(0, config.token_types, (_BATCH, length)).astype(np.int32)
  return _completed(ours, inputs, seed)


def _sentence_inputs(hub_folder: Path, ours: hub.HubModel) -> dict[str, np.ndarray]:
  from transformers import AutoTokenizer

  length = min(_LENGTH, getattr(ours.config.positions, "usable_length", _LENGTH))
  tokenizer = AutoTokenizer.from_pretrained(hub_folder, local_files_only=True)
  first, second = zip(*_SENTENCES, strict=True)
  encoded = tokenizer(
    list(first), list(second), padding="max_length", truncation=True, max_length=length, return_tensors="np"
  )
  if encoded["input_ids"].max() >= ours.config.vocab_size:
    raise UserError(
      f"the tokenizer in {hub_folder} gives id {encoded['input_ids'].max()}, "
      f"but the model has {ours.config.vocab_size} rows"
    )
  names = ("input_ids", "attention_mask", *(("token_type_ids",) if ours.config.token_types else ()))
  return _completed(ours, {name: encoded[name].astype(np.int32) for name in names if name in encoded})


def _completed(ours: hub.HubModel, inputs: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
  """With all that goes with a text, where the model reads such, and folded into choices where the head takes them."""
  decoder, vision = ours.config.decoder, getattr(ours.config, "vision_config", None)
  if vision is not None:
    size = (_BATCH, vision.image_size, vision.image_size, vision.channels)
    inputs["pixel_values"] = np.random.default_rng(seed).normal(size=size)
  if getattr(ours.config, "end_token_id", None) is not None:
    # Where a text is read; without one it would be at the first token, whatever the text.
    inputs["input_ids"][np.arange(_BATCH), inputs["attention_mask"].sum(axis=1) - 1] = ours.config.end_token_id
  if decoder is not None and ours.head == "sequence_classification":
    # transformers wants as many end tokens in every row.
    real, end = inputs["attention_mask"].sum(axis=1), decoder.end_token_id
    inputs["input_ids"] = np.where(inputs["input_ids"] == end, (end + 1) % ours.config.vocab_size, inputs["input_ids"])
    inputs["input_ids"][np.arange(_BATCH), real - 1] = end
  elif decoder is not None:
    written = np.random.default_rng(seed).integers(0, ours.config.vocab_size, inputs["input_ids"].shape)
    inputs["decoder_input_ids"] = written[:, : max(1, written.shape[1] // 2)].astype(np.int32)
  if ours.config.window is not None:
    # Told which: left to itself, a head that answers a question wants three separators in every row.
    inputs["global_attention_mask"] = np.zeros_like(inputs["input_ids"])
    inputs["global_attention_mask"][:, 0] = 1
  model = models.build(ours.family, ours.config, ours.head, ours.num_labels)
  if not getattr(model.head, "takes_choices", False):
    return inputs
  return {name: x.reshape(_BATCH // 2, 2, -1) for name, x in inputs.items()}


def _torch():
  try:
    import torch
  except ImportError:
    raise UserError("verifying needs PyTorch: pip install 'fsb_jax[convert]'") from None
  return torch


def _run_torch(hub_folder: Path, ours: hub.HubModel, inputs: dict, dtype: str) -> tuple[dict, list[str]]:
  """Outputs by kind of input and name, and the tensors that were given our values."""
  torch = _torch()
  import transformers

  architecture = getattr(transformers, models.family(ours.family).architecture(ours.head))
  model, info = architecture.from_pretrained(
    hub_folder,
    dtype=getattr(torch, dtype),
    attn_implementation="eager",
    local_files_only=True,
    num_labels=ours.num_labels,
    ignore_mismatched_sizes=True,
    output_loading_info=True,
  )
  model.eval()
  lacking = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
  state = model.state_dict()
  flat = models.flatten(ours.params)
  with torch.no_grad():
    for name, array in engine.save(table(ours.family), flat, ours.config, prefixed=ours.head != "base"):
      if name in lacking:
        state[name].copy_(torch.from_numpy(np.array(array, np.float64)))
    outputs = {}
    options = {"output_hidden_states": True}
    if "use_mems" in inspect.signature(model.forward).parameters:
      options["use_mems"] = False  # what the next segment would be given
    if "use_cache" in inspect.signature(model.forward).parameters:
      options["use_cache"] = False  # what the next token would be given
    for kind, arrays in inputs.items():
      result = model(**{name: _tensor(x, model.dtype) for name, x in arrays.items()}, **options)
      outputs[kind] = {name: x for name, x in _by_name(result) if name not in _OTHERWISE}
  return outputs, sorted(lacking)


def _tensor(array: np.ndarray, dtype):
  """Ids as they are, pixels with their channels first."""
  torch = _torch()
  if np.issubdtype(array.dtype, np.floating):
    return torch.from_numpy(array).movedim(-1, 1).to(dtype)
  return torch.from_numpy(array).long()


def _by_name(outputs: Mapping, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of what a model of either kind returned, of outputs in it too; those by layer are stacked."""
  for name, value in outputs.items():
    if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
      yield from _by_name(value if isinstance(value, Mapping) else vars(value), f"{prefix}{name}.")
    elif value is not None:
      yield prefix + name, np.asarray(value) if not isinstance(value, tuple) else np.stack([np.asarray(x) for x in value])


def _run_ours(ours: hub.HubModel, inputs: dict, dtype: str) -> dict:
  config = ours.config.with_run(dtype=dtype, param_dtype=dtype)
  model = models.build(ours.family, config, ours.head, ours.num_labels)
  # On the CPU, where float64 exists and float32 products are whole.
  with jax.enable_x64(dtype == "float64"), jax.default_device(jax.devices("cpu")[0]):
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), ours.params)
    apply = jax.jit(lambda params, arrays: model.apply({"params": params}, **arrays, output_hidden_states=True))
    outputs = {}
    for kind, arrays in inputs.items():
      result = apply(params, arrays)
      outputs[kind] = dict(_by_name(vars(result)))
  return outputs


def _difference(ours: np.ndarray, reference: np.ndarray, relative: float) -> dict:
  # Rows that only pad the vocabulary are -inf in ours and absent in the reference.
  cut = ours[..., : reference.shape[-1]]
  difference = float(np.abs(cut - reference).max()) if cut.shape == reference.shape else float("inf")
  magnitude = float(np.abs(reference).max())
  tolerance = relative * max(1.0, magnitude)
  return {
    "max_abs_diff": difference,
    "reference_magnitude": magnitude,
    "tolerance": tolerance,
    "passed": bool(difference <= tolerance),
  }
