"""Ubert and UniEX from folders of the original code: outputs, loss, gradients, export and answers."""

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
)
from fsb_jax.errors import UserError
from fsb_jax.training.losses import OBJECTIVES

FOLDERS = {head: HERE / head for head in ("ubert", "uniex")}
LOADED = {}


def loaded(head):
  if head not in LOADED:
    hub = load_hub_folder(FOLDERS[head])
    LOADED[head] = hub, models.build(hub.family, hub.config, hub.head, hub.num_labels)
  return LOADED[head]


def arrays(head):
  """The batch with our names, and what the original computed from it."""
  given, expected = (dict(np.load(FOLDERS[head] / f"{name}.npz")) for name in ("inputs", "outputs"))
  if head == "uniex":
    given |= {"label_positions": given.pop("label_token_idx"), "span_positions": given.pop("text_token_idx")}
  return given, expected


def applied(head, batch, params=None, **options):
  hub, model = loaded(head)
  taken = {name: jnp.asarray(x) for name, x in batch.items() if name in models.input_names(model)}
  return jax.jit(lambda p: model.apply({"params": p}, **taken, **options))(hub.params if params is None else params)


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
  outputs = applied("ubert", batch)
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
  outputs = applied("uniex", batch, output_hidden_states=True)
  assert_close(np.asarray(outputs.hidden_states[-1]), expected["last_hidden"])
  cells = [np.take_along_axis(batch["span_labels_mask"], batch["span_positions"][:, :, None, None], axis=1)]
  mask = np.take_along_axis(cells[0], batch["span_positions"][:, None, :, None], axis=2)[..., 1:]
  assert_close(np.asarray(outputs.type_logits) + mask, expected["span_logits"])
  text = batch["span_positions"]
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
  batch, expected = arrays(head)
  loss, gradients = jax.value_and_grad(lambda params: OBJECTIVES[head](applied(head, batch, params), batch))(hub.params)
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


def test_uberts_answers():
  predictions = json.loads((FOLDERS["ubert"] / "predict.json").read_text("utf-8"))
  tokenizer, logits = load_tokenizer(FOLDERS["ubert"]), {}
  for case in predictions["results"]:
    item = case["item"]
    if item["id"] not in logits:
      rows = encode_ubert(tokenizer, item, max_length=predictions["max_length"])
      logits[item["id"]] = np.asarray(applied("ubert", {name: x[None] for name, x in rows.items()}).span_logits[0])
    ours = decode_ubert(tokenizer, item, logits[item["id"]], threshold=case["threshold"])
    for choice in ours["choices"]:
      # As recorded: no more than sixty, beside how many there were.
      if item["task_type"] == "抽取任务" and len(choice["entity_list"]) > 60:
        choice |= {"n_entities": len(choice["entity_list"]), "entity_list": choice["entity_list"][:60]}
    assert_same(ours, case["result"])


@pytest.mark.parametrize("way,place", [(way, place) for way in ("full", "fast") for place in range(3)])
def test_uniexs_answers(way, place):
  case = json.loads((FOLDERS["uniex"] / "predict.json").read_text("utf-8"))[way][place]
  item, given = case["item"], case["args"]
  tokenizer = load_tokenizer(FOLDERS["uniex"])
  row = encode_uniex(tokenizer, item, max_length=given["max_length"])
  batch = {name: x[None] for name, x in row.items()}
  thresholds = {"event_threshold": given["threshold_event"], "relation_threshold": given["threshold_relation"]}
  if item["task_type"] == "关系抽取":  # entities alone are always asked for above 0.5
    thresholds["entity_threshold"] = given["threshold_entity"]
  outputs = applied("uniex", batch)
  chosen = {}
  if way == "fast":
    spans = choose_spans(np.asarray(outputs.index_logits[0]), threshold=given["threshold_index"])
    chosen = {"spans": spans, "tokens": end_tokens(spans)}
    outputs = applied("uniex", {**batch, "span_positions": row["query_length"] + 1 + np.array([chosen["tokens"]])})
  assert_same(decode_uniex(tokenizer, item, np.asarray(outputs.type_logits[0]), **chosen, **thresholds), case["result"])


def test_transformers_lacks_them():
  with pytest.raises(UserError, match="transformers has no UbertModel model to verify against"):
    verify(FOLDERS["ubert"])
