"""Scores of extraction: the original's figures, and small cases by hand."""

import json

import numpy as np
import pytest
from extraction_goldens import GOLDENS, needs_goldens

from fsb_jax.encodings import cell_scores, entity_scores, event_scores, relation_scores


@needs_goldens
def test_scores_are_the_originals():
  golden = json.loads((GOLDENS / "ie_functions_metrics" / "data.json").read_text("utf-8"))["metrics"]
  true, predicted = golden["true"], golden["pred"]
  assert entity_scores(true, predicted) == pytest.approx(golden["entity_f1_recall_precision"], rel=1e-12)
  assert relation_scores(true, predicted) == pytest.approx(golden["rel_strict"], rel=1e-12)
  assert relation_scores(true, predicted, types=False) == pytest.approx(golden["rel_loose"], rel=1e-12)
  triggers, arguments = event_scores(true, predicted)
  assert [triggers.f1 + arguments.f1, triggers.f1, arguments.f1] == pytest.approx(
    golden["event_f1_sum_trigger_args"], rel=1e-12
  )
  # In float32, over denominators a little larger than they are.
  case = golden["ubert_span_metric"]
  ours = cell_scores(np.array(case["logits"]), np.array(case["labels"]))
  assert ours == pytest.approx(case["f1_recall_precise"], abs=1e-5)
  assert ours == pytest.approx(golden["uniex_metric"]["f1_recall_precise_corr_true_pred"][:3], abs=1e-5)


def entity(text, kind="人", place=(0, 1)):
  return {"entity_text": text, "entity_type": kind, "entity_index": [list(place)]}


def test_an_entity_needs_its_type_and_place_and_counts_once():
  true = [{"entity_list": [entity("甲"), entity("乙")]}, {}]
  found = [{"entity_list": [entity("甲"), entity("甲"), entity("乙", "地"), entity("乙", place=(2, 3))]}, {}]
  assert entity_scores(true, found) == pytest.approx((2 / 5, 1 / 2, 1 / 3))
  assert entity_scores(true, true) == (1, 1, 1) and entity_scores([{}], [{}]) == (0, 0, 0) == entity_scores([], [])


def test_a_relation_needs_types_where_asked_for():
  def item(kind):
    return [{"spo_list": [{"predicate": "在", "subject": entity("甲"), "object": entity("乙", kind)}]}]

  assert relation_scores(item("人"), item("地")).f1 == 0
  assert relation_scores(item("人"), item("地"), types=False).f1 == 1


def test_triggers_and_arguments_are_counted_apart():
  def item(kind, argument):
    return [{"event_list": [{"event_type": kind, "args": [entity("聚", "触发词"), entity(argument, "方")]}]}]

  triggers, arguments = event_scores(item("聚会", "甲"), item("聚会", "乙"))
  assert (triggers.f1, arguments.f1) == (1, 0)
  assert event_scores(item("聚会", "甲"), item("散会", "甲"))[0].f1 == 0
