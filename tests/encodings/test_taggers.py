"""What taggers are taught and what is read of their answers; tags against seqeval; long texts in windows."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from fsb_jax import encodings
from fsb_jax.encodings import TAGGERS, Entity

CHARACTERS = "今天李明去北京大学看张华和王小明"
KINDS = ("PER", "LOC", "a-b")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return encodings.bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


@given(st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in KINDS)]), max_size=9))
@settings(max_examples=500, deadline=None)
def test_tags_are_read_as_seqeval_reads_them(tags):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    expected = [Entity(label, first, last + 1) for label, first, last in get_entities(tags)]
  assert encodings.entities_of_chunks(tags) == expected


def test_an_inner_tag_of_bmes_goes_on():
  assert encodings.entities_of_chunks(["B-LOC", "M-LOC", "E-LOC", "S-PER"]) == [("LOC", 0, 3), ("PER", 3, 4)]


def said_of(tagger, targets):
  """What a tagger that has learned its targets says."""
  if "labels" in targets:
    return {"predictions": targets["labels"]}
  if "start_positions" in targets:
    return {"starts": targets["start_positions"], "ends": targets["end_positions"]}
  length = len(targets["span_labels"])
  first = np.arange(length)[:, None]
  last = np.minimum(first + np.arange(encodings.MAX_WIDTH), length - 1)
  pairs = targets["span_labels"][first, last]
  return {"pairs": pairs, "sureness": np.zeros(pairs.shape)}


@pytest.mark.parametrize("head", TAGGERS)
def test_what_is_taught_is_what_is_found(tokenizer, head):
  text, tagger = "今天 李明去北京 大学看张", TAGGERS[head]
  entities = [Entity("PER", 3, 5), Entity("LOC", 6, 11), Entity("a-b", 12, 13)]
  names = tagger.names(KINDS)
  for max_length, missed in ((None, 0), (9, 2), (14, 0)):
    (offsets,) = encodings.encode_characters(tokenizer, [text], max_length=max_length)["offsets"]
    targets = tagger.targets(entities, text, offsets, names)
    assert set(targets) == set(tagger.padding)
    found = tagger.entities(said_of(tagger, targets), offsets, names)
    assert [entity for entity in entities if entity in found] == entities[: 3 - missed]
    # What is cut in two is no entity, but its beginning may look like one of tags.
    assert len(found) == 3 - missed + (missed > 0 and "labels" in targets)


def test_of_the_tokens_of_a_character_the_first_speaks():
  offsets = np.array([(-1, -1), (0, 1), (0, 1), (1, 2), (-1, -1)], np.int32)
  names = TAGGERS["crf"].names(["PER"])
  labels = TAGGERS["crf"].targets([Entity("PER", 0, 2)], "李明", offsets, names)["labels"]
  assert [names[label] for label in labels] == ["O", "B-PER", "B-PER", "I-PER", "O"]
  assert TAGGERS["crf"].entities({"predictions": labels}, offsets, names) == [Entity("PER", 0, 2)]


def test_what_may_be_answered():
  allowed = {
    head: [name for name, may in zip(tagger.names(KINDS), tagger.label_mask(tagger.names(KINDS), KINDS[1:])) if may]
    for head, tagger in TAGGERS.items()
  }
  tags, pairs = ["O", "B-LOC", "I-LOC", "B-a-b", "I-a-b"], ["O", "LOC", "a-b"]
  assert allowed == {
    "token_classification": tags, "crf": tags, "span": ["[PAD]", "LOC", "a-b"], "span_hard": ["[PAD]", "LOC", "a-b"],
    "biaffine": pairs,
  }
  # Labels of models from elsewhere.
  assert TAGGERS["crf"].label_mask(["O", "S-PER", "[END]"]).tolist() == [True, True, False]


@pytest.mark.parametrize("max_length", [6, 11, 100])
def test_windows_hold_a_text_between_them(tokenizer, max_length):
  random = np.random.default_rng(0)
  texts = ["".join(random.choice(list(CHARACTERS + " "), length)) for length in (0, 1, 3, 40, 97)]
  windows = encodings.encode_character_windows(tokenizer, texts, max_length=max_length)
  assert max(map(len, windows["input_ids"])) <= max_length
  for number, text in enumerate(texts):
    rows = [row for row, example in enumerate(windows["example"]) if example == number]
    owns = [windows["own"][row] for row in rows]
    # Every character is told by one window, that sees it and what follows it.
    assert owns[0][0] == 0 and owns[-1][1] == len(text)
    assert all(one[1] == other[0] for one, other in zip(owns, owns[1:]))
    (whole,) = (encodings.encode_characters(tokenizer, [text], max_length=None)[name][0] for name in ("input_ids",))
    seen = {}
    for row, (start, stop) in zip(rows, owns):
      places = windows["offsets"][row][:, 0]
      shown = dict(zip(places.tolist(), windows["input_ids"][row].tolist()))
      seen |= {place: token for place, token in shown.items() if start <= place < stop}
    assert [seen[place] for place in sorted(seen)] == whole[1:-1].tolist()


def test_an_entity_at_a_boundary_is_told_once(tokenizer):
  text = "天" * 7 + "李明" + "天" * 9
  windows = encodings.encode_character_windows(tokenizer, [text], max_length=10)
  assert [own for own in windows["own"]] == [(0, 7), (7, 13), (13, 18)]
  seen = [
    [Entity("PER", max(7, low), min(9, high))]
    for low, high in ((offsets[offsets >= 0].min(), offsets.max()) for offsets in windows["offsets"])
    if low < 9 and high > 7
  ]
  assert seen == [[("PER", 7, 8)], [("PER", 7, 9)]]
  found = encodings.entities_of_windows([*seen, []], windows["example"], windows["own"], 1)
  assert found == [[Entity("PER", 7, 9)]]
  # The first to tell of a place is believed.
  found = [[Entity("PER", 5, 9)], [Entity("LOC", 8, 9), Entity("LOC", 9, 10)], []]
  assert encodings.entities_of_windows(found, [0, 0, 0], windows["own"], 1) == [
    [Entity("PER", 5, 9), Entity("LOC", 9, 10)]
  ]
