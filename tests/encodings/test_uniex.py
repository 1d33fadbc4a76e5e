"""UniEX's rows and labels: what the original made of five items, and by hand where it says nothing."""

import copy
import json

import numpy as np
import pytest
from extraction_goldens import GOLDENS, bert_base_chinese, dense, needs_goldens

from fsb_jax.encodings import load_tokenizer
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

THEIR_NAMES = {"label_positions": "label_token_idx", "span_positions": "text_token_idx", "text_positions": "text_token_idx"}


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
