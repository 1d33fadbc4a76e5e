"""UniEX's rows and labels: what the original made of five items, and by hand where it says nothing."""

import copy
import json

import numpy as np
import pytest
from extraction_goldens import GOLDENS, bert_base_chinese, dense, needs_goldens

from fsb_jax.encodings import bert_tokenizer_from_characters, load_tokenizer
from fsb_jax.encodings.uniex import (
  Choices,
  attention_mask,
  encode_uniex,
  encode_uniex_labels,
  pad_uniex,
  position_ids,
  read_choices,
)
from fsb_jax.errors import UserError

THEIR_NAMES = {
  "label_positions": "label_token_idx", "span_positions": "text_token_idx", "text_positions": "text_token_idx"
}  # fmt: skip
TEXT = "甲乙丙丁"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabulary")
  characters = "抽取人地在始终甲乙丙丁触发词方"
  tokens = ["[PAD]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(characters)]
  (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
  return load_tokenizer(folder)


@needs_goldens
def test_rows_and_labels_are_the_originals(tmp_path):
  tokenizer = bert_base_chinese(tmp_path)
  golden = json.loads((GOLDENS / "uniex_encoding" / "encoding.json").read_text("utf-8"))
  open_cells = np.load(GOLDENS / "uniex_encoding" / "span_labels_mask_is_zero.npz")
  for run in golden["runs"]:
    for item, expected in zip(golden["items"], run["encoded"], strict=True):
      before = copy.deepcopy(item)
      if run["is_predict"]:
        ours = encode_uniex(tokenizer, item, max_length=run["max_length"])
      else:
        ours = encode_uniex_labels(tokenizer, item, max_length=run["max_length"], gold_spans_only=run["fast_ex_mode"])
      assert item == before
      mask = ["".join(map(str, seen)) for seen in ours.pop("attention_mask")]
      assert mask == expected["attention_mask"]
      if not run["is_predict"]:
        np.testing.assert_array_equal(ours.pop("span_labels"), dense(expected["span_labels"]))
        is_open = open_cells[expected["span_labels_mask_npz_key"]]
        np.testing.assert_array_equal(ours.pop("span_labels_mask"), np.where(is_open, 0, -10000))
      for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[THEIR_NAMES.get(name, name)], err_msg=name)


@needs_goldens
def test_batches_are_the_originals():
  tokenizer = load_tokenizer(GOLDENS / "uniex")
  items = json.loads((GOLDENS / "uniex_encoding" / "encoding.json").read_text("utf-8"))["items"][:3]
  expected = np.load(GOLDENS / "uniex" / "inputs.npz")
  ours = pad_uniex([encode_uniex_labels(tokenizer, item, max_length=80, gold_spans_only=False) for item in items])
  for name in ours.keys() - {"token_type_ids"}:
    np.testing.assert_array_equal(ours[name], expected[THEIR_NAMES.get(name, name)], err_msg=name)
  assert not ours["token_type_ids"].any()


@needs_goldens
def test_positions_masks_and_choices_are_the_originals():
  golden = json.loads((GOLDENS / "ie_functions_metrics" / "data.json").read_text("utf-8"))["functions"]
  for case in golden["uniex_position_ids"]:
    ours = position_ids(len(case["out"]), case["entity_labels_idx"], case["relation_labels_idx"])
    assert ours.tolist() == case["out"]
  for case in golden["uniex_att_mask"]:
    pairs = [(pair.split("|"), relation) for pair, names in case["headtail2relation"].items() for relation in names]
    choices = Choices(
      tuple(case["entity_type_list"]), tuple(case["relation_type_list"]),
      {relation: (tuple(types),) for types, relation in pairs},
    )  # fmt: skip
    ours = attention_mask(len(case["out"]), case["entity_labels_idx"], case["relation_labels_idx"], choices)
    assert ["".join(map(str, row)) for row in ours] == case["out"]
  for case in golden["process_relation_choice"]:
    relations, types, _, _, pairs = case["out"]
    ours = read_choices(case["choice"])
    assert (list(ours.others), list(ours.entities)) == (relations, types)
    assert {relation: [list(pair) for pair in found] for relation, found in ours.allowed.items()} == {
      relation: [pair.split("|") for pair, names in pairs.items() if relation in names] for relation in relations
    }
  for case in golden["process_event_choice"]:
    events, roles, owners = case["out"]
    ours = read_choices(case["choice"])
    assert (list(ours.others), list(ours.entities), ours.events) == (events, roles, True)
    assert {role: [event for event in events if (role,) in ours.allowed.get(event, ())] for role in roles} == owners


def entity(kind, first, last):
  return {"entity_type": kind, "entity_text": TEXT[first : last + 1], "entity_index": [[first, last]]}


def encoded(tokenizer, item, **options):
  options = {"max_length": 32, "gold_spans_only": False, **options}
  return encode_uniex_labels(tokenizer, {"task_type": "抽取", "text": TEXT, **item}, **options)


def test_a_row_is_task_options_and_text(tokenizer):
  row = encode_uniex(tokenizer, {"task_type": "抽取", "text": TEXT, "choice": [["人", "在", "地"]]}, max_length=32)
  read = "".join(tokenizer.convert_ids_to_tokens(row["input_ids"]))
  assert read == "[CLS]抽取[SEP][unused1]人[unused1]地[SEP][unused2]在[SEP]甲乙丙丁[SEP]"
  assert row["label_positions"].tolist() == [0, 4, 6, 9]
  assert int(row["query_length"]) == 11 and row["text_positions"].tolist() == [11, 12, 13, 14]


def test_the_last_token_is_reached_where_asked_for(tokenizer):
  item = {"task_type": "抽取", "text": TEXT, "choice": ["人"]}
  query = 6
  for reached, last in ((False, query + 3), (True, query + 4)):
    row = encode_uniex(tokenizer, item, max_length=32, cover_last_token=reached)
    assert (row["text_positions"][0], row["text_positions"][-1]) == (query, last)
    span_positions = encoded(tokenizer, {"choice": ["人"]}, cover_last_token=reached)["span_positions"]
    np.testing.assert_array_equal(span_positions, row["text_positions"])
  assert tokenizer.convert_ids_to_tokens(row["input_ids"])[query + 4] == "丁"


def test_text_is_cut_and_spans_with_it(tokenizer):
  item = {"choice": ["人"], "entity_list": [entity("人", 0, 1), entity("人", 2, 3)]}
  row = encoded(tokenizer, item, max_length=11)
  assert tokenizer.convert_ids_to_tokens(row["input_ids"])[-4:] == ["甲", "乙", "丙", "[SEP]"]
  assert np.argwhere(row["span_labels"]).tolist() == [[7, 8, 0], [7, 8, 1]]
  assert np.argwhere(encoded(tokenizer, item)["span_labels"][..., 0]).tolist() == [[7, 8], [9, 10]]


def test_positions_end_at_511_in_longer_rows():
  assert position_ids(600, [4, 6, 9], (), 600)[-3:].tolist() == [511, 511, 511]
  assert position_ids(600, [4, 6, 9], (), 512)[-1] == 597


def test_types_are_asked_of_the_items_own_spans_alone(tokenizer):
  item = {
    "choice": [["人", "在", "地"], ["地", "始", "地"]],
    "entity_list": [entity("地", 1, 1)],
    "spo_list": [{"predicate": "在", "subject": entity("人", 0, 0), "object": entity("地", 2, 3)}],
  }
  row = encoded(tokenizer, item, gold_spans_only=True)
  query = int(row["query_length"])
  assert (row["span_positions"] - query).tolist() == [0, 1, 2, 3, 4]
  is_open = row["span_labels_mask"] == 0
  assert np.argwhere(is_open[..., 0]).min() == query and is_open[..., 0].sum() == 6 * 6
  spans = {(1, 1), (2, 2), (3, 4)}
  for channel in (1, 2):
    assert {tuple(cell - query) for cell in np.argwhere(is_open[..., channel])} == spans
  pairs = {(a[end], b[end]) for a in spans for b in spans if a != b for end in (0, 1)}
  for channel in (3, 4):
    assert {tuple(cell - query) for cell in np.argwhere(is_open[..., channel])} == pairs
  relation = np.argwhere(row["span_labels"][..., 3]) - query
  assert relation.tolist() == [[1, 3], [1, 4]]


@pytest.mark.parametrize(
  "item,message",
  [
    ({"choice": "人"}, "choice '人' is neither types"),
    ({"choice": [1]}, r"choice \[1\] is neither types"),
    ({"choice": []}, r"choice \[\] is neither types"),
    ({"choice": ["人", ["人", "在", "地"]]}, "is neither types"),
    ({"choice": ["人"], "entity_list": [entity("地", 0, 1)]}, "'地' is not in the item's choice, which has '人'"),
    ({"choice": ["人"], "entity_list": [entity("人", 2, 4)]}, r"a '人' has entity_index \[2, 4\], which is no"),
    ({"choice": ["人"], "entity_list": [entity("人", 1, 0)]}, r"a '人' has entity_index \[1, 0\], which is no"),
    ({"choice": ["人"], "entity_list": [{"entity_type": "人"}]}, "an entity has no 'entity_index'"),
    ({"choice": ["人"], "spo_list": [{"predicate": "在"}]}, "'在' is not in the item's choice, which has no such"),
    ({"choice": ["人"], "text": "甲 乙", "entity_list": [entity("人", 1, 1)]}, "where the text has no token"),
  ],
)
def test_what_cannot_be_encoded_is_named(tokenizer, item, message):
  with pytest.raises(UserError, match=message) as error:
    encoded(tokenizer, item)
  assert "\n" not in str(error.value)


def test_other_mistakes_are_named(tokenizer, tmp_path):
  with pytest.raises(UserError, match="the item has no 'choice', only 'text'"):
    encode_uniex(tokenizer, {"text": TEXT}, max_length=32)
  with pytest.raises(UserError, match="max_length 8 leaves no room for text: task and choice of 抽取 take 7 tokens"):
    encoded(tokenizer, {"choice": ["人"]}, max_length=8)
  plain = bert_tokenizer_from_characters("抽取人甲乙丙丁", tmp_path)
  with pytest.raises(UserError, match=r"the tokenizer does not know \[unused1\]"):
    encoded(plain, {"choice": ["人"]})
