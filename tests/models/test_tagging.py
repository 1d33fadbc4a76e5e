"""The taggers' own layers against PyTorch in float64: outputs, and the gradient of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert_torch import engine
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from torch_reference import QUICK

from fsb_jax import models
from fsb_jax.models.heads import HEADS
from fsb_jax.models.outputs import BaseOutput
from fsb_jax.models.tagging import TAGGING_HEADS, BiaffineTagging, BidirectionalLstm

BATCH, LENGTH, WIDTH, LABELS = 3, 6, 8, 4
CONFIG = models.TransformerConfig(
  vocab_size=30, embed_dim=WIDTH, num_layers=1, num_heads=2, mlp_dim=16, initializer_range=0.3
).with_run(dtype="float64", param_dtype="float64")


class Biaffine(torch.nn.Module):
  """Under the original's names."""

  def __init__(self, width=128):
    super().__init__()
    self.lstm = torch.nn.LSTM(WIDTH, WIDTH // 2, num_layers=2, batch_first=True, bidirectional=True)
    self.start_layer, self.end_layer = (
      torch.nn.Sequential(torch.nn.Linear(WIDTH, width), torch.nn.ReLU()) for _ in range(2)
    )
    self.biaffne_layer = torch.nn.Module()
    self.biaffne_layer.U = torch.nn.Parameter(torch.randn(width + 1, LABELS, width + 1) / 10)

  def forward(self, hidden):
    read = self.lstm(hidden)[0]
    start, end = (
      torch.nn.functional.pad(layer(read), (0, 1), value=1.0) for layer in (self.start_layer, self.end_layer)
    )
    kernel = self.biaffne_layer.U.movedim(1, 0).contiguous()
    shape = (BATCH, LENGTH, LENGTH, -1)
    pairs = [x.expand(shape).contiguous() for x in (start[:, :, None], end[:, None])]
    return {"span_logits": torch.nn.functional.bilinear(*pairs, kernel)}


class Span(torch.nn.Module):
  def __init__(self, soft):
    super().__init__()
    self.soft, told = soft, LABELS if soft else 1
    self.start_fc, self.end_fc = torch.nn.Module(), torch.nn.Module()
    self.start_fc.dense = torch.nn.Linear(WIDTH, LABELS)
    self.end_fc.dense_0 = torch.nn.Linear(WIDTH + told, WIDTH + told)
    self.end_fc.LayerNorm = torch.nn.LayerNorm(WIDTH + told)
    self.end_fc.dense_1 = torch.nn.Linear(WIDTH + told, LABELS)

  def forward(self, hidden):
    start = self.start_fc.dense(hidden)
    told = start.softmax(-1) if self.soft else start.argmax(-1, keepdim=True).to(hidden)
    end = self.end_fc.LayerNorm(torch.tanh(self.end_fc.dense_0(torch.cat([hidden, told], -1))))
    return {"start_logits": start, "end_logits": self.end_fc.dense_1(end)}


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
  "head,reference",
  [("biaffine", Biaffine), ("span", lambda: Span(True)), ("span_hard", lambda: Span(False))],
  ids=["biaffine", "span", "span_hard"],
)
def test_head_equals_pytorch(head, reference):
  torch.manual_seed(0)
  theirs = reference().double()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  hidden = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH))
  given = torch.tensor(hidden, requires_grad=True)
  expected = theirs(given)
  random = np.random.default_rng(1)
  weights = {name: random.normal(size=tuple(x.shape)) for name, x in expected.items()}
  sum((x * torch.from_numpy(weights[name])).sum() for name, x in expected.items()).backward()
  gradients = {name: x.grad.numpy() for name, x in theirs.named_parameters()}

  with jax.enable_x64(True):
    model = models.build("bert", CONFIG, head, LABELS)
    shapes = {path: shape for path, shape in param_shapes(model).items() if path.startswith("head/")}
    assert set(models.input_names(model)) >= ({"start_positions"} if head != "biaffine" else set())
    slots = [
      slot for slot in engine.slots(table("bert"), CONFIG, param_shapes(model), prefixed=True) if slot.path in shapes
    ]
    state = theirs.state_dict()
    assert sorted(slot.theirs for slot in slots) == sorted(state)
    params = {slot.path: slot.row.op.load(state[slot.theirs].numpy(), CONFIG) for slot in slots}
    params = models.unflatten({path.removeprefix("head/"): x for path, x in params.items()})
    ours = TAGGING_HEADS[head](config=CONFIG, num_labels=LABELS)

    def summed(params, hidden):
      outputs = ours.apply({"params": params}, BaseOutput(last_hidden_state=hidden), None, True)
      outputs = {name: getattr(outputs, name) for name in expected}
      return sum(jnp.sum(x * weights[name]) for name, x in outputs.items()), outputs

    function = jax.jit(jax.grad(summed, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    (by_params, by_hidden), outputs = function(params, hidden)
  for name, reference in expected.items():
    close(outputs[name], reference.detach().numpy())
  close(by_hidden, given.grad.numpy())
  flat = models.flatten(by_params)
  for slot in slots:
    close(slot.row.op.save(np.asarray(flat[slot.path.removeprefix("head/")]), CONFIG), gradients[slot.theirs])
    assert np.abs(gradients[slot.theirs]).max() > 1e-6


def compiled(module, *args):
  """Fresh parameters, and the module as a function of them and of `args`; of those, what is no array is static."""
  static = [i for i, x in enumerate(args) if isinstance(x, bool)]
  init = jax.jit(module.init, static_argnums=[i + 1 for i in static], compiler_options=QUICK)

  def apply(params, *args):
    return module.apply(params, *args, rngs={"dropout": jax.random.key(1)})

  params = init(jax.random.key(0), *args)
  return params, jax.jit(apply, static_argnums=[i + 1 for i in static], compiler_options=QUICK)


def test_only_the_layers_between_are_dropped():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, WIDTH)))
  outputs = {}
  for layers in (1, 2):
    lstm = BidirectionalLstm(CONFIG.with_run(dtype="float32", param_dtype="float32"), 4, layers, 0.5)
    params, apply = compiled(lstm, x, True)
    outputs[layers] = [np.asarray(apply(params, x, deterministic)) for deterministic in (True, False)]
  np.testing.assert_array_equal(*outputs[1])
  assert np.abs(outputs[2][0] - outputs[2][1]).max() > 1e-3


