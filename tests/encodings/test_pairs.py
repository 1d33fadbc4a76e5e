import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from fsb_jax.encodings import bert_tokenizer_from_characters, cut_pairs, encode_bare, encode_pairs, pairs
from fsb_jax.errors import UserError

CHARACTERS = "今天气真好不知道"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


TEXT = st.text(alphabet=CHARACTERS + "龙 ", max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), max_length=st.integers(4, 20), pair=st.booleans())
def test_equals_transformers_longest_first(tokenizer, rows, max_length, pair):
  texts, second_texts = [row[0] for row in rows], [row[1] for row in rows] if pair else None
  ours = encode_pairs(tokenizer, texts, second_texts, max_length=max_length)
  theirs = tokenizer(texts, second_texts, truncation="longest_first", max_length=max_length)
  for name in ("input_ids", "token_type_ids"):
    assert [row.tolist() for row in ours[name]] == theirs[name]
    assert all(row.dtype == np.int32 for row in ours[name])
  assert max(len(row) for row in ours["input_ids"]) <= max_length


# The frames of BERT, RoBERTa, XLNet, T5 and GPT-2.
FRAMES = (
  ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
  ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]"),
  ("$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"),
  ("$A [SEP]", "$A [SEP] $B [SEP]"),
  ("$A", "$A $B"),
)


@settings(max_examples=80, deadline=None)
@given(
  rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5),
  max_length=st.one_of(st.none(), st.integers(5, 20)),
  pair=st.booleans(),
  frame=st.sampled_from(FRAMES),
  side=st.sampled_from(["left", "right"]),
)
def test_texts_cut_later_make_the_same_rows(tokenizer, rows, max_length, pair, frame, side):
  other = copy.deepcopy(tokenizer)
  other.truncation_side = side
  other.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single=frame[0], pair=frame[1], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  texts = [[row[number] for row in rows] for number in range(1 + pair)]
  made = cut_pairs(other, *(encode_bare(other, each) for each in texts), max_length=max_length)
  expected = encode_pairs(other, *texts, max_length=max_length)
  for name in ("input_ids", "token_type_ids"):
    assert [row.tolist() for row in made[name]] == [row.tolist() for row in expected[name]]
    assert all(row.dtype == np.int32 for row in made[name])


def test_cutting_later_needs_room_too(tokenizer):
  with pytest.raises(UserError, match="max_length 3 leaves no room for text beside 3 special tokens"):
    cut_pairs(tokenizer, *(encode_bare(tokenizer, ["今"]) for _ in range(2)), max_length=3)


def test_longest_first_cuts_the_longer_text(tokenizer):
  encoded = encode_pairs(tokenizer, ["今天气真好"], ["不知"], max_length=8)
  assert tokenizer.decode(encoded["input_ids"][0]) == "[CLS] 今 天 气 [SEP] 不 知 [SEP]"
  assert encoded["token_type_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_batches_beyond_one_call_keep_their_order(tokenizer, monkeypatch):
  monkeypatch.setattr(pairs, "_ROWS_PER_CALL", 3)
  texts = [CHARACTERS[: 1 + index] for index in range(8)]
  encoded = encode_pairs(tokenizer, texts, max_length=None)
  assert [len(row) for row in encoded["input_ids"]] == list(range(3, 11))


def test_leaves_the_tokenizer_as_it_was(tokenizer):
  tokenizer.backend_tokenizer.enable_truncation(5, strategy="only_first")
  tokenizer.backend_tokenizer.enable_padding(length=6, pad_id=0, pad_token="[PAD]")
  before = tokenizer.backend_tokenizer.to_str()
  try:
    assert len(encode_pairs(tokenizer, [CHARACTERS], max_length=None)["input_ids"][0]) == 10
    assert tokenizer.backend_tokenizer.to_str() == before
  finally:
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def test_mistakes_are_named(tokenizer):
  with pytest.raises(UserError, match="2 texts and 1 second texts"):
    encode_pairs(tokenizer, ["今", "天"], ["好"], max_length=8)
  with pytest.raises(UserError, match="max_length 3 leaves no room"):
    encode_pairs(tokenizer, ["今"], ["好"], max_length=3)
  assert len(encode_pairs(tokenizer, ["今"], max_length=3)["input_ids"][0]) == 3
