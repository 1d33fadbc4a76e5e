"""Tiny random CLIPs, made by transformers itself, and ours beside them."""

from unittest import mock

import jax
import numpy as np
import torch
import transformers
from convert_torch import engine
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from tiny_hub import QUICK
from torch_reference import _softmax

from fsb_jax import models

END, LENGTH = 97, 10
TEXT = dict(
  vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
  max_position_embeddings=16, projection_dim=24, eos_token_id=END, bos_token_id=98, initializer_range=0.3,
)  # fmt: skip
# Not square numbers of heads and layers, so that no axis passes for another; a rim that is in no patch.
VISION = dict(
  hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=56, image_size=26, patch_size=8,
  projection_dim=24, initializer_range=0.3,
)  # fmt: skip


def config_of(architecture, **changes):
  """A config of the class; `changes` are the text tower's where it has one."""
  if "Text" in architecture:
    return transformers.CLIPTextConfig(**{**TEXT, **changes})
  if "Vision" in architecture:
    return transformers.CLIPVisionConfig(**{**VISION, **changes})
  return transformers.CLIPConfig(text_config={**TEXT, **changes}, vision_config=VISION, projection_dim=24)


def torch_clip(architecture, seed=0, **changes):
  """A model with noise on every parameter."""
  torch.manual_seed(seed)
  config = config_of(architecture, **changes)
  model = getattr(transformers, architecture)._from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.config.architectures = [architecture]
  return model


def batch_of(model, rows=3, seed=0, padded=True):
  """Texts that end at several places, and images, by our names."""
  random, names, batch = np.random.default_rng(seed), models.input_names(model), {}
  if "input_ids" in names:
    lengths = np.array([LENGTH, 4, 7])[:rows]
    ids = random.integers(2, END, (rows, LENGTH))
    ids[np.arange(rows), lengths - 1] = END
    # After its end the second text goes on, with a higher id than that.
    batch["input_ids"] = np.where(np.arange(LENGTH) < lengths[:, None], ids, 1)
    batch["input_ids"][1, 5] = 98
    if padded:
      batch["attention_mask"] = (np.arange(LENGTH) < np.array([LENGTH, 6, 7])[:rows, None]).astype(np.int64)
  if "pixel_values" in names:
    batch["pixel_values"] = random.normal(size=(rows, VISION["image_size"], VISION["image_size"], 3))
  return batch


def as_torch(batch):
  """The same with channels first."""
  return {name: torch.from_numpy(np.moveaxis(x, -1, 1) if x.ndim == 4 else x) for name, x in batch.items()}


def crossing(family, head, config, tensors):
  """Our tree of tensors by their names; a table's ops are linear, so that it may be one of gradients."""
  shapes = param_shapes(models.build(family, config, head))
  flat = {}
  for slot in engine.slots(table(family), config, shapes, prefixed=True):
    loaded = slot.row.op.load(np.asarray(tensors[slot.theirs]), config)
    flat.setdefault(slot.path, np.zeros(shapes[slot.path]))[... if slot.index is None else slot.index] = loaded
  return models.unflatten(flat)


def named_tensors(model, of=lambda parameter: parameter.detach()):
  """Parameters of a torch model by their names in files, as numpy."""
  tower = {"CLIPTextModel": "text_model.", "CLIPVisionModel": "vision_model."}.get(type(model).__name__, "")
  found = {name: of(x) for name, x in model.named_parameters()}
  return {tower + name: np.zeros(1) if x is None else x.numpy() for name, x in found.items()}


def exact_softmax():
  """Softmax in float64 where a model runs in it, though it asks for float32."""
  return mock.patch.object(torch.nn.functional, "softmax", _softmax)


def by_name(outputs, prefix=""):
  """(name, array) of a model's outputs, and of those in them; by layer they are stacked."""
  for name, value in (outputs if hasattr(outputs, "items") else vars(outputs)).items():
    if hasattr(value, "last_hidden_state"):
      yield from by_name(value, f"{name}.")
    elif value is not None:
      values = value if isinstance(value, tuple) else (value,)
      arrays = [x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in values]
      yield prefix + name, np.stack(arrays) if isinstance(value, tuple) else arrays[0]


def ours(family, head, config, params, batch, **options):
  """Outputs of ours, from one compiled function."""
  model = models.build(family, config, head)
  apply = jax.jit(lambda params, batch: model.apply({"params": params}, **batch, **options), compiler_options=QUICK)
  return apply(params, batch)