def test_sizes_of_the_original_are_defaults_that_can_be_changed():
  head = BiaffineTagging(config=CONFIG, lstm_dim=3, lstm_layers=1, span_dim=5, num_labels=LABELS)
  model = models.EncoderModel(config=CONFIG, head=head)
  with jax.enable_x64(True):
    changed, default = param_shapes(model), param_shapes(models.build("bert", CONFIG, "biaffine", LABELS))
  assert changed["head/kernel"] == (6, LABELS, 6) and default["head/kernel"] == (129, LABELS, 129)
  assert changed["head/lstm/forward_0/cell/recurrent/kernel"] == (3, 12)
  assert default["head/lstm/backward_1/cell/recurrent/kernel"] == (WIDTH // 2, 2 * WIDTH)
  assert "head/lstm/forward_1/input/kernel" in default.keys() - changed.keys()


def test_gold_beginnings_are_told_in_training_alone():
  config = CONFIG.with_run(dtype="float32", param_dtype="float32")
  hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, WIDTH)), jnp.float32)
  encoded = BaseOutput(last_hidden_state=hidden)
  gold = jnp.array([[0, 3, 0, -100]])
  for head in ("span", "span_hard"):
    module = TAGGING_HEADS[head](config=config, num_labels=LABELS)
    params, apply = compiled(module, encoded, None, True)
    answers = [apply(params, encoded, None, *how) for how in ((True, None), (True, gold), (False, None), (False, gold))]
    np.testing.assert_array_equal(answers[0].end_logits, answers[1].end_logits)
    np.testing.assert_array_equal(answers[2].start_logits, answers[3].start_logits)
    assert np.abs(answers[2].end_logits - answers[3].end_logits).max() > 1e-3
    assert np.isfinite(answers[3].end_logits).all()


@pytest.mark.parametrize("head", TAGGING_HEADS)
def test_every_tagger_is_offered_by_every_encoder_that_has_the_linear_one(head):
  assert head not in HEADS
  for family in models.all_families().values():
    # What the original has no taggers for, or reads differently.
    reads = "masked_lm" in family.heads and family.name not in ("zen1", "zen2", "zhouwenwang")
    assert (head in family.heads) == reads
