"""The losses of UniMC, TCBert and SimCSE against PyTorch, float64 on both sides; what must not change them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from convert_torch import engine
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from torch_reference import LABELS, LENGTH, QUICK, ROWS, make_batch, make_pair

from fsb_jax import encodings, models
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES
from fsb_jax.training.step import Update

cross_entropy = torch.nn.functional.cross_entropy
OPTIONS = ([1, 3, 5], [1, 4], [2, 6, 7, 8], [1], [1, 2], [3, 9])
RIGHT = np.array([3, 1, 8, -100, 2, 9])


def unimc_batch(vocab, seed=0):
  random = np.random.default_rng(seed)
  mask = np.zeros((ROWS, LENGTH), bool)
  for row, places in enumerate(OPTIONS):
    mask[row, places] = True
  labels = np.where(random.random((ROWS, LENGTH)) < 0.5, -100, random.integers(0, vocab, (ROWS, LENGTH)))
  yes = random.integers(0, vocab, ROWS)
  return {"labels": labels, "option_mask": mask, "option_label": RIGHT, "yes_token": yes}


def torch_unimc(logits, batch):
  """The original's: the yes token's logits at all positions, -10000 where no option is, are one distribution."""
  labels, right, yes = (torch.from_numpy(batch[name]) for name in ("labels", "option_label", "yes_token"))
  choices = logits[torch.arange(len(yes)), :, yes] + torch.from_numpy(np.where(batch["option_mask"], 0.0, -10000.0))
  return cross_entropy(logits.flatten(0, 1), labels.flatten()) + cross_entropy(choices, right)


def torch_tcbert(logits, mlm_logits, batch):
  labels, classes = (torch.from_numpy(batch[name]) for name in ("labels", "class_label"))
  return cross_entropy(mlm_logits.flatten(0, 1), labels.flatten()) + cross_entropy(logits, classes)


def torch_contrastive(states):
  one, other = states[:, 0].chunk(2)
  cosines = torch.nn.CosineSimilarity(dim=-1)(one[:, None], other[None]) / 0.05
  return cross_entropy(cosines, torch.arange(len(one)))


def scores(*shapes):
  random = np.random.default_rng(3)
  return [2 * random.normal(size=shape) for shape in shapes]


def drawn(model, scale=0.3):
  """Random parameters; nothing is compiled for them."""
  random = np.random.default_rng(0)
  shapes = models.flatten(nn.meta.unbox(models.abstract_params(model)))
  # Norms about one, all else about zero.
  flat = {path: path.endswith("scale") + scale * random.normal(size=x.shape) for path, x in shapes.items()}
  return models.unflatten({path: jnp.asarray(x, shapes[path].dtype) for path, x in flat.items()})


def unimc_case():
  arrays, batch = scores((ROWS, LENGTH, 23)), unimc_batch(23)
  return "unimc", arrays, batch, models.MaskedLMOutput, lambda x: torch_unimc(x, batch)


def tcbert_case():
  arrays = scores((ROWS, LABELS), (ROWS, LENGTH, 23))
  batch = {"labels": unimc_batch(23)["labels"], "class_label": np.array([0, 2, 1, -100, 1, 0])}
  return "tcbert", arrays, batch, models.TCBertOutput, lambda *x: torch_tcbert(*x, batch)


def contrastive_case():
  arrays = scores((ROWS, LENGTH, 8))
  batch = {"input_ids": np.zeros((ROWS, LENGTH), int), "attention_mask": np.ones((ROWS, LENGTH), int)}
  return "contrastive", arrays, batch, models.BaseOutput, torch_contrastive


CASES = {"unimc": unimc_case, "tcbert": tcbert_case, "contrastive": contrastive_case}


def ours(objective, arrays, batch, output, weights=None):
  function = jax.value_and_grad(lambda arrays: OBJECTIVES[objective](output(*arrays), batch, weights))
  return jax.jit(function, compiler_options=QUICK)([jnp.asarray(x) for x in arrays])


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_pytorchs(case):
  objective, arrays, batch, output, reference = CASES[case]()
  tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
  expected = reference(*tensors)
  expected.backward()
  with jax.enable_x64(True):
    loss, gradients = ours(objective, arrays, batch, output)
  assert float(loss) == pytest.approx(expected.item(), rel=1e-12) and expected.item() > 0.5
  for gradient, tensor in zip(gradients, tensors, strict=True):
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_filling_rows_change_nothing(case):
  objective, arrays, batch, output, _ = CASES[case]()
  # Behind the others; pairs are filled up with pairs, behind each half.
  places = np.arange(ROWS) + (np.arange(ROWS) >= ROWS // 2 if case == "contrastive" else 0)
  real = np.isin(np.arange(ROWS + 2), places)

  def filled(x, filling):
    result = np.full((ROWS + 2, *x.shape[1:]), filling, x.dtype)
    result[places] = x
    return result

  more = {name: filled(x, 0) for name, x in batch.items()} | {"weights": real.astype(np.float32)}
  with jax.enable_x64(True):
    loss, gradients = ours(objective, arrays, batch, output)
    again, others = ours(objective, [filled(x, 1e3) for x in arrays], more, output)
  assert float(again) == pytest.approx(float(loss), rel=1e-12)
  for gradient, other in zip(gradients, others):
    np.testing.assert_allclose(np.asarray(other)[real], gradient, rtol=1e-9, atol=1e-14)
    assert not np.asarray(other)[~real].any()


@pytest.mark.parametrize("case", ["unimc", "tcbert"])
def test_parts_add_up_to_the_whole(case):
  objective, arrays, batch, output, _ = CASES[case]()
  with jax.enable_x64(True):
    loss, gradients = ours(objective, arrays, batch, output)
    weights = OBJECTIVES[objective].weights(batch)
    parts = [
      ours(objective, [x[i] for x in arrays], {name: x[i] for name, x in batch.items()}, output, weights)
      for i in (slice(0, 2), slice(2, ROWS))
    ]
  assert sum(float(part) for part, _ in parts) == pytest.approx(float(loss), rel=1e-12)
  for i, gradient in enumerate(gradients):
    np.testing.assert_allclose(np.concatenate([part[i] for _, part in parts]), gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
def test_pairs_stay_together_in_microbatches():
  hf = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
  dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
  model = models.build("bert", models.family("bert").config_from_hf(hf | dropout))
  params = drawn(model)
  ids = np.random.default_rng(0).integers(1, 30, (8, LENGTH))
  update = Update(model, OBJECTIVES["contrastive"], optax.sgd(1.0), microbatches=2)
  batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "weights": np.ones(8, np.float32)}
  _, metrics = jax.jit(update, compiler_options=QUICK)(update.first_state(params), batch)
  states = torch.from_numpy(np.array(model.apply({"params": params}, ids).last_hidden_state))
  # Every second row is a microbatch: the others are no answers.
  expected = [torch_contrastive(states[part::2]) for part in (0, 1)]
  assert float(metrics["loss"]) == pytest.approx(float(sum(expected)) / 2, rel=1e-4)


@pytest.mark.parametrize(
  "family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("megatron_bert", "albert"))]
)
def test_unimc_of_a_whole_model_is_pytorchs(family):
  with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    pair = make_pair(family, "masked_lm")
    batch = make_batch(pair, mask="dense") | unimc_batch(pair.config.vocab_size)
    inputs = {name: batch[name] for name in models.input_names(pair.model) if name in batch}
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    tensors["attention_mask"] = (1 - tensors["attention_mask"][:, None].double()) * torch.finfo(torch.float64).min
    expected = torch_unimc(pair.theirs(**tensors).logits, batch)
    expected.backward()

    def loss_of(params):
      return OBJECTIVES["unimc"](pair.model.apply({"params": params}, **inputs), batch)

    loss, gradients = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)(pair.params)
  assert_gradients(loss, gradients, expected, pair.as_ours(lambda parameter: parameter.grad))


def assert_gradients(loss, gradients, expected, expected_gradients):
  assert abs(float(loss) - expected.item()) <= 1e-9 * max(1, expected.item())
  # As numpy's: outside of enable_x64 jax would compare in float32.
  gradients = {path: np.asarray(x) for path, x in models.flatten(gradients).items()}
  expected = models.flatten(expected_gradients)
  assert {x.dtype.name for x in gradients.values()} == {"float64"} and gradients.keys() == expected.keys()
  for path, reference in expected.items():
    excess = np.abs(gradients[path] - reference) - 1e-9 * np.maximum(1, np.abs(reference))
    assert excess.max() <= 0, path
  assert sum(np.abs(x).max() > 1e-6 for x in expected.values()) > 0.8 * len(expected)


def test_tcbert_of_a_whole_model_is_pytorchs():
  with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    pair = make_pair("bert", "masked_lm")
    pair.theirs.linear_classifier = torch.nn.Linear(pair.config.embed_dim, LABELS).double()
    model = models.build("bert", pair.config, "tcbert", LABELS)
    slots = engine.slots(table("bert"), pair.config, param_shapes(model), prefixed=True)
    pair = dataclasses.replace(pair, model=model, slots=slots)
    batch = make_batch(pair) | {"class_label": np.array([0, 2, 1, -100, 1, 0])}
    inputs = {name: batch[name] for name in models.input_names(model) if name in batch}
    theirs = pair.theirs(**{name: torch.from_numpy(x) for name, x in inputs.items()}, output_hidden_states=True)
    logits = pair.theirs.linear_classifier(theirs.hidden_states[-1][:, 0])
    expected = torch_tcbert(logits, theirs.logits, batch)
    expected.backward()

    def loss_of(params):
      return OBJECTIVES["tcbert"](model.apply({"params": params}, **inputs), batch)

    loss, gradients = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)(pair.params)
  assert_gradients(loss, gradients, expected, pair.as_ours(lambda parameter: parameter.grad))


ITEMS = (
  {"texta": "天气真好", "question": "哪个", "choice": ["今", "不好", "好天"], "label": 1},
  {"texta": "今天天气真好不知道", "choice": ["天", "道"], "label": 0},
  {"texta": "不好", "textb": "今天", "choice": ["不相似", "相似"], "task_type": "语义匹配"},
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  characters = "今天气真好不知道哪个是非能理解为可以："
  return encodings.bert_tokenizer_from_characters(characters, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def rows(tokenizer):
  """Rows with some of their text hidden."""
  encoded = encodings.encode_unimc(tokenizer, ITEMS, max_length=64)
  random = np.random.default_rng(4)
  for i, labels in enumerate(encoded["labels"]):
    ids, labels = encodings.mask_unimc(
      encoded["input_ids"][i], labels, encoded["option_bounds"][i], random=random,
      mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer),
    )  # fmt: skip
    encoded["input_ids"][i], encoded["labels"][i] = ids, labels
  assert any((labels[bounds[-1] :] >= 0).any() for labels, bounds in zip(encoded["labels"], encoded["option_bounds"]))
  return encoded


def loss_and_probabilities(model, params, batch):
  inputs = {name: batch[name] for name in models.input_names(model) if name in batch}

  def run(params):
    outputs = model.apply({"params": params}, **inputs)
    scores = models.option_probabilities(outputs.logits, batch["option_mask"], batch["yes_token"])
    return OBJECTIVES["unimc"](outputs, batch), scores

  loss, scores = jax.jit(run, compiler_options=QUICK)(params)
  # Row by row the options' alone.
  return float(loss), [row[mask] for row, mask in zip(np.asarray(scores), batch["option_mask"])]


@pytest.mark.parametrize("family", ["bert", "deberta_v2"])
def test_neither_padding_nor_what_is_not_asked_changes_anything(family, rows, tokenizer):
  # DeBERTa's convolution sees what stands beside a token, and at a row's end that is padding.
  config = dataclasses.replace(models.sized(family, "tiny"), vocab_size=len(tokenizer))
  assert family == "bert" or config.convolution is not None
  with jax.enable_x64(True):
    config = config.with_run(dtype="float64", param_dtype="float64")
    model = models.build(family, config, "masked_lm")
    params = drawn(model)
    plain = encodings.batch_unimc(rows, pad_id=tokenizer.pad_token_id)
    longer = encodings.batch_unimc(rows, pad_id=tokenizer.pad_token_id, length=plain["input_ids"].shape[1] + 5)
    loss, scores = loss_and_probabilities(model, params, plain)
    for other in (longer, encodings.only_asked_unimc(longer, asked=12)):
      again, same = loss_and_probabilities(model, params, other)
      assert again == pytest.approx(loss, rel=1e-9)
      for one, two in zip(scores, same, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-9)
  assert loss > 1 and [len(row) for row in scores] == [3, 2, 2]


def test_training_learns_the_answers(rows, tokenizer):
  config = dataclasses.replace(models.sized("bert", "tiny"), vocab_size=len(tokenizer), num_layers=1)
  model = models.build("bert", config, "masked_lm")
  batch = encodings.only_asked_unimc(encodings.batch_unimc(rows, pad_id=tokenizer.pad_token_id))
  batch["weights"] = np.ones(len(ITEMS), np.float32)
  params = drawn(model, 0.05)
  update = Update(model, OBJECTIVES["unimc"], optax.adam(1e-3), microbatches=len(ITEMS))
  step, state = jax.jit(update, compiler_options=QUICK), update.first_state(params)
  losses = []
  for _ in range(30):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[0] > 3 and losses[-1] < 0.5
  _, scores = loss_and_probabilities(model, state.params, batch)
  assert [row.argmax() for row in scores[:2]] == [1, 0] and min(row.max() for row in scores[:2]) > 0.9
  assert metrics["tokens"] == sum(map(len, rows["input_ids"]))


def test_the_order_of_options_does_not_matter(tokenizer):
  # Options share positions and do not see each other.
  config = dataclasses.replace(models.sized("bert", "tiny"), vocab_size=len(tokenizer))
  item = ITEMS[0]
  turned = {**item, "choice": item["choice"][::-1], "label": 1}
  with jax.enable_x64(True):
    model = models.build("bert", config.with_run(dtype="float64", param_dtype="float64"), "masked_lm")
    params = drawn(model)
    batch = encodings.batch_unimc(encodings.encode_unimc(tokenizer, [item, turned], max_length=64), pad_id=0)
    _, (one, other) = loss_and_probabilities(model, params, encodings.only_asked_unimc(batch))
  np.testing.assert_allclose(one, other[::-1], rtol=1e-9)
  assert np.ptp(one) > 0.1


def test_pairs_are_even():
  batch = {"input_ids": jnp.zeros((3, 4), jnp.int32)}
  with pytest.raises(UserError, match="a batch of pairs has an even number of rows"):
    OBJECTIVES["contrastive"].weights(batch)
