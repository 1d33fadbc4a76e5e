"""Ubert's rows, labels and answers: what the original made of five items, and by hand where it says nothing."""

import copy
import json

import numpy as np
import pytest
from extraction_goldens import GOLDENS, bert_base_chinese, dense, needs_goldens

from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.encodings.ubert import decode_ubert, encode_ubert, encode_ubert_labels
from fsb_jax.errors import UserError

ITEM = {
  "task_type": "抽", "subtask_type": "识", "text": "甲乙丙丁",
  "choices": [
    {"entity_type": "无", "entity_list": []},
    {"entity_type": "人名", "entity_list": [{"entity_name": "乙丙", "entity_idx": [[1, 2]]}]},
  ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters("抽识无人名甲乙丙丁", tmp_path_factory.mktemp("characters"))


@needs_goldens
def test_rows_and_labels_are_the_originals(tmp_path):
  tokenizer = bert_base_chinese(tmp_path)
  golden = json.loads((GOLDENS / "ubert_encoding" / "encoding.json").read_text("utf-8"))
  size = dict(max_length=golden["max_length"], num_labels=golden["num_labels"])
  for index, (item, expected) in enumerate(zip(golden["items"], golden["encoded"], strict=True)):
    before = copy.deepcopy(item)
    # The original shuffles with numpy's global generator.
    ours = encode_ubert_labels(tokenizer, item, **size, random=np.random.RandomState(index))
    assert item == before
    for name in ("input_ids", "token_type_ids", "attention_mask"):
      np.testing.assert_array_equal(ours[name], expected[name], err_msg=f"{index} {name}")
    np.testing.assert_array_equal(ours["span_labels"], dense(expected["span_labels"]))
    mask = ours["span_labels_mask"]
    assert [int((rows == 0).sum()) for rows in mask] == expected["mask_zero_count"]
    assert np.argwhere(mask == 10000).tolist() == expected["mask_plus10000"]
    first = [np.argwhere(rows == 0)[0].tolist() if (rows == 0).any() else None for rows in mask]
    assert first == expected["mask_first_zero"]
    assert set(np.unique(mask)) <= {-10000, 0, 10000}


def test_choices_with_an_answer_come_first_and_missing_ones_are_zeros(tokenizer):
  ours = encode_ubert_labels(tokenizer, ITEM, max_length=16, num_labels=3, random=np.random.default_rng(0))
  rows = [tokenizer.convert_ids_to_tokens(ids[ids != tokenizer.pad_token_id]) for ids in ours["input_ids"]]
  assert "".join(rows[0]) == "[CLS]抽[SEP]识[SEP]人名[SEP]甲乙丙丁[SEP]"
  assert "".join(rows[1]) == "[CLS]抽[SEP]识[SEP]无[SEP]甲乙丙丁[SEP]"
  assert not ours["attention_mask"][2].any() and not ours["input_ids"][2].any()
  # [CLS] and the six tokens of the question, then its [SEP].
  assert np.argwhere(ours["span_labels"]).tolist() == [[0, 9, 10]]
  assert (ours["span_labels_mask"][0] == 0).sum() == (16 - 8) ** 2 and (ours["span_labels_mask"][2] == -10000).all()
  few = encode_ubert_labels(tokenizer, ITEM, max_length=16, num_labels=1, random=np.random.default_rng(0))
  np.testing.assert_array_equal(few["input_ids"], ours["input_ids"][:1])


def test_an_item_without_answers_has_one_beyond_its_labels(tokenizer):
  item = {**ITEM, "choices": ITEM["choices"][:1]}
  ours = encode_ubert_labels(tokenizer, item, max_length=16, num_labels=2, random=np.random.default_rng(0))
  for cells in (ours["span_labels"] == 1, ours["span_labels_mask"] == 10000):
    assert np.argwhere(cells).tolist() == [[1, 15, 15]]


@pytest.mark.parametrize(
  "max_length,rows",
  [
    (12, "[CLS]抽[SEP]识[SEP]无[SEP]甲乙丙丁[SEP]"),
    (11, "[CLS]抽[SEP]识[SEP][SEP]甲乙丙丁[SEP]"),
    (10, "[CLS]抽[SEP]识[SEP][SEP]甲乙丙[SEP]"),
    (9, "[CLS]抽[SEP]识[SEP]甲乙丙[SEP]"),
    (8, "[CLS]抽[SEP]识[SEP]甲乙[SEP]"),
  ],
)
def test_rows_are_cut_from_their_longer_part(tokenizer, max_length, rows):
  ids = encode_ubert(tokenizer, ITEM, max_length=max_length)["input_ids"][0]
  cut = "".join(tokenizer.convert_ids_to_tokens(ids[ids != tokenizer.pad_token_id]))
  assert cut == rows


def test_spans_that_are_cut_off_are_no_labels(tokenizer):
  for max_length, labels in ((11, 1), (10, 0)):
    ours = encode_ubert_labels(tokenizer, ITEM, max_length=max_length, num_labels=3, random=np.random.default_rng(0))
    assert (ours["span_labels"][:2] > 0).sum() == labels


@pytest.mark.parametrize(
  "choice,message",
  [
    ({"entity_type": "人名", "entity_list": [{"entity_idx": [[2, 4]]}]}, r"choice '人名' has entity_idx \[2, 4\]"),
    ({"entity_type": "人名", "entity_list": [{"entity_idx": [[2, 1]]}]}, r"choice '人名' has entity_idx \[2, 1\]"),
    ({"entity_type": "人名", "entity_list": [{"entity_idx": [[2]]}]}, r"choice '人名' has entity_idx \[2\]"),
    ({"label": 1}, "a choice has no 'entity_type', only 'label'; add it"),
  ],
)
def test_a_choice_that_cannot_be_encoded_is_named(tokenizer, choice, message):
  item = {**ITEM, "choices": [choice]}
  with pytest.raises(UserError, match=message) as error:
    encode_ubert_labels(tokenizer, item, max_length=16, num_labels=2, random=np.random.default_rng(0))
  assert "\n" not in str(error.value)


def test_other_mistakes_are_named(tokenizer):
  with pytest.raises(UserError, match="the item has no 'text', only 'choices'"):
    encode_ubert(tokenizer, {"choices": []}, max_length=16)
  with pytest.raises(UserError, match="max_length 3 leaves no room"):
    encode_ubert(tokenizer, ITEM, max_length=3)
  blank = {**ITEM, "text": "甲 乙", "choices": [{"entity_type": "无", "entity_list": [{"entity_idx": [[1, 1]]}]}]}
  with pytest.raises(UserError, match=r"choice '无' has entity_idx \[1, 1\], where the text has no token"):
    encode_ubert_labels(tokenizer, blank, max_length=16, num_labels=2, random=np.random.default_rng(0))


def scores(*cells):
  logits = np.full((1, 16, 16), -9.0)
  for start, end, score in cells:
    logits[0, start, end] = score
  return logits


def test_every_name_is_an_answer_once(tokenizer):
  item = {**ITEM, "text": "甲乙 丙甲乙 丙", "choices": [{"entity_type": "无"}]}
  # The text begins at 7: 甲 乙 丙 甲 乙 丙 [SEP].
  logits = scores((7, 8, 1.0), (10, 11, 2.0), (9, 9, 3.0), (12, 13, 4.0), (9, 8, 5.0), (3, 9, 5.0), (7, 14, 5.0))
  before = copy.deepcopy(item)
  answer = decode_ubert(tokenizer, item, logits, threshold=0.7)
  assert item == before
  names = {e["entity_name"]: e["score"] for e in answer["choices"][0]["entity_list"]}
  assert names == pytest.approx({"甲乙": 1 / (1 + np.exp(-1)), "丙": 1 / (1 + np.exp(-3)), "": 1 / (1 + np.exp(-4))})
  assert decode_ubert(tokenizer, item, logits, threshold=0.99)["choices"][0]["entity_list"] == []


def test_reading_gives_the_likeliest_span_alone(tokenizer):
  item = {**ITEM, "subtask_type": "抽取式阅读理解", "choices": [{"entity_type": "无"}]}
  first = len(tokenizer("抽[SEP]抽取式阅读理解[SEP]无")["input_ids"])
  logits = np.full((1, 32, 32), -9.0)
  logits[0, first + 1, first + 2], logits[0, first, first], logits[0, first + 2, first] = 2.0, 1.0, 5.0
  (answer,) = decode_ubert(tokenizer, item, logits)["choices"][0]["entity_list"]
  assert answer == {"entity_name": "乙丙", "score": pytest.approx(1 / (1 + np.exp(-2)))}


def test_a_classification_takes_its_likeliest_choice(tokenizer):
  item = {**ITEM, "task_type": "分类任务"}
  logits = np.stack([scores((0, 0, -3.0))[0], scores((0, 0, -1.0), (8, 8, 9.0))[0]])
  no, yes = decode_ubert(tokenizer, item, logits)["choices"]
  assert "label" not in no and (yes["label"], yes["score"]) == (1, pytest.approx(1 / (1 + np.e)))
  gold = [{**choice, "label": 1} for choice in item["choices"]]
  answered = decode_ubert(tokenizer, {**item, "choices": gold}, logits)["choices"]
  assert [choice["label"] for choice in answered] == [0, 1] and [choice["label"] for choice in gold] == [1, 1]
