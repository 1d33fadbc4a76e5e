"""UniMC's and TCBert's folders against what the original computed: scores, loss, gradients, predictions, export."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from convert_torch import load_hub_folder, save_hub_folder
from convert_torch.verify import verify
from test_goldens import ALL, HERE
from tiny_hub import assert_close, assert_recorded_gradients, assert_same_tree, rewritten, tensors_of
from torch_reference import QUICK

from fsb_jax import encodings, models
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES

# The original's own ALBERT and DeBERTa differ from transformers' in what padding sees, and in one epsilon.
CONFIGS = {
  "unimc_albert": dict(mask_fill="minus_10000"),
  "unimc_deberta_v2": dict(mask_fill="zeroed", mask_embeddings=False),
}
HEADS = {"unimc_albert": dict(norm_epsilon=1e-5)}
NAMES = ("unimc_bert", "unimc_megatron_bert", "unimc_deberta_v2", "unimc_albert")


def slowly(*names):
  return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def folder_of(name):
  if (HERE / name).is_dir():
    return HERE / name
  if not ALL.is_dir():
    pytest.skip(f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
  return ALL / name


def opened(name, **options):
  folder = folder_of(name)
  hub = load_hub_folder(folder, **options)
  assert hub.newly_initialised == [] and hub.unused == []
  hub = dataclasses.replace(hub, config=dataclasses.replace(hub.config, **CONFIGS.get(name, {})))
  model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
  return folder, hub, model.clone(head=model.head.clone(**HEADS.get(name, {})))


def check(hub, model, objective, inputs, batch, expected, fields):
  """Every output, the loss and its terms, and gradients."""

  def loss_and_outputs(params):
    outputs = model.apply({"params": params}, **inputs, output_hidden_states="hidden_states.0" in expected)
    return OBJECTIVES[objective](outputs, batch), outputs

  step = jax.jit(jax.value_and_grad(loss_and_outputs, has_aux=True), compiler_options=QUICK)
  (loss, outputs), gradients = step(hub.params)
  for field, name in fields.items():
    assert_close(np.asarray(getattr(outputs, field)), expected[name])
  for i, states in enumerate(outputs.hidden_states or ()):
    assert_close(np.asarray(states), expected[f"hidden_states.{i}"])
  assert_close(np.asarray(loss), expected["loss"])
  assert_recorded_gradients(hub, gradients, expected)
  sums, weights = (OBJECTIVES[objective].sums(outputs, batch), OBJECTIVES[objective].weights(batch))
  return outputs, {name: np.asarray(sums[name] / weights[name]) for name in sums}


# MegatronBERT pads as BERT does.
@pytest.mark.parametrize("name", [*slowly("unimc_megatron_bert"), *(name for name in NAMES if "megatron" not in name)])
def test_unimc_outputs_loss_and_gradients(name):
  folder, hub, model = opened(name)
  given, expected = (dict(np.load(folder / f"{part}.npz")) for part in ("inputs", "outputs"))
  inputs = {field: given[field] for field in models.input_names(model) if field in given}
  yes = json.loads((folder / "predict.json").read_text("utf-8"))["yes_token"]
  batch = {
    "labels": given["mlmlabels"],
    "option_mask": given["clslabels_mask"] == 0,
    "option_label": given["clslabels"],
    "yes_token": np.full(len(given["clslabels"]), yes),
  }
  outputs, terms = check(hub, model, "unimc", inputs, batch, expected, {"logits": "mlm_logits"})
  assert_close(terms["masked_lm"], expected["mask_loss"])
  assert_close(terms["options"], expected["cls_loss"])
  # The original's way: a softmax over all positions, at -10000 where no option is.
  theirs = torch.from_numpy(expected["cls_logits"]).softmax(-1).numpy()
  ours = models.option_probabilities(outputs.logits, batch["option_mask"], batch["yes_token"])
  np.testing.assert_allclose(ours, theirs, atol=1e-6)
  assert_close(
    np.asarray(outputs.logits[..., yes]) + given["clslabels_mask"], expected["cls_logits"]
  )


def predicted(hub, model, items, *, max_length, length=None, asked=None, rows=4):
  """Answers by the public way: encode, batch, score the vocabulary at the options alone, decide."""
  tokenizer = encodings.load_tokenizer(hub.source["path"])

  @functools.partial(jax.jit, compiler_options=QUICK)
  def probabilities(params, inputs, option_mask, yes_token):
    logits = model.apply({"params": params}, **inputs).logits
    return models.option_probabilities(logits, option_mask, yes_token)

  encoded = encodings.encode_unimc(tokenizer, items, max_length=max_length)
  answers = []
  for first in range(0, len(items), rows):
    part = {name: values[first : first + rows] for name, values in encoded.items()}
    part["labels"] = [np.full_like(labels, encodings.IGNORED) for labels in part["labels"]]
    batch = encodings.only_asked_unimc(encodings.batch_unimc(part, pad_id=0, length=length), asked)
    inputs = {name: batch[name] for name in models.input_names(model) if name in batch}
    assert "masked_lm_positions" in inputs
    scores = probabilities(hub.params, inputs, batch["option_mask"], batch["yes_token"])
    answers += encodings.answers_unimc(items[first : first + rows], scores)
  return answers


@pytest.mark.parametrize("name", NAMES)
def test_unimc_predictions(name):
  folder, hub, model = opened(name)
  expected = json.loads((folder / "predict.json").read_text("utf-8"))
  items = [{**item, "label": item["label_ori"]} for item in expected["postprocess"]]
  answers = predicted(hub, model, items, max_length=expected["max_length"])
  for answer, theirs in zip(answers, expected["postprocess"], strict=True):
    assert (answer["label"], answer["answer"]) == (theirs["label"], theirs["answer"])
    np.testing.assert_allclose(answer["scores"], list(theirs["score"].values()), atol=1e-5)


@pytest.mark.parametrize("task", ["eprstmt", "tnews", "ocnli", "bustm"])
def test_predictions_on_real_rows(task):
  folder, hub, model = opened("unimc_zeroclue")
  theirs = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text("utf-8").splitlines()]
  items = [row["item"] for row in theirs]
  answers = predicted(hub, model, items, max_length=512, rows=24)
  assert len(answers) == 24
  for answer, row in zip(answers, theirs, strict=True):
    assert (answer["label"], answer["answer"]) == (row["label"], row["answer"])
    np.testing.assert_allclose(answer["scores"], list(row["score"].values()), atol=1e-5)


@pytest.mark.parametrize("name", ["tcbert_bert", *slowly("tcbert_megatron_bert")])
def test_tcbert_outputs_loss_and_gradients(name):
  folder, hub, model = opened(name, head="tcbert", num_labels=3)
  given, expected = (dict(np.load(folder / f"{part}.npz")) for part in ("inputs", "outputs"))
  inputs = {field: given[field] for field in models.input_names(model) if field in given}
  batch = {"labels": given["mlmlabels"], "class_label": given["labels"]}
  fields = {"logits": "logits", "prediction_logits": "mlm_logits"}
  _, terms = check(hub, model, "tcbert", inputs, batch, expected, fields)
  assert_close(terms["masked_lm"], expected["mlm_loss"])
  assert_close(terms["classes"], expected["cls_loss"])


def export(hub, target):
  save_hub_folder(
    target, hub.params, family=hub.family, config=hub.config, head=hub.head, num_labels=hub.num_labels,
    label_names=hub.label_names, hf_config=hub.hf_config,
  )  # fmt: skip
  return target


@pytest.mark.parametrize("name", ["unimc_bert", "unimc_albert", *slowly("unimc_megatron_bert", "unimc_deberta_v2")])
def test_unimc_is_exported_as_a_masked_language_model(name, tmp_path):
  hub = load_hub_folder(folder_of(name))
  target = export(hub, tmp_path / "hub")
  model, problems = transformers.AutoModelForMaskedLM.from_pretrained(target, output_loading_info=True)
  assert type(model).__name__ == hub.hf_config["architectures"][0]
  assert not problems["missing_keys"] and not problems["unexpected_keys"] and not problems["mismatched_keys"]
  assert_same_tree(load_hub_folder(target).params, hub.params)


@pytest.mark.parametrize("name", ["tcbert_bert", *slowly("tcbert_megatron_bert")])
def test_tcbert_folders_say_what_they_are(name, tmp_path):
  hub = load_hub_folder(folder_of(name), head="tcbert", num_labels=3)
  target = export(hub, tmp_path / "hub")
  names = set(tensors_of(target))
  assert {"linear_classifier.weight", "linear_classifier.bias", "cls.predictions.bias"} <= names
  again = load_hub_folder(target)
  assert (again.head, again.num_labels) == ("tcbert", 3) and again.hf_config["architectures"] == ["TCBertModel"]
  assert again.newly_initialised == [] and again.unused == []
  assert_same_tree(again.params, hub.params)
  # The masked language model inside is the published form; its classifier is new.
  alone = load_hub_folder(target, head="masked_lm")
  assert sorted(alone.unused) == ["linear_classifier.bias", "linear_classifier.weight"]
  plain = export(alone, tmp_path / "plain")
  assert load_hub_folder(plain, head="tcbert").newly_initialised == [
    "head/linear_classifier/bias", "head/linear_classifier/kernel"
  ]


def test_tcbert_cannot_be_verified_against_transformers():
  folder = folder_of("tcbert_bert")
  with pytest.raises(UserError, match="transformers has no bert model with head tcbert to verify against"):
    verify(folder, load_hub_folder(folder, head="tcbert", num_labels=3))


@pytest.mark.parametrize("name", ["unimc_bert", "tcbert_bert", *slowly("unimc_albert")])
def test_files_of_the_trainer_are_read_too(name, tmp_path):
  folder = folder_of(name)
  options = {"head": "tcbert", "num_labels": 3} if name == "tcbert_bert" else {}
  wrapped = rewritten(folder, tmp_path / "wrapped", lambda tensors: {f"model.{n}": x for n, x in tensors.items()})
  hub = load_hub_folder(wrapped, **options)
  assert hub.newly_initialised == [] and hub.unused == []
  assert_same_tree(hub.params, load_hub_folder(folder, **options).params)
