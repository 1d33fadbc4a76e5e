"""Tiny random Hub folders, made by transformers itself."""

import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from convert_torch import engine
from convert_torch.weights import table
from safetensors.numpy import load_file, save_file

from fsb_jax import models

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
# What else a family's config wants so that every part of the model is there.
ALSO = {
  "albert": dict(embedding_size=16, num_hidden_groups=3),
  "deberta_v2": dict(
    relative_attention=True, position_buckets=8, max_relative_positions=24, pos_att_type=["p2c", "c2p"],
    share_att_key=True, norm_rel_ebd="layer_norm", conv_kernel_size=3, conv_act="gelu", position_biased_input=True,
    type_vocab_size=2, max_position_embeddings=40,
  ),
  "electra": dict(embedding_size=16),
  "longformer": dict(attention_window=4),
  "roformer": dict(embedding_size=16),
  "xlnet": dict(use_mems_eval=False),
}
# It has no longest sequence, and says so.
XLNET_NAMES = {
  "hidden_size": "d_model",
  "num_hidden_layers": "n_layer",
  "num_attention_heads": "n_head",
  "intermediate_size": "d_inner",
  "max_position_embeddings": None,
}
# Families that transformers lacks, with the original's name of them.
ORIGINALS = {"erlangshen_longformer": "longformer", "zen1": "zen1", "zen2": "zen2", "zhouwenwang": "roformer"}
# Those that write, see test_original_decoders.py.
ORIGINAL_DECODERS = ("deltalm", "megatron_t5", "transfo_xl")
FAMILIES = tuple(name for name in models.all_families() if name not in (*ORIGINALS, *ORIGINAL_DECODERS))
# The language model's head.
LM = {name: "masked_lm" if "masked_lm" in models.family(name).heads else "lm" for name in models.all_families()}
# Heads of each that transformers has.
HEADS = {
  name: ["base", *(head for head in models.family(name).heads if models.family(name).in_transformers(head))]
  for name in FAMILIES
}
EVERY_HEAD = [(name, head) for name, heads in HEADS.items() for head in heads]
# The rest is slow: every day each family meets every third head, beginning with another one.
TAKING_TURNS = [
  pytest.param(name, head, marks=[] if (FAMILIES.index(name) + place) % 3 == 0 else pytest.mark.slow)
  for name in FAMILIES
  for place, head in enumerate(HEADS[name])
]


def torch_class(family, head):
  return getattr(transformers, models.family(family).architecture(head))


def torch_config(family, head, **changes):
  # These have as many rows in transformers as the config has labels, and work with two.
  labels = {"num_labels": 2} if head in ("question_answering", "question_answering_simple", "sentence_order") else {}
  shape = {**SHAPE, **labels, **ALSO.get(family, {}), **changes}
  for bert, xlnet in XLNET_NAMES.items() if family == "xlnet" else ():
    if bert in shape:
      value = shape.pop(bert)
      shape |= {xlnet: value} if xlnet else {}
  return torch_class(family, head).config_class(**shape)


def torch_model(family, head, seed=0, **changes):
  """A model with noise on every parameter that is trained, so that none is at the value it starts from."""
  torch.manual_seed(seed)
  config = torch_config(family, head, **changes)
  model = torch_class(family, head)._from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
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
  save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, target / "model.safetensors")
  return target


def inputs(family, head, seed=0):
  """Ids with padding and, for BERT-like ones, token types."""
  random = np.random.default_rng(seed)
  mask = (np.arange(12) < np.array([12, 7, 3, 1])[:, None]).astype(np.int64)
  pad = torch_class(family, head).config_class().pad_token_id
  arrays = {"input_ids": np.where(mask, random.integers(2, 101, (4, 12)), pad), "attention_mask": mask}
  arrays["token_type_ids"] = random.integers(0, 2, (4, 12))
  if family == "longformer":
    arrays["global_attention_mask"] = np.eye(12, dtype=np.int64)[[0, 3, 2, 0]]
  return {name: x.reshape(2, 2, 12) if head == "multiple_choice" else x for name, x in arrays.items()}


def torch_outputs(model, arrays):
  with torch.no_grad():
    result = model(**{name: torch.from_numpy(x) for name, x in arrays.items()}, output_hidden_states=True)
  return {
    name: np.stack([x.numpy() for x in value]) if isinstance(value, tuple) else value.numpy()
    for name, value in result.items()
  }


def our_outputs(hub, arrays):
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  # The states of two streams differ in length, and are not asked for here.
  states = {"output_hidden_states": "target_mapping" not in arrays}
  result = model.apply({"params": hub.params}, **arrays, **states)
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
