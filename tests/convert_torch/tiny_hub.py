"""Tiny random Hub folders, made by transformers itself."""

import dataclasses
import inspect
import re
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from convert_torch import engine, load_hub_folder
from convert_torch.weights import table
from safetensors.numpy import load_file, save_file

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.decoder import DecoderModel
from fsb_jax.models.encoder_decoder import EncoderDecoderModel
from fsb_jax.models.positions import SinusoidPositions

QUICK = {"xla_backend_optimization_level": 0}
SHAPE = dict(
  vocab_size=101,
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  max_position_embeddings=40,
  initializer_range=0.3,
  num_labels=3,
)
DECODER = dict(decoder_layers=3, decoder_attention_heads=2, decoder_ffn_dim=40)
T5 = dict(
  num_layers=2, num_decoder_layers=3, d_kv=6, relative_attention_num_buckets=8, relative_attention_max_distance=10,
  decoder_start_token_id=0,
)  # fmt: skip
# What else a family's config wants so that every part of the model is there.
ALSO = {
  "albert": dict(embedding_size=16, num_hidden_groups=3),
  # The decoder is another one than the encoder.
  "bart": dict(encoder_layers=2, **DECODER, scale_embedding=True),
  "deberta_v2": dict(
    relative_attention=True, position_buckets=8, max_relative_positions=24, pos_att_type=["p2c", "c2p"],
    share_att_key=True, norm_rel_ebd="layer_norm", conv_kernel_size=3, conv_act="gelu", position_biased_input=True,
    type_vocab_size=2, max_position_embeddings=40,
  ),
  "electra": dict(embedding_size=16),
  "gpt2": dict(pad_token_id=0),
  "llama": dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True, pad_token_id=0),
  "longformer": dict(attention_window=4),
  "mt5": T5,
  "pegasus": dict(encoder_layers=2, **DECODER, scale_embedding=True),
  "roformer": dict(embedding_size=16),
  "t5": T5,
  "xlnet": dict(use_mems_eval=False),
}
_BART_NAMES = {
  "hidden_size": "d_model", "num_hidden_layers": "encoder_layers", "num_attention_heads": "encoder_attention_heads",
  "intermediate_size": "encoder_ffn_dim", "initializer_range": "init_std",
}  # fmt: skip
# These have no longest sequence, and say so; they draw parameters in ways of their own.
_T5_NAMES = {
  "hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
  "intermediate_size": "d_ff", "max_position_embeddings": None, "initializer_range": None,
}  # fmt: skip
# A family's own names of `SHAPE`; None where it has no such field.
NAMES = {
  "bart": _BART_NAMES,
  "gpt2": {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
  },
  "mt5": _T5_NAMES,
  "pegasus": _BART_NAMES,
  "t5": _T5_NAMES,
  "xlnet": {
    "hidden_size": "d_model", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "d_inner", "max_position_embeddings": None,
  },
}  # fmt: skip
# Families that transformers lacks, with the original's name of them.
ORIGINALS = {
  "erlangshen_longformer": "longformer",
  "fengshen_llama": "llama_fs",
  "zen1": "zen1",
  "zen2": "zen2",
  "zhouwenwang": "roformer",
}
# Those that write, see test_original_decoders.py.
ORIGINAL_DECODERS = ("deltalm", "megatron_t5", "transfo_xl")
# Those that read images, see tiny_clip.py.
CLIPS = ("clip", "clip_text", "clip_vision", "taiyi_clip")
FAMILIES = tuple(name for name in models.all_families() if name not in (*ORIGINALS, *ORIGINAL_DECODERS, *CLIPS))
# Where one stands for the others every day.
EVERY_FAMILY = [
  pytest.param(name, marks=[] if place % 3 == 0 else pytest.mark.slow) for place, name in enumerate(FAMILIES)
]
# The language model's head.
LM = {
  name: next(x for x in ("masked_lm", "lm", "causal_lm", "conditional_generation") if x in family.heads)
  for name, family in models.all_families().items()
  if name not in CLIPS
}
# Those that go on with a text, and those that read one and write another.
DECODERS = tuple(name for name, family in models.all_families().items() if family.model is DecoderModel)
ENCODER_DECODERS = tuple(name for name, family in models.all_families().items() if family.model is EncoderDecoderModel)
# Heads of each that transformers has.
HEADS = {
  name: ["base", *(head for head in models.family(name).heads if models.family(name).in_transformers(head))]
  for name in FAMILIES
}
EVERY_HEAD = [(name, head) for name, heads in HEADS.items() for head in heads]
# The rest is slow: every day each family meets every eighth head, beginning with another one.
TAKING_TURNS = [
  pytest.param(name, head, marks=[] if (FAMILIES.index(name) + place) % 8 == 0 else pytest.mark.slow)
  for name in FAMILIES
  for place, head in enumerate(HEADS[name])
]


def torch_class(family, head):
  return getattr(transformers, models.family(family).architecture(head))


def torch_config(family, head, **changes):
  # These have as many rows in transformers as the config has labels, and work with two.
  labels = {"num_labels": 2} if head in ("question_answering", "question_answering_simple", "sentence_order") else {}
  names, fields = NAMES.get(family, {}), {}
  for name, value in {**SHAPE, **labels, **ALSO.get(family, {}), **changes}.items():
    if names.get(name, name) is not None:
      fields[names.get(name, name)] = value
  return torch_class(family, head).config_class(**fields)


