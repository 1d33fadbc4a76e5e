"""transformers' own models beside ours: the same weights, inputs and labels; outputs, loss and every gradient.

Tensors cross over by the weight tables: every op in them is linear, so it carries gradients as well as values.
"""

import dataclasses
import inspect
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from convert_torch import engine
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from tiny_hub import ENCODER_DECODERS, QUICK, torch_model

from fsb_jax import models
from fsb_jax.models.positions import Span
from fsb_jax.models.scaled_rotary import ScaledRotary
from fsb_jax.training.losses import OBJECTIVES

# Tiny models gain nothing from threads, and their threads take the cores from the compiler.
torch.set_num_threads(1)

ROWS, LENGTH, WRITTEN, CHOICES, LABELS = 6, 10, 7, 3, 3
# Beyond the row is ignored, the first and the last token each for itself.
SPANS = {
  "start_positions": np.array([0, 3, 9, LENGTH, 5, LENGTH + 7]),
  "end_positions": np.array([4, LENGTH, 9, 2, 5, LENGTH]),
}
# Every kind of padding: none, some, all but one, and a row with nothing to attend to.
REAL_TOKENS = (10, 7, 1, 4, 0, 10)
WRITTEN_TOKENS = (7, 1, 5, 7, 3, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """A torch model and ours with the same weights.

  Attributes:
    family: name of our family.
    head: name of the head.
    theirs: the torch model.
    model: our module.
    config: its config.
    slots: how tensors cross over.
  """

  family: str
  head: str
  theirs: torch.nn.Module
  model: nn.Module
  config: models.TransformerConfig
  slots: list[engine.Slot]

  @property
  def params(self) -> dict:
    """The torch model's weights as our parameters."""
    return self.as_ours(lambda parameter: parameter)

  def as_ours(self, tensor_of) -> dict:
    """Our tree of `tensor_of(parameter)` for every torch parameter; zeros where that is None (an unused parameter)."""
    named = {**dict(self.theirs.named_buffers()), **dict(self.theirs.named_parameters(remove_duplicate=False))}
    flat = {}
    for slot in self.slots:
      tensor = tensor_of(named[slot.theirs])
      tensor = torch.zeros_like(named[slot.theirs]) if tensor is None else tensor
      flat.setdefault(slot.path, []).append(slot.row.op.load(tensor.detach().numpy(), self.config))
    stacked = {slot.path for slot in self.slots if slot.index is not None}
    # Copies: the torch model may be trained on while the arrays are in use.
    return models.unflatten({path: np.array(x if path in stacked else x[0]) for path, x in flat.items()})


def make_pair(family: str, head: str, *, dtype: str = "float64", run: dict | None = None, **changes: Any) -> Pair:
  """A tiny torch model with noise on every parameter, and ours.

  Args:
    family: name of our family.
    head: name of the head.
    dtype: of both sides, parameters and arithmetic.
    run: our run choices, as keywords of `Run`.
    **changes: fields of the Hub config.
  """
  theirs = torch_model(family, head, **changes).to(getattr(torch, dtype))
  config = models.family(family).config_from_hf(theirs.config.to_dict())
  config = config.with_run(dtype=dtype, param_dtype=dtype, **(run or {}))
  model = models.build(family, config, head, theirs.config.num_labels)
  if family == "xlnet" and dtype == "float64":
    _exact_codes(theirs, config)
  if dtype == "float64":
    _exact_norms(theirs)
    _same_angles(theirs, config)
  slots = engine.slots(table(family), config, param_shapes(model), prefixed=head != "base")
  return Pair(family=family, head=head, theirs=theirs, model=model, config=config, slots=slots)


def _exact_codes(theirs, config) -> None:
  """Gives XLNet our codes of distances; its own come from sines in float32, whatever its dtype."""

  def codes(queries, keys, bsz=None, device=None):
    # One distance more than are used.
    return torch.from_numpy(config.positions.codes(queries, keys + 1, config.embed_dim)).double()[:, None]

  getattr(theirs, "transformer", theirs).relative_positional_encoding = codes


def _exact_norms(theirs) -> None:
  """Gives RMS norms the dtype of their argument; their own is float32."""

  def normalised(norm):
    return lambda x: norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))

  for module in theirs.modules():
    if hasattr(module, "variance_epsilon"):
      module.forward = normalised(module)


