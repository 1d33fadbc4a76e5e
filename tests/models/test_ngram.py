"""ZEN against PyTorch in float64: BERT's own layers, put together as the papers say; outputs and every gradient."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert_torch import engine
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from torch_reference import QUICK, Pair
from transformers.models.bert.modeling_bert import BertConfig, BertEmbeddings, BertLayer, BertPooler

from fsb_jax import models
from fsb_jax.errors import UserError

ROWS, LENGTH, NGRAMS = 3, 9, 6
HF = dict(
  vocab_size=31, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
  max_position_embeddings=20, initializer_range=0.3, pad_token_id=0, type_vocab_size=2,
)  # fmt: skip
ZEN = dict(word_size=23, num_hidden_word_layers=2)


class TorchOffsetAttention(torch.nn.Module):
  """ZEN 2's attention, a score at a time."""

  def __init__(self, config, codes):
    super().__init__()
    self.heads, self.codes, width = config.num_attention_heads, codes, config.hidden_size
    self.query, self.key, self.value = (torch.nn.Linear(width, width) for _ in range(3))
    self.r_r_bias, self.r_w_bias = (torch.nn.Parameter(torch.zeros(self.heads, width // self.heads)) for _ in range(2))

  def forward(self, hidden, attention_mask, **_):
    query, key, value = (
      layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
    )
    length, width = query.shape[-2:]
    codes = self.codes(1 - length, length - 1, width)
    offsets = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    content = torch.einsum("bhqd,bhkd->bhqk", query + self.r_r_bias[:, None], key)
    offset = torch.einsum("bhqd,qkd->bhqk", query + self.r_w_bias[:, None], codes[offsets + length - 1])
    probabilities = ((content + offset) / width**0.5 + attention_mask).softmax(-1)
    return (probabilities @ value).transpose(1, 2).flatten(-2), probabilities


class TorchNgramEmbeddings(torch.nn.Module):
  def __init__(self, rows, config):
    super().__init__()
    self.word_embeddings = torch.nn.Embedding(rows, config.hidden_size, padding_idx=0)
    self.token_type_embeddings = torch.nn.Embedding(2, config.hidden_size)
    self.LayerNorm = torch.nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

  def forward(self, ids, types):
    return self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings(types))


class TorchZen(torch.nn.Module):
  """Both encoders, under the original's names."""

  def __init__(self, codes):
    super().__init__()
    config = BertConfig(**HF, attn_implementation="eager")
    self.embeddings = BertEmbeddings(config)
    self.word_embeddings = TorchNgramEmbeddings(ZEN["word_size"], config)
    self.encoder = torch.nn.Module()
    for name, count in (("layer", HF["num_hidden_layers"]), ("word_layers", ZEN["num_hidden_word_layers"])):
      layers = torch.nn.ModuleList(BertLayer(config) for _ in range(count))
      setattr(self.encoder, name, layers)
      for layer in layers if codes else ():
        layer.attention.self = TorchOffsetAttention(config, codes)
    if codes:
      del self.embeddings.position_embeddings
      self.embeddings.position_embeddings = lambda ids: 0.0
    self.pooler = BertPooler(config)

  def forward(self, batch):
    def added(mask):
      return (1 - mask[:, None, None].double()) * torch.finfo(torch.float64).min

    def run(layer, x, mask):
      result = layer(x, added(mask))
      return result[0] if isinstance(result, tuple) else result

    hidden = self.embeddings(batch["input_ids"], batch["token_type_ids"])
    ngrams = self.word_embeddings(batch["input_ngram_ids"], batch["ngram_token_type_ids"])
    states = [hidden]
    for i, layer in enumerate(self.encoder.layer):
      hidden = run(layer, hidden, batch["attention_mask"])
      if i < len(self.encoder.word_layers):
        ngrams = run(self.encoder.word_layers[i], ngrams, batch["ngram_attention_mask"])
      hidden = hidden + batch["ngram_position_matrix"] @ ngrams
      states.append(hidden)
    return torch.stack(states), self.pooler(hidden)


def make_pair(family, head="base", **run):
  run = {"dtype": "float64", "param_dtype": "float64", **run}
  config = models.family(family).config_from_hf({**HF, **ZEN}).with_run(**run)
  model = models.build(family, config, head)
  torch.manual_seed(0)
  codes = None
  if family == "zen2":
    def codes(*span):
      return torch.from_numpy(config.positions.codes(*span)).double()

  theirs = TorchZen(codes).double().eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  slots = engine.slots(table(family), config, param_shapes(model), prefixed=head != "base")
  return Pair(family=family, head=head, theirs=theirs, model=model, config=config, slots=slots)


@pytest.fixture(scope="module")
def batch():
  random = np.random.default_rng(0)
  real = (np.arange(LENGTH) < np.array([9, 5, 1])[:, None]).astype(np.int64)
  ngrams = (np.arange(NGRAMS) < np.array([6, 3, 0])[:, None]).astype(np.int64)
  return {
    "input_ids": random.integers(1, HF["vocab_size"], (ROWS, LENGTH)) * real,
    "token_type_ids": random.integers(0, 2, (ROWS, LENGTH)),
    "attention_mask": real,
    "input_ngram_ids": random.integers(1, ZEN["word_size"], (ROWS, NGRAMS)) * ngrams,
    "ngram_token_type_ids": random.integers(0, 2, (ROWS, NGRAMS)),
    "ngram_attention_mask": ngrams,
    "ngram_position_matrix": random.random((ROWS, LENGTH, NGRAMS)) * (random.random((ROWS, LENGTH, NGRAMS)) < 0.3),
  }


@pytest.mark.parametrize(
  "family,run",
  [
    ("zen1", dict(scan_layers=True, vocab_multiple=8)),
    ("zen2", dict(scan_layers=False)),
    ("zen2", dict(scan_layers=True, remat="full")),
    pytest.param("zen1", dict(scan_layers=False), marks=pytest.mark.slow),
    pytest.param("zen1", dict(scan_layers=False, remat="dots_saveable"), marks=pytest.mark.slow),
    pytest.param("zen2", dict(scan_layers=True), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_states_and_gradients(family, run, batch):
  with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    pair = make_pair(family, **run)
    weights = np.random.default_rng(1).normal(size=(HF["num_hidden_layers"] + 1, ROWS, LENGTH, HF["hidden_size"]))

    def loss(params):
      outputs = pair.model.apply({"params": params}, **batch, output_hidden_states=True)
      states = jnp.stack(outputs.hidden_states)
      return (states * weights).sum() + outputs.pooler_output.sum(), (states, outputs.pooler_output)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (_, ours), gradients = step(pair.params)
    theirs = pair.theirs({name: torch.from_numpy(x) for name, x in batch.items()})
    ((theirs[0] * torch.from_numpy(weights)).sum() + theirs[1].sum()).backward()
    expected = pair.as_ours(lambda parameter: parameter.grad)
    for got, want in zip(ours, theirs):
      want = want.detach().numpy()
      assert (np.abs(got - want) <= 1e-9 * np.maximum(1, np.abs(want))).all()
    gradients, expected = models.flatten(gradients), models.flatten(expected)
    for path, want in expected.items():
      assert (np.abs(gradients[path] - want) <= 1e-9 * np.maximum(1, np.abs(want))).all(), path
      # None is compared with nothing; what a bias adds to all keys alike softmax takes away.
      assert np.abs(want).max() > 1e-3 or path.endswith("attention/key/bias"), path


def random_params(model):
  random = np.random.default_rng(2)
  boxes = models.flatten(models.abstract_params(model))
  return models.unflatten({path: random.normal(0, 0.2, x.value.shape).astype(np.float32) for path, x in boxes.items()})


def logits_of(model, params, inputs):
  """Of whichever head the model has."""
  outputs = jax.jit(lambda *x: model.apply({"params": x[0]}, **x[1]), compiler_options=QUICK)(params, inputs)
  return getattr(outputs, "prediction_logits" if hasattr(outputs, "prediction_logits") else "logits")


@pytest.mark.parametrize("family", ["zen1", "zen2"])
def test_without_ngrams_it_is_an_encoder(family, batch):
  config = models.family(family).config_from_hf({**HF, **ZEN})
  head = models.family(family).heads["masked_lm"](config=config)
  whole = models.build(family, config, "masked_lm")
  plain = models.EncoderModel(config, head)
  params = random_params(whole)
  inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
  rest = {name: x for name, x in params.items() if name != "ngrams"}
  np.testing.assert_array_equal(logits_of(whole, params, inputs), logits_of(plain, rest, inputs))
  ngrams = {name: batch[name] for name in ("input_ngram_ids", "ngram_position_matrix")}
  ngrams["ngram_position_matrix"] = 0 * ngrams["ngram_position_matrix"]
  inputs.pop("attention_mask")
  expected = logits_of(plain, rest, inputs)
  np.testing.assert_allclose(logits_of(whole, params, {**inputs, **ngrams}), expected, atol=1e-5)


@pytest.fixture(scope="module")
def zen1():
  config = models.family("zen1").config_from_hf({**HF, **ZEN})
  meant = dataclasses.replace(config, ngrams=dataclasses.replace(config.ngrams, mask_as_token_types=()))
  params = random_params(models.build("zen1", config, "pretraining"))

  def run(chosen, head, **inputs):
    return logits_of(models.build("zen1", chosen, head), params_of(head), inputs)

  def params_of(head):
    if head == "pretraining":
      return params
    left = {name: x for name, x in params.items() if name != "pooler"}
    return {**left, "head": {"masked_lm": params["head"]["masked_lm"]}}

  return run, config, meant


def test_the_originals_heads_take_the_mask_for_token_types(zen1, batch):
  run, as_it_was, meant = zen1
  square = {
    **{name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")},
    "input_ngram_ids": np.pad(batch["input_ngram_ids"], ((0, 0), (0, LENGTH - NGRAMS))),
    "ngram_position_matrix": np.pad(batch["ngram_position_matrix"], ((0, 0), (0, 0), (0, LENGTH - NGRAMS))),
  }
  unmasked = {name: x for name, x in square.items() if name != "attention_mask"}
  expected = run(meant, "masked_lm", **unmasked, ngram_token_type_ids=square["attention_mask"])
  np.testing.assert_array_equal(run(as_it_was, "masked_lm", **square), expected)
  assert np.abs(run(meant, "masked_lm", **square) - expected).max() > 1e-3
  # The one of pre-training masks.
  scores = [run(config, "pretraining", **square) for config in (as_it_was, meant)]
  np.testing.assert_array_equal(*scores)
  with pytest.raises(UserError, match=r"\(3, 9\) for the token types of input_ngram_ids \(3, 6\): fill both up"):
    run(as_it_was, "masked_lm", **batch)


def test_ngrams_and_their_matrix_must_fit(zen1, batch):
  run, config, _ = zen1
  ids = {"input_ids": batch["input_ids"]}
  for name in ("input_ngram_ids", "ngram_position_matrix"):
    with pytest.raises(UserError, match="give input_ngram_ids and ngram_position_matrix together, or neither"):
      run(config, "pretraining", **ids, **{name: batch[name]})
  turned = {"ngram_position_matrix": batch["ngram_position_matrix"].swapaxes(1, 2)}
  with pytest.raises(UserError, match=r"it must be \(3, 9, 6\): \[batch, length, ngrams\]"):
    run(config, "pretraining", **ids, **turned, input_ngram_ids=batch["input_ngram_ids"])


def test_more_tokens_leave_the_ngrams_alone():
  config = models.sized("zen1", "tiny", vocab_multiple=8)
  boxed = models.abstract_params(models.build("zen1", config, "masked_lm"))
  random = np.random.default_rng(0)
  params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), nn.meta.unbox(boxed))
  grown = dataclasses.replace(config, vocab_size=config.vocab_size + 9)
  boxed = models.abstract_params(models.build("zen1", grown, "masked_lm"))
  resized = models.resize_vocabulary(params, boxed, config.vocab_size)
  np.testing.assert_array_equal(
    resized["ngrams"]["token_embed"]["embedding"], params["ngrams"]["token_embed"]["embedding"]
  )
  table = resized["token_embed"]["embedding"]
  assert table.shape == (grown.vocab_rows, config.embed_dim)
  mean = params["token_embed"]["embedding"][: config.vocab_size].mean(0)
  np.testing.assert_allclose(table[config.vocab_size], mean, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, bool, np.int32])
def test_masks_of_any_type(dtype):
  model = models.build("zen1", models.sized("zen1", "tiny"), "sequence_classification")
  ids = np.ones((1, 4), np.int32)
  arrays = {"input_ngram_ids": ids, "ngram_position_matrix": np.ones((1, 4, 4), np.float32)}
  mask = np.ones((1, 4), dtype)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids, attention_mask=mask, **arrays)
  assert shapes
