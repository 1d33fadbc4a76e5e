import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.encodings import tagging
from fsb_jax.encodings.tagging import Entity
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters
from fsb_jax.errors import UserError

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
ORIGINAL = json.loads((GOLDENS / "tagging_data" / "data.json").read_text("utf-8"))
TAGGED = ORIGINAL["collated"]
NAMES = ("[PAD]", "[START]", "[END]", "O", "PER", "LOC", "ORG")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  characters = "".join("".join(example["text_a"]) for example in ORIGINAL["examples"])
  return bert_tokenizer_from_characters(characters + "a", tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("scheme", ["bio", "bios", "bioes"])
def test_entities_of_tags_equal_the_originals(scheme):
  assert len(ORIGINAL["seqs"]) == len(ORIGINAL["entities"][scheme]) == 51
  dropped = 0
  for tags, expected in zip(ORIGINAL["seqs"], ORIGINAL["entities"][scheme]):
    # One that nothing of its label continues, at the end of the text, has no end in the original either: -1.
    ended = [Entity(label, start, last + 1) for label, start, last in expected if last >= 0]
    dropped += len(expected) - len(ended)
    assert tagging.entities_of_tags(tags, scheme) == ended
  assert dropped == (2 if scheme == "bioes" else 0)


@st.composite
def entities_of_a_text(draw, labels=("PER", "LOC", "a-b")):
  """(entities that do not overlap, the text's length)."""
  length = draw(st.integers(1, 12))
  cuts = sorted(draw(st.sets(st.integers(0, length), max_size=8)))
  pieces = [(start, end) for start, end in zip(cuts, cuts[1:]) if draw(st.booleans())]
  return [Entity(draw(st.sampled_from(labels)), *piece) for piece in pieces], length


@settings(max_examples=150, deadline=None)
@given(drawn=entities_of_a_text(), scheme=st.sampled_from(["bio", "bios", "bioes"]))
def test_tags_say_every_entity(drawn, scheme):
  entities, length = drawn
  tags = tagging.tags_of_entities(entities, length, scheme)
  assert len(tags) == length
  assert tagging.entities_of_tags(tags, scheme) == entities
  assert {tag[0] for tag in tags} <= {"bio": set("BIO"), "bios": set("BIOS"), "bioes": set("BIOES")}[scheme]


def padded_to(length, array):
  return np.pad(array, [(0, length - len(array))] * array.ndim).tolist()


def test_labels_and_batches_equal_the_originals(tokenizer):
  """All but the ids, which are of another vocabulary."""
  length, names = ORIGINAL["max_seq_length"], tuple(ORIGINAL["labels_linear_crf"])
  kinds = tuple(ORIGINAL["labels_span_biaffine"])
  assert kinds == NAMES
  bmes = ["M" + name[1:] if name.startswith("I-") else name for name in names[3:]]
  assert tagging.label_names(bmes) == names
  texts = ["".join(example["text_a"]) for example in ORIGINAL["examples"]]
  rows = tagging.encode_characters(tokenizer, texts, max_length=length)
  for i, example in enumerate(ORIGINAL["examples"]):
    offsets = rows["offsets"][i]
    tokens = len(offsets)
    assert tokens == TAGGED["linear"]["input_len"][i]
    characters = [texts[i][start:end] for start, end in offsets[1:-1]]
    assert tokenizer.convert_ids_to_tokens(rows["input_ids"][i].tolist()) == ["[CLS]", *characters, "[SEP]"]
    assert not rows["token_type_ids"][i].any()
    padded = functools.partial(padded_to, length)
    for tags in (example["labels"], ["M" + tag[1:] if tag[0] == "I" else tag for tag in example["labels"]]):
      labels = tagging.tag_labels(tags, offsets, names)
      for collator in ("linear", "crf"):
        assert padded(labels) == TAGGED[collator]["labels"][i]
    entities = [Entity(label, start, last + 1) for label, start, last in example["subject"]]
    assert tagging.entities_of_tags(example["labels"], "bioes") in (entities, [])
    inside = tagging.to_tokens(entities, offsets)
    starts, ends = tagging.span_labels(inside, tokens, kinds)
    assert padded(starts) == TAGGED["span"]["start_positions"][i]
    assert padded(ends) == TAGGED["span"]["end_positions"][i]
    labels, mask = tagging.pair_labels(inside, tokens, kinds)
    assert padded(labels) == TAGGED["biaffine"]["span_labels"][i]
    assert padded(mask) == TAGGED["biaffine"]["span_mask"][i]


@settings(max_examples=80, deadline=None)
@given(drawn=entities_of_a_text(labels=NAMES[4:]), cut=st.integers(3, 14), data=st.data())
def test_entities_come_back_from_every_encoding(tokenizer, drawn, cut, data):
  entities, length = drawn
  text = "".join(data.draw(st.lists(st.sampled_from("小明A 龙"), min_size=length, max_size=length)))
  offsets = tagging.encode_characters(tokenizer, [text], max_length=cut)["offsets"][0]
  kept = [i for i in range(length) if text[i] != " "][: cut - 2]
  assert offsets.tolist() == [[-1, -1], *([i, i + 1] for i in kept), [-1, -1]]
  inside = tagging.to_tokens(entities, offsets)
  # What is left of an entity without its spaces, where the row holds its end.
  expected = []
  for label, start, end in entities:
    own = [i for i in kept if start <= i < end]
    if own and kept[-1] + 1 >= end:
      expected.append(Entity(label, own[0], own[-1] + 1))
  assert tagging.to_characters(inside, offsets) == expected
  starts, ends = tagging.span_labels(inside, len(offsets), NAMES)
  assert tagging.entities_of_spans(starts, ends, NAMES) == inside
  labels, _ = tagging.pair_labels(inside, len(offsets), NAMES)
  scores = np.random.default_rng(0).normal(size=(len(offsets) + 3, len(offsets) + 3, len(NAMES)))
  rows, columns = np.indices(labels.shape)
  scores[rows, columns, labels] += 10
  for nested in (True, False):
    assert tagging.entities_of_pairs(scores, offsets, NAMES, max_width=12, nested=nested) == inside


def test_an_entity_that_the_cut_goes_through_is_in_no_span(tokenizer):
  offsets = tagging.encode_characters(tokenizer, ["小明在北京"], max_length=6)["offsets"][0]
  entities = [Entity("PER", 0, 2), Entity("LOC", 3, 5)]
  assert tagging.to_tokens(entities, offsets) == [Entity("PER", 1, 3)]
  # Tags stand where their characters do.
  names = tagging.label_names(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
  labels = tagging.tag_labels(tagging.tags_of_entities(entities, 5, "bio"), offsets, names)
  assert [names[i] for i in labels] == ["O", "B-PER", "I-PER", "O", "B-LOC", "O"]


def test_the_nearest_end_of_the_same_label_closes_a_span():
  names = ("[PAD]", "A", "B", "C")
  starts, ends = [0, 1, 2, 0, 1, 0, 3], [1, 0, 0, 2, 1, 0, 0]
  expected = [Entity("A", 1, 5), Entity("B", 2, 4), Entity("A", 4, 5)]
  assert tagging.entities_of_spans(starts, ends, names) == expected
  given_arrays, outputs = (dict(np.load(GOLDENS / "tagging_losses" / f"{kind}.npz")) for kind in ("inputs", "outputs"))
  # The original looks between the special tokens.
  starts, ends = (given_arrays[f"span_{side}_logits"][0, 1:-1].argmax(-1) for side in ("start", "end"))
  found = tagging.entities_of_spans(starts, ends, names)
  assert [[names.index(label), start, end - 1] for label, start, end in found] == outputs["bert_extract_item"].tolist()


def test_pairs_that_clash_give_way_to_the_surest():
  offsets = np.array([[-1, -1], *([i, i + 1] for i in range(5)), [-1, -1]])
  scores = np.zeros((7, 7, len(NAMES)))
  scores[..., NAMES.index("O")] = 5
  # What has no class: padding, however sure, and what begins at a special token.
  scores[..., :3] = 99

  def say(start, last, label, score):
    scores[start, last, NAMES.index(label)] = score

  say(1, 3, "PER", 7.0)
  say(2, 4, "LOC", 8.0)  # crosses it, and is surer
  say(2, 2, "ORG", 7.5)  # within
  say(5, 5, "PER", 6.0)
  say(0, 2, "PER", 50.0)
  say(4, 6, "PER", 50.0)
  say(4, 3, "PER", 50.0)  # ends before it begins
  assert tagging.entities_of_pairs(scores, offsets, NAMES) == [Entity("LOC", 2, 5), Entity("PER", 5, 6)]
  assert tagging.entities_of_pairs(scores, offsets, NAMES, nested=True) == [
    Entity("ORG", 2, 3), Entity("LOC", 2, 5), Entity("PER", 5, 6)
  ]
  assert tagging.entities_of_pairs(scores, offsets, NAMES, max_width=2) == [Entity("ORG", 2, 3), Entity("PER", 5, 6)]


def test_mistakes_are_named(tokenizer):
  with pytest.raises(UserError, match="unknown tagging scheme 'bmes'; known: bio, bios, bioes"):
    tagging.entities_of_tags(["O"], "bmes")
  with pytest.raises(UserError, match="the entity LOC from 1 to 3 overlaps another"):
    tagging.tags_of_entities([Entity("PER", 0, 2), Entity("LOC", 1, 3)], 4, "bio")
  with pytest.raises(UserError, match="the entity PER from 2 to 5 does not lie in a text of 4 characters"):
    tagging.tags_of_entities([Entity("PER", 2, 5)], 4, "bio")
  offsets = tagging.encode_characters(tokenizer, ["小明"], max_length=None)["offsets"][0]
  with pytest.raises(UserError, match="label 'B-GPE' is none of the task's labels .*O, PER"):
    tagging.tag_labels(["O", "B-GPE"], offsets, NAMES)
  with pytest.raises(UserError, match="has 2 characters or more but 1 tags"):
    tagging.tag_labels(["O"], offsets, NAMES)
  with pytest.raises(UserError, match="max_length 2 leaves no room for text beside 2 special tokens"):
    tagging.encode_characters(tokenizer, ["小"], max_length=2)