def torch_model(family, head, seed=0, **changes):
  """A model with noise on every parameter that is trained, so that none is at the value it starts from."""
  torch.manual_seed(seed)
  config = torch_config(family, head, **changes)
  model = torch_class(family, head)._from_config(config, attn_implementation="eager").eval()
  if family in ENCODER_DECODERS and changes.get("tie_word_embeddings") is False and head == LM[family]:
    # In version 5 transformers ties T5's whatever its config says, and keeps apart what differs in a file; BART's two
    # stacks it lets have tables of their own, which they never had.
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    for stack in (model.get_encoder(), model.get_decoder()):
      stack.embed_tokens.weight = model.get_input_embeddings().weight
  with torch.no_grad():
    if hasattr(model, "final_logits_bias"):
      model.final_logits_bias.normal_()
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def hub_folder(folder, family="bert", head="masked_lm", **changes):
  torch_model(family, head, **changes).save_pretrained(folder)
  return folder


def tensors_of(folder):
  return load_file(folder / "model.safetensors")


def rewritten(folder, target, change):
  """A copy of `folder` whose dictionary of tensors went through `change`, which alters it or returns another."""
  shutil.copytree(folder, target)
  tensors = tensors_of(folder)
  tensors = change(tensors) or tensors
  save_file({name: np.array(x, order="C") for name, x in tensors.items()}, target / "model.safetensors")
  return target


def inputs(family, head, seed=0):
  """Ids with padding and whatever else the family takes."""
  random = np.random.default_rng(seed)
  mask = (np.arange(12) < np.array([12, 7, 3, 1])[:, None]).astype(np.int64)
  pad = torch_class(family, head).config_class().pad_token_id or 0
  arrays = {"input_ids": np.where(mask, random.integers(3, 101, (4, 12)), pad), "attention_mask": mask}
  if family not in ENCODER_DECODERS + DECODERS:
    arrays["token_type_ids"] = random.integers(0, 2, (4, 12))
  if family in ENCODER_DECODERS and head == "sequence_classification":
    # It reads at the last of the end tokens, of which all rows have as many.
    arrays["input_ids"][[0, 1, 2, 3, 0, 1, 2, 3], [11, 6, 2, 1, 3, 3, 0, 0]] = 2
  elif family in ENCODER_DECODERS:
    arrays["decoder_input_ids"] = random.integers(3, 101, (4, 9))
  if family == "longformer":
    arrays["global_attention_mask"] = np.eye(12, dtype=np.int64)[[0, 3, 2, 0]]
  return {name: x.reshape(2, 2, 12) if head == "multiple_choice" else x for name, x in arrays.items()}


def torch_outputs(model, arrays):
  options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
  with torch.no_grad():
    result = model(
      **{name: torch.from_numpy(x) for name, x in arrays.items()}, **options, output_hidden_states=True
    )
  return {
    name: np.stack([x.numpy() for x in value]) if isinstance(value, tuple) else value.numpy()
    for name, value in result.items()
  }


def our_outputs(hub, arrays):
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  # The states of two streams differ in length, and are not asked for here.
  states = {"output_hidden_states": "target_mapping" not in arrays}
  # Compiled for one call: optimising takes longer than it saves.
  apply = jax.jit(lambda params, arrays: model.apply({"params": params}, **arrays, **states), compiler_options=QUICK)
  result = apply(hub.params, arrays)
  return {name: np.asarray(value) for name, value in vars(result).items() if value is not None}


def assert_close(ours, reference, relative=1e-4):
  """Within `relative` times max(1, |reference|), element by element."""
  assert ours.shape == reference.shape
  excess = np.abs(ours - reference) - relative * np.maximum(1, np.abs(reference))
  assert excess.max() <= 0, f"exceeds the tolerance by {excess.max()}"


def assert_recorded_gradients(hub, gradients, expected):
  """Gradients of a folder's parameters against those among its `outputs.npz`, and their norm over all parameters."""
  flat = {path: np.asarray(x) for path, x in models.flatten(gradients).items()}
  theirs = dict(engine.save(table(hub.family), flat, hub.config, prefixed=True))
  norm = expected["grad_global_norm"]
  np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(x)) for x in flat.values())), norm, rtol=1e-4)
  recorded = {name.removeprefix("grad/"): x for name, x in expected.items() if name.startswith("grad/")}
  assert recorded
  for name, reference in recorded.items():
    for pattern, replacement in table(hub.family).rename:
      name = re.sub(pattern, replacement, name)
    np.testing.assert_allclose(theirs[name], reference, rtol=1e-3, atol=1e-6 * norm, err_msg=name)


def assert_same_tree(a, b):
  a, b = models.flatten(a), models.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables(SinusoidPositions):
  """Codes of positions as a file has them; `rows` is a tuple of tuples."""

  rows: tuple

  def table(self, width):
    return np.array(self.rows, np.float32)


def noisy_pegasus(folder, run, tmp_path):
  """The folder's model with the codes of its files, which were recorded with noise on them."""
  kept = {}

  def change(tensors):
    for stack in ("encoder", "decoder"):
      kept[stack] = tensors[f"model.{stack}.embed_positions.weight"]
      tensors[f"model.{stack}.embed_positions.weight"] = SinusoidPositions(length=len(kept[stack])).table(
        kept[stack].shape[1]
      )

  with pytest.raises(UserError, match="model.decoder.embed_positions.weight holds other numbers than the fixed ones"):
    load_hub_folder(folder)
  hub = load_hub_folder(rewritten(folder, tmp_path / "hub", change), run=run)
  tables = {
    stack: Tables(length=len(rows), rows=tuple(map(tuple, rows.tolist()))) for stack, rows in kept.items()
  }
  decoder = dataclasses.replace(hub.config.decoder, positions=tables["decoder"])
  return dataclasses.replace(
    hub, config=dataclasses.replace(hub.config, positions=tables["encoder"], decoder=decoder)
  )