def _same_angles(theirs, config) -> None:
  """Gives LLaMA our sines and cosines; its own are float32, too, but rounded otherwise (`test_scaled_rotary`)."""
  if not isinstance(config.positions, ScaledRotary):
    return

  def rotary(x, position_ids):
    ids = jnp.asarray(position_ids.numpy())
    shared = config.positions.shared(config, Span(queries=ids.shape[1], keys=ids.shape[1], position_ids=ids))
    sine, cosine = (torch.from_numpy(np.concatenate([y, y], -1)[:, :, 0]).to(x) for y in map(np.array, shared))
    return cosine, sine

  next(x for x in theirs.modules() if hasattr(x, "rotary_emb")).rotary_emb.forward = rotary


_torch_softmax = torch.nn.functional.softmax


def _softmax(x, dim, dtype=None):
  """In float64 where a model runs in it, though it asks for float32."""
  return _torch_softmax(x, dim=dim, dtype=dtype and torch.promote_types(dtype, x.dtype))


def _float(x):
  """To at least float32, where a model asks for float32."""
  return x.to(torch.promote_types(torch.float32, x.dtype))


def make_batch(pair: Pair, *, mask: str = "padding", explicit: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
  """Inputs and labels by our names; `[ROWS, ...]`, or `[ROWS, CHOICES, ...]` for multiple choice.

  Args:
    pair: what they are for.
    mask: "padding" `[batch, length]`, "dense" `[batch, query, key]`, or "none".
    explicit: whether position ids (jumping and repeating) and token types are given.
    seed: of the random numbers.
  """
  random = np.random.default_rng(seed)
  choosing = pair.head == "multiple_choice"
  rows = ROWS * CHOICES if choosing else ROWS
  real = np.arange(LENGTH) < np.resize(REAL_TOKENS, rows)[:, None]
  ids = random.integers(3, pair.config.vocab_size, real.shape)
  batch = {"input_ids": np.where(real, ids, pair.config.pad_token_id or 0)}
  if mask == "padding":
    batch["attention_mask"] = real.astype(np.int64)
  elif mask == "dense":
    allowed = random.random((rows, LENGTH, LENGTH)) < 0.6
    allowed[:, 3] = False
    if pair.config.mask_kind == "causal":
      allowed = np.tril(allowed)  # theirs then says everything
    batch["attention_mask"] = allowed.astype(np.int64)
  if explicit:
    if "token_type_ids" in models.input_names(pair.model):
      batch["token_type_ids"] = random.integers(0, 2, real.shape)
    if "position_ids" in inspect.signature(pair.theirs.forward).parameters:
      batch["position_ids"] = random.integers(0, pair.config.positions.length, real.shape)
  if "global_attention_mask" in inspect.signature(pair.theirs.forward).parameters:
    chosen = random.integers(0, 2, real.shape) if explicit else np.arange(LENGTH) < np.ones((rows, 1))
    if explicit or pair.head != "sequence_classification":  # which chooses the first token itself
      batch["global_attention_mask"] = chosen.astype(np.int64)
  writing = pair.family in ENCODER_DECODERS and pair.head != "sequence_classification"
  if writing:
    batch["decoder_input_ids"] = random.integers(0, pair.config.vocab_size, (ROWS, WRITTEN))
    if explicit:
      written = np.arange(WRITTEN) < np.array(WRITTEN_TOKENS)[:, None]
      batch["decoder_attention_mask"] = written.astype(np.int64)
  elif pair.family in ENCODER_DECODERS:
    # It reads at the last of the end tokens, of which all rows have as many.
    batch["input_ids"][np.arange(ROWS), np.maximum(np.array(REAL_TOKENS) - 1, 1)] = 2
    batch["input_ids"][:, 0] = 2
  if choosing:
    batch = {name: x.reshape(ROWS, CHOICES, *x.shape[1:]) for name, x in batch.items()}

  def token_labels(classes):
    shape = (ROWS, WRITTEN) if writing else real.shape
    return np.where(random.random(shape) < 0.3, -100, random.integers(0, classes, shape))

  follows = np.array([0, 1, 1, -100, 0, 1])
  return batch | {
    "base": lambda: {},
    "lm": lambda: {"labels": token_labels(pair.config.vocab_size)},
    "causal_lm": lambda: {"labels": token_labels(pair.config.vocab_size)},
    "conditional_generation": lambda: {"labels": token_labels(pair.config.vocab_size)},
    "masked_lm": lambda: {"labels": token_labels(pair.config.vocab_size)},
    "pretraining": lambda: {"labels": token_labels(pair.config.vocab_size), "next_sentence_label": follows},
    "next_sentence": lambda: {"labels": follows},
    "sentence_order": lambda: {"labels": token_labels(pair.config.vocab_size), "sentence_order_label": follows},
    "replaced_tokens": lambda: {"labels": random.integers(0, 2, real.shape)},
    "sequence_classification": lambda: {"labels": random.integers(0, LABELS, ROWS)},
    "token_classification": lambda: {"labels": token_labels(LABELS)},
    "multiple_choice": lambda: {"labels": random.integers(0, CHOICES, ROWS)},
    "question_answering": lambda: SPANS,
    "question_answering_simple": lambda: SPANS,
  }[pair.head]()


def run_torch(pair: Pair, batch) -> dict:
  """Outputs by name (those by layer stacked), `loss`, and `gradients` as our tree."""
  arrays = {name: torch.from_numpy(x) for name, x in batch.items()}
  if pair.head != "multiple_choice" and batch.get("attention_mask", np.empty(0)).ndim == 3:
    dtype = next(pair.theirs.parameters()).dtype
    # What transformers makes of a two-dimensional mask itself: added to the scores, as it is.
    arrays["attention_mask"] = (1 - arrays["attention_mask"][:, None].to(dtype)) * torch.finfo(dtype).min
  # Left to guess it, DeBERTa takes the loss in float32.
  pair.theirs.config.problem_type = "single_label_classification"
  pair.theirs.zero_grad()
  options = {"use_cache": False} if "use_cache" in inspect.signature(pair.theirs.forward).parameters else {}
  with (
    mock.patch.object(torch.nn.functional, "softmax", _softmax), mock.patch.object(torch.Tensor, "float", _float)
  ):  # fmt: skip
    result = pair.theirs(**arrays, **options, output_hidden_states=True, output_attentions=True)
  # An encoder's "cross_attentions" are there, and empty.
  outputs = {name: x for name, x in result.items() if name != "loss" and len(x)}
  outputs = {name: torch.stack(x) if isinstance(x, tuple) else x for name, x in outputs.items()}
  if pair.config.window is not None:
    # Theirs are by distance, and of global tokens apart.
    outputs = {name: x for name, x in outputs.items() if "attentions" not in name}
  if pair.head == "base":
    loss = _projected(outputs, lambda array, x: torch.from_numpy(array).to(x))
  elif pair.head == "replaced_tokens":
    # Its own loss has float32 labels, and so is float32.
    asked = arrays["attention_mask"] == 1 if "attention_mask" in arrays else ...
    targets = arrays["labels"].to(result.logits)[asked]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(result.logits[asked], targets)
  else:
    loss = result.loss
  loss.backward()
  return {
    **{name: x.detach().numpy() for name, x in outputs.items()},
    "loss": loss.detach().numpy(),
    "gradients": pair.as_ours(lambda parameter: parameter.grad),
  }


def run_ours(pair: Pair, batch, params=None) -> dict:
  """The same of our model, from one compiled function."""
  inputs = {name: batch[name] for name in models.input_names(pair.model) if name in batch}

  def loss_and_outputs(params):
    asked = dict(output_hidden_states=True, output_attentions=pair.config.window is None)
    outputs = pair.model.apply({"params": params}, **inputs, **asked)
    if pair.head == "base":
      return _projected(vars(outputs), lambda array, x: jnp.asarray(array, x.dtype)), outputs
    return OBJECTIVES[pair.head](outputs, batch), outputs

  # Compiled for one call: optimising takes longer than it saves.
  step = jax.jit(jax.value_and_grad(loss_and_outputs, has_aux=True), compiler_options=QUICK)
  (loss, outputs), gradients = step(pair.params if params is None else params)
  outputs = {name: np.asarray(x) for name, x in vars(outputs).items() if x is not None}
  return {**outputs, "loss": np.asarray(loss), "gradients": jax.tree.map(np.asarray, gradients)}


def _projected(outputs, constant):
  """A loss for the model without a head: fixed random projections of what it returns, averaged over rows."""
  random = np.random.default_rng(7)
  results = (outputs["last_hidden_state"], outputs.get("pooler_output"))
  return sum((x * constant(random.normal(size=tuple(x.shape)), x)).sum() / len(x) for x in results if x is not None)
