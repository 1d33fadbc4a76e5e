"""UniEX's decoding by hand; what the original made of a model's scores is in tests/convert_torch/test_extraction.py."""

import copy

import numpy as np
import pytest

from fsb_jax.encodings import (
  bert_tokenizer_from_characters,
  choose_spans,
  decode_uniex,
  end_tokens,
  given_spans,
)

TEXT = "甲乙丙丁戊己庚辛"
ITEM = {"task_type": "抽取", "text": TEXT}
RELATIONS = [["人", "在", "地"], ["人", "离", "地"], ["地", "邻", "地"]]
EVENTS = [{"聚": ["触发词", "方"], "散": ["触发词", "时"]}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(TEXT, tmp_path_factory.mktemp("characters"))


def logits(options, *cells):
  """All types improbable, but for (first, last, option, score)."""
  scores = np.full((len(TEXT), len(TEXT), options), -5.0)
  for first, last, option, score in cells:
    scores[first + 1, last + 1, option] = score
  return scores


def logistic(x):
  return pytest.approx(1 / (1 + np.exp(-x)))


def test_spans_are_chosen_by_the_index():
  index = np.full((5, 5), -1.0)
  index[2, 4] = index[4, 1] = index[0, 3] = index[3, 0] = 1.0
  spans = choose_spans(index)
  assert spans == [(1, 3), (3, 0)] and end_tokens(spans) == [0, 1, 3]
  assert choose_spans(index, threshold=0.8) == [] == end_tokens([])


def test_entities_above_the_threshold(tokenizer):
  item = {**ITEM, "choice": ["人", "地"]}
  before = copy.deepcopy(item)
  scores = logits(2, (1, 2, 0, 1.0), (1, 2, 1, 2.0), (3, 3, 0, 1.0), (5, 4, 0, 3.0), (6, 6, 0, -0.1))
  answer = decode_uniex(tokenizer, item, scores)
  assert item == before
  assert answer["entity_list"] == [
    {"entity_text": "乙丙", "entity_type": "地", "score": logistic(2), "entity_index": [[1, 2]]},
    {"entity_text": "丁", "entity_type": "人", "score": logistic(1), "entity_index": [[3, 3]]},
  ]
  (entity,) = decode_uniex(tokenizer, item, scores, entity_threshold=0.8)["entity_list"]
  assert entity["entity_text"] == "乙丙"


def test_chosen_spans_have_a_type_whatever_its_probability(tokenizer):
  item = {**ITEM, "choice": ["人", "地"]}
  scores = logits(2, (1, 2, 0, -4.0), (5, 4, 1, -3.0))
  spans = [(1, 2), (5, 4)]
  tokens = end_tokens(spans)
  rows = np.array(tokens) + 1
  answer = decode_uniex(tokenizer, item, scores[np.ix_(rows, rows)], tokens=tokens, spans=spans)
  assert answer["entity_list"] == [
    {"entity_text": "乙丙", "entity_type": "人", "type_score": logistic(-4), "entity_index": [[1, 2]]},
    # As in the original: a span that ends before it begins has no text.
    {"entity_text": "", "entity_type": "地", "type_score": logistic(-3), "entity_index": [[5, 4]]},
  ]


def test_relations_take_the_better_of_both_ends(tokenizer):
  item = {**ITEM, "choice": RELATIONS}
  # Options: 人 地 在 离 邻; 甲乙 is a 人, 丙 and 丁戊 are 地.
  found = ((0, 1, 0, 3.0), (2, 2, 1, 3.0), (3, 4, 1, 3.0))
  ends = ((0, 2, 2, 1.0), (1, 2, 3, 2.0), (1, 2, 4, 9.0), (3, 2, 4, -1.0), (0, 3, 4, 9.0), (2, 2, 4, 9.0))
  scores = logits(5, *found, *ends)
  answer = decode_uniex(tokenizer, item, scores)
  (relation,) = answer["spo_list"]
  assert (relation["predicate"], relation["score"]) == ("离", logistic(2))
  assert (relation["subject"]["entity_text"], relation["object"]["entity_text"]) == ("甲乙", "丙")
  assert answer["entity_list"] == [relation["subject"], relation["object"]]
  assert relation["subject"]["score"] == logistic(3)
  low = decode_uniex(tokenizer, item, scores, relation_threshold=0.2)["spo_list"]
  assert [(r["subject"]["entity_text"], r["predicate"], r["object"]["entity_text"]) for r in low] == [
    ("甲乙", "离", "丙"), ("丁戊", "邻", "丙")
  ]  # fmt: skip


def test_too_many_entities_have_no_relations(tokenizer):
  item = {**ITEM, "choice": RELATIONS}
  pair = ((0, 0, 0, 3.0), (1, 1, 1, 3.0), (0, 1, 2, 2.0))
  for more, relations in ((2, 1), (3, 0)):
    others = [(i, i, 0, 3.0) for i in range(2, 2 + more)]
    assert len(decode_uniex(tokenizer, item, logits(5, *pair, *others))["spo_list"]) == relations


def test_arguments_go_to_the_trigger_they_are_tied_to(tokenizer):
  item = {**ITEM, "text": TEXT * 3, "choice": EVENTS}
  # Options: 触发词 方 时 聚 散 触发词与要素. 聚 has two triggers, 3 is tied to the second; 5 and 7 are of 散, which has
  # none, so that it does not matter to which they are tied.
  parts = [(0, 0, 0, 3), (1, 1, 0, 3), (3, 3, 1, 3), (5, 5, 2, 4), (7, 7, 2, 4)]
  scores = np.full((20, 20, 6), -5.0)
  for first, last, role, event in parts:
    scores[first + 1, last + 1, [role, event]] = 2.0, 1.0
  scores[1, 4, -1], scores[2, 4, -1], scores[1, 8, -1], scores[2, 6, -1] = 0.5, 0.7, 0.9, 0.9
  events = decode_uniex(tokenizer, item, scores)["event_list"]
  assert [(e["event_type"], [(a["entity_type"], a["entity_index"]) for a in e["args"]]) for e in events] == [
    ("聚", [("触发词", [[0, 0]])]),
    ("聚", [("触发词", [[1, 1]]), ("方", [[3, 3]])]),
    ("散", [("时", [[5, 5]]), ("时", [[7, 7]])]),
  ]
  assert events[0]["args"][0]["entity_score"] == logistic(2)
  mean = (1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-1))) / 2
  assert decode_uniex(tokenizer, item, scores, event_threshold=mean + 1e-6)["event_list"] == []
  # Chosen spans are parts whatever their probability, but not where they end before they begin.
  chosen = [(first, last) for first, last, _, _ in parts]
  assert decode_uniex(tokenizer, item, scores, spans=[*chosen, (9, 8)], event_threshold=1.0)["event_list"] == events
  # Seven parts are more than a quarter of 24 tokens.
  scores[10, 10, [1, 3]] = 2.0
  assert decode_uniex(tokenizer, item, scores)["event_list"]
  scores[12, 12, [1, 3]] = 2.0
  assert decode_uniex(tokenizer, item, scores)["event_list"] == []


def test_a_classification_takes_the_likeliest_type_of_its_place_holder(tokenizer):
  item = {**ITEM, "task_type": "分类任务", "choice": ["人", "地"]}
  assert given_spans(tokenizer, item) == [(0, 1)]
  answer = decode_uniex(tokenizer, item, logits(2, (0, 1, 1, -2.0), (3, 3, 0, 9.0)))
  assert [(e["entity_type"], e["type_score"]) for e in answer["entity_list"]] == [("地", logistic(-2))]
  own = {**item, "entity_list": [{"entity_index": [[2, 3]]}]}
  assert given_spans(tokenizer, own) == [(2, 3)]
  assert decode_uniex(tokenizer, own, logits(2, (2, 3, 0, -2.0)))["entity_list"][0]["entity_type"] == "人"
