import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.errors import UserError
from fsb_jax.tasks import accuracy, predicted_labels
from fsb_jax.tasks.metrics import confusion_matrix, entity_f1, in_order, macro_f1, majority_baseline, tag_f1

LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)
TAGS = ["O", "B-人", "I-人", "E-人", "S-人", "B-地", "I-地", "E-地"]
SENTENCES = st.lists(
  st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8), min_size=1, max_size=6
)


def test_accuracy():
  assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == {"accuracy": 0.75}
  for metric in (accuracy, macro_f1):
    with pytest.raises(UserError, match="published without"):
      metric([-1, 0], [0, 0])
    for targets, predictions in (([], []), ([1, 0], [1])):
      with pytest.raises(UserError, match="as many predictions as targets"):
        metric(targets, predictions)


def test_predictions_stay_inside_the_slice():
  logits = np.array([[9.0, 1.0, 3.0, 2.0, 8.0], [0.0, 4.0, 1.0, 5.0, 9.0]])
  assert predicted_labels(logits, (1, 4)).tolist() == [2, 3]
  assert predicted_labels(logits[0], (0, 5)) == 0


@settings(deadline=None, max_examples=60)
@given(LABELS)
def test_macro_f1_is_that_of_scikit_learn(pairs):
  targets, predictions = zip(*pairs)
  expected = sklearn.metrics.f1_score(targets, predictions, average="macro", zero_division=0)
  assert macro_f1(targets, predictions)["macro_f1"] == pytest.approx(expected, abs=1e-12)


def test_a_resample_without_a_label_leaves_it_out_of_macro_f1():
  measured = macro_f1([0, 0, 1], [0, 1, 2])
  # The first example alone has label 0 only, of which the F1 is 1.
  assert measured.by_example()["macro_f1"].tolist() == [1, 0, 0]


def test_confusions_and_the_majority():
  targets, predictions = [0, 2, 2, 1, 2], [0, 1, 2, 1, 1]
  found = confusion_matrix(targets, predictions, 4)
  assert np.array_equal(found, sklearn.metrics.confusion_matrix(targets, predictions, labels=range(4)))
  assert majority_baseline(targets) == 0.6


@settings(deadline=None, max_examples=60)
@given(SENTENCES)
def test_f1_of_tags_is_that_of_seqeval(sentences):
  targets, predictions = ([[pair[side] for pair in sentence] for sentence in sentences] for side in (0, 1))
  found = tag_f1(targets, predictions)
  for name in ("precision", "recall", "f1"):
    expected = getattr(seqeval.metrics, f"{name}_score")(targets, predictions, zero_division=0)
    assert found[name] == pytest.approx(expected, abs=1e-12), name


def test_bmes_tags():
  target = [["B-人", "M-人", "E-人", "O", "S-地"]]
  assert tag_f1(target, target)["f1"] == 1
  found = tag_f1(target, [["B-人", "I-人", "E-人", "O", "O"]])
  assert found == {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3)}
  assert tag_f1([["B-人", "M-人", "B-人"]], [["B-人", "I-人", "B-人"]])["f1"] == 1  # ill-formed ones too
  with pytest.raises(UserError, match="Example 0 has 5 tags but 1"):
    tag_f1(target, [["O"]])


def test_entities():
  targets = [{("人", 0, 2), ("地", 3, 5)}, set()]
  predictions = [[("人", 0, 2), ("人", 0, 2), ("人", 3, 5)], [("地", 0, 1)]]
  assert entity_f1(targets, predictions) == {"precision": 1 / 3, "recall": 0.5, "f1": 0.4}
  assert entity_f1([set()], [set()]) == {"precision": 0, "recall": 0, "f1": 0}
  with pytest.raises(UserError, match="got 1 for 2"):
    entity_f1(targets, predictions[:1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4), st.randoms())
def test_sharded_and_padded_batches_hold_every_example_once(num_examples, rows, hosts, random):
  """Batches of a shuffled split, filled up and cut over hosts, give what the whole split gives."""
  source = np.random.default_rng(num_examples)
  targets, logits = source.integers(3, size=num_examples), source.normal(size=(num_examples, 3))
  ids = list(range(num_examples))
  random.shuffle(ids)
  ids += [-1] * (-len(ids) % (rows * hosts))
  batches = [np.array(ids[i : i + rows]) for i in range(0, len(ids), rows)]
  random.shuffle(batches)
  results = []
  for each in batches:
    rows_of = each.clip(0)  # a filling row holds what example 0 holds
    results.append({"example_ids": each, "targets": targets[rows_of], "logits": logits[rows_of]})
  joined = in_order(results, num_examples)
  assert np.array_equal(joined["targets"], targets) and np.array_equal(joined["logits"], logits)
  full = next(each for each in results if (each["example_ids"] >= 0).any())
  empty = {name: array[:0] for name, array in full.items()}
  for wrong in ([*results, full], [empty, *(each for each in results if each is not full)]):
    with pytest.raises(ValueError, match="once"):
      in_order(wrong, num_examples)
