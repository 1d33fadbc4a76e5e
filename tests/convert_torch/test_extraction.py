"""Ubert and UniEX from folders of the original code: outputs, loss, gradients, export and answers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_torch import engine, load_hub_folder, save_hub_folder
from convert_torch.hub import param_shapes
from convert_torch.verify import verify
from convert_torch.weights import table
from test_goldens import HERE
from tiny_hub import assert_close, tensors_of

from fsb_jax import models
from fsb_jax.encodings import (
  choose_spans,
  decode_ubert,
  decode_uniex,
  encode_ubert,
  encode_uniex,
  end_tokens,
  load_tokenizer,
  pad_uniex,
)
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES

FOLDERS = {head: HERE / head for head in ("ubert", "uniex")}
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def loaded(head):
  hub = load_hub_folder(FOLDERS[head])
  return hub, models.build(hub.family, hub.config, hub.head, hub.num_labels)


@functools.cache
def arrays(head):
  """The batch with our names, and what the original computed from it."""
  given, expected = (dict(np.load(FOLDERS[head] / f"{name}.npz")) for name in ("inputs", "outputs"))
  if head == "uniex":
    given |= {"label_positions": given.pop("label_token_idx"), "span_positions": given.pop("text_token_idx")}
  return given, expected


def taken(head, batch):
  return {name: jnp.asarray(x) for name, x in batch.items() if name in models.input_names(loaded(head)[1])}


def applied(head, batch):
  hub, model = loaded(head)
  return jax.jit(model.apply, compiler_options=QUICK)({"params": hub.params}, **taken(head, batch))


@functools.cache
def trained(head):
  """Outputs, loss and gradients of the batch."""
  hub, model = loaded(head)
  batch = {name: jnp.asarray(x) for name, x in arrays(head)[0].items()}

  def loss(params):
    outputs = model.apply({"params": params}, **taken(head, batch), output_hidden_states=True)
    return OBJECTIVES[head](outputs, batch), outputs

  (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(hub.params)
  return jax.tree.map(np.asarray, outputs), value, gradients


@pytest.mark.parametrize("head", FOLDERS)
def test_the_folder_is_read_whole(head):
  hub, _ = loaded(head)
  # The original always carries a pooler that it does not use.
  pooler = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
  assert (hub.family, hub.head, hub.newly_initialised, hub.unused) == ("bert", head, [], pooler)
  sizes = {name: hub.hf_config[name] for name in ("biaffine_size", "triaffine_hidden_size") if name in hub.hf_config}
  assert len(sizes) == 1 and all(getattr(hub.config.head_sizes, name) == size for name, size in sizes.items())


def test_uberts_scores_and_parts_of_its_loss():
  batch, expected = arrays("ubert")
  outputs, _, _ = trained("ubert")
  assert_close(np.asarray(outputs.span_logits + batch["span_labels_mask"]), expected["span_logits"])
  # Beside the mask's ten thousand a score would count for little.
  counts = batch["span_labels_mask"] == 0
  np.testing.assert_allclose(np.asarray(outputs.span_logits)[counts], expected["span_logits"][counts], atol=1e-5)
  objective = OBJECTIVES["ubert"]
  sums, weights = objective.sums(outputs, batch), objective.weights(batch)
  for term, scale, part in (("cells", 1000, "sig_loss"), ("labels", 10, "soft_loss1"), ("spans", 10, "soft_loss2")):
    np.testing.assert_allclose(sums[term] / weights[term] / scale, expected[part], rtol=1e-5)


def test_uniexs_scores():
  batch, expected = arrays("uniex")
  outputs, _, _ = trained("uniex")
  assert_close(outputs.hidden_states[-1], expected["last_hidden"])
  text = batch["span_positions"]
  mask = np.take_along_axis(batch["span_labels_mask"], text[:, :, None, None], axis=1)
  mask = np.take_along_axis(mask, text[:, None, :, None], axis=2)[..., 1:]
  assert_close(outputs.type_logits + mask, expected["span_logits"])
  outputs = applied("uniex", {**batch, "text_positions": text})
  both = np.concatenate([outputs.index_logits[..., None], outputs.type_logits], axis=-1)
  assert_close(1 / (1 + np.exp(-both)), expected["infer_span_probs"])
  assert_close(1 / (1 + np.exp(-both[..., 0])), expected["fast_span_index_probs"])


def test_uniexs_types_are_asked_of_an_encoding_already_made():
  batch, expected = arrays("uniex")
  hub, model = loaded("uniex")
  encoded = models.BaseOutput(last_hidden_state=jnp.asarray(expected["last_hidden"]))
  positions = np.take_along_axis(batch["span_positions"], expected["fast_token_index"], axis=1)
  outputs = model.head.apply(
    {"params": hub.params["head"]}, encoded, None, True,
    label_positions=batch["label_positions"], text_positions=batch["span_positions"], span_positions=positions,
  )  # fmt: skip
  assert_close(1 / (1 + np.exp(-np.asarray(outputs.type_logits))), expected["fast_span_type_probs"])


@pytest.mark.parametrize("head", FOLDERS)
def test_loss_and_gradients(head):
  hub, model = loaded(head)
  expected = arrays(head)[1]
  _, loss, gradients = trained(head)
  np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
  flat = {path: np.asarray(x) for path, x in models.flatten(gradients).items()}
  norm = expected["grad_global_norm"]
  np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(x)) for x in flat.values())), norm, rtol=1e-4)
  theirs = {}
  for slot in engine.slots(table(hub.family), hub.config, param_shapes(model), prefixed=True):
    array = flat[slot.path] if slot.index is None else flat[slot.path][slot.index]
    theirs[slot.theirs] = slot.row.op.save(array, hub.config)
  recorded = {name.removeprefix("grad/"): x for name, x in expected.items() if name.startswith("grad/")}
  assert len(recorded) == 2
  for name, reference in recorded.items():
    np.testing.assert_allclose(theirs[name], reference, rtol=1e-3, atol=1e-6 * norm, err_msg=name)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("head", FOLDERS)
def test_export_is_equal_bit_for_bit(head, scan_layers, tmp_path):
  hub = load_hub_folder(FOLDERS[head], run=models.Run(scan_layers=scan_layers))
  save_hub_folder(
    tmp_path / "again", hub.params, family=hub.family, config=hub.config, head=head, num_labels=hub.num_labels,
    label_names=hub.label_names, hf_config=hub.hf_config,
  )  # fmt: skip
  written, original = tensors_of(tmp_path / "again"), tensors_of(FOLDERS[head])
  assert set(original) - set(written) == {*hub.unused, "bert.embeddings.position_ids"}
  for name, array in written.items():
    assert array.dtype == original[name].dtype
    np.testing.assert_array_equal(array, original[name], err_msg=name)
  again = load_hub_folder(tmp_path / "again", run=hub.config.run)
  assert (again.config, again.head) == (hub.config, head)
  assert again.hf_config["architectures"] == hub.hf_config["architectures"]


def assert_same(ours, theirs):
  """The same lists and dicts of the same strings and integers, and floats to 1e-4."""
  if isinstance(theirs, dict):
    assert ours.keys() == theirs.keys()
    for name in theirs:
      assert_same(ours[name], theirs[name])
  elif isinstance(theirs, list):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
      assert_same(one, other)
  elif isinstance(theirs, float):
    assert ours == pytest.approx(theirs, abs=1e-4)
  else:
    assert ours == theirs


def predictions(head):
  return json.loads((FOLDERS[head] / "predict.json").read_text("utf-8"))


def test_uberts_answers():
  golden = predictions("ubert")
  tokenizer = load_tokenizer(FOLDERS["ubert"])
  items = {case["item"]["id"]: case["item"] for case in golden["results"]}
  rows = [encode_ubert(tokenizer, item, max_length=golden["max_length"]) for item in items.values()]
  # Choices know nothing of each other, so those of all items go at once.
  together = {name: np.concatenate([row[name] for row in rows])[None] for name in rows[0]}
  ends = np.cumsum([len(item["choices"]) for item in items.values()])
  logits = dict(zip(items, np.split(np.asarray(applied("ubert", together).span_logits[0]), ends[:-1]), strict=True))
  for case in golden["results"]:
    item = case["item"]
    ours = decode_ubert(tokenizer, item, logits[item["id"]], threshold=case["threshold"])
    for choice in ours["choices"]:
      # As recorded: no more than sixty, beside how many there were.
      if len(choice["entity_list"]) > 60:
        choice |= {"n_entities": len(choice["entity_list"]), "entity_list": choice["entity_list"][:60]}
    assert_same(ours, case["result"])


@pytest.mark.parametrize("way", ["full", "fast"])
def test_uniexs_answers(way):
  cases = predictions("uniex")[way]
  tokenizer = load_tokenizer(FOLDERS["uniex"])
  rows = [encode_uniex(tokenizer, case["item"], max_length=case["args"]["max_length"]) for case in cases]
  batch = pad_uniex(rows)
  outputs = applied("uniex", batch)
  chosen = [{} for _ in cases]
  if way == "fast":
    for i, case in enumerate(cases):
      index = np.asarray(outputs.index_logits[i])[: len(rows[i]["text_positions"]), : len(rows[i]["text_positions"])]
      spans = choose_spans(index, threshold=case["args"]["threshold_index"])
      chosen[i] = {"spans": spans, "tokens": end_tokens(spans)}
    places = [{"span_positions": row["query_length"] + 1 + one["tokens"]} for row, one in zip(rows, chosen)]
    outputs = applied("uniex", {**batch, **pad_uniex(places)})
  for i, case in enumerate(cases):
    item, given = case["item"], case["args"]
    thresholds = {"event_threshold": given["threshold_event"], "relation_threshold": given["threshold_relation"]}
    if item["task_type"] == "关系抽取":  # entities alone are always asked for above 0.5
      thresholds["entity_threshold"] = given["threshold_entity"]
    length = len(chosen[i]["tokens"] if chosen[i] else rows[i]["text_positions"])
    types = np.asarray(outputs.type_logits[i])[:length, :length, : len(rows[i]["label_positions"]) - 1]
    assert_same(decode_uniex(tokenizer, item, types, **chosen[i], **thresholds), case["result"])


def test_transformers_lacks_them():
  with pytest.raises(UserError, match="transformers has no bert model with head ubert to verify against"):
    verify(FOLDERS["ubert"])
