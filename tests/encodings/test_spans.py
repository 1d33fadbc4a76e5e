import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.encodings import bert_tokenizer_from_characters, load_tokenizer, spans
from fsb_jax.errors import UserError

CHARACTERS = "今天气真好不知道"
DATA = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


TEXT = st.text(alphabet=CHARACTERS + "龙 ", max_size=14)


@settings(max_examples=60, deadline=None)
@given(
  rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
  room=st.integers(1, 6),
  stride=st.integers(1, 8),
  max_question=st.integers(0, 5),
)
def test_windows_hold_the_whole_passage(tokenizer, rows, room, stride, max_question):
  questions, passages = zip(*rows)
  max_length = 3 + max_question + room
  windows = spans.encode_windows(
    tokenizer, questions, passages, max_length=max_length, stride=stride, max_question=max_question
  )
  assert windows["example"] == sorted(windows["example"]) and set(windows["example"]) == set(range(len(rows)))
  for example, (question, passage) in enumerate(rows):
    own = [i for i, number in enumerate(windows["example"]) if number == example]
    asked = tokenizer(question, add_special_tokens=False)["input_ids"][:max_question]
    whole = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)
    begins = []
    for i in own:
      ids, offsets = windows["input_ids"][i], windows["offsets"][i]
      held = offsets[:, 0] >= 0
      prefix = [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id]
      assert ids.tolist() == [*prefix, *ids[held], tokenizer.sep_token_id] and len(ids) <= max_length
      assert windows["token_type_ids"][i].tolist() == [0] * len(prefix) + [1] * (len(ids) - len(prefix))
      assert all(array.dtype == np.int32 for array in (ids, offsets, windows["token_type_ids"][i]))
      start = whole["offset_mapping"].index(tuple(offsets[held][0])) if held.any() else 0
      assert ids[held].tolist() == whole["input_ids"][start : start + held.sum()]
      assert offsets[held].tolist() == [list(x) for x in whole["offset_mapping"][start : start + held.sum()]]
      begins.append((start, start + int(held.sum())))
    assert begins[0][0] == 0 and begins[-1][1] == len(whole["input_ids"])
    for (start, end), (next_start, _) in zip(begins, begins[1:]):
      assert next_start == start + min(stride, end - start) and end - start == max_length - 3 - len(asked)
    # The last one is needed.
    assert all(end < len(whole["input_ids"]) for _, end in begins[:-1])


@st.composite
def scored_windows(draw):
  """Windows over a passage of one-character tokens, some of which share a character, with few different scores."""
  places = np.sort(np.array(draw(st.lists(st.integers(0, 12), min_size=1, max_size=9))))
  offsets, starts, ends = [], [], []
  for _ in range(draw(st.integers(1, 3))):
    begin = draw(st.integers(0, len(places) - 1))
    held = places[begin : begin + draw(st.integers(1, 6))]
    outside = np.full((draw(st.integers(1, 3)), 2), -1)
    offsets.append(np.concatenate([outside, np.stack([held, held + 1], -1), np.full((1, 2), -1)]))
    size = len(offsets[-1]) + draw(st.integers(0, 2))
    for logits in (starts, ends):
      logits.append(np.array(draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)), np.float32) / 4)
  return starts, ends, offsets


@settings(max_examples=200, deadline=None)
@given(windows=scored_windows(), count=st.integers(1, 8), max_tokens=st.integers(1, 6))
def test_best_answers_are_those_of_a_search_over_all_pairs(windows, count, max_tokens):
  passage = "零一二三四五六七八九十百千"
  every = {}
  for starts, ends, offsets in zip(*windows):
    for first in range(len(offsets)):
      for last in range(first, min(first + max_tokens, len(offsets))):
        if offsets[first, 0] >= 0 and offsets[last, 0] >= 0:
          span, score = (int(offsets[first, 0]), int(offsets[last, 1])), float(starts[first]) + float(ends[last])
          every[span] = max(score, every.get(span, -np.inf))
  best = sorted(every.items(), key=lambda item: (-item[1], item[0]))[:count]
  expected = [spans.Answer(passage[start:end], start, end, score) for (start, end), score in best]
  assert spans.best_answers(*windows, passage, count=count, max_tokens=max_tokens) == expected
  starts, ends, _ = windows
  assert spans.no_answer_score(starts, ends) == min(float(s[0]) + float(e[0]) for s, e in zip(starts, ends))


def test_a_passage_without_tokens_has_no_answer(tokenizer):
  windows = spans.encode_windows(tokenizer, ["今"], ["  "], max_length=80, stride=8)
  assert windows["example"] == [0] and (windows["offsets"][0] == -1).all()
  zeros = [np.zeros(len(windows["input_ids"][0]))]
  assert spans.best_answers(zeros, zeros, windows["offsets"], "  ") == []
  assert spans.answer_positions(windows["offsets"][0], 0, 1) == (spans.NO_ANSWER, spans.NO_ANSWER)


def test_an_answer_that_a_window_cuts_is_not_in_it(tokenizer):
  windows = spans.encode_windows(
    tokenizer, ["今"], ["天气真好不知道"], max_length=9, stride=2, max_question=1
  )
  # Windows of 5 and room for all: 天气真好不, 真好不知道.
  found = [spans.answer_positions(offsets, 3, 6) for offsets in windows["offsets"]]
  assert found == [(0, 0), (4, 6)]
  assert [spans.answer_positions(offsets, 2, 5) for offsets in windows["offsets"]] == [(5, 7), (3, 5)]


def test_mistakes_are_named(tokenizer):
  with pytest.raises(UserError, match="1 questions and 2 passages"):
    spans.encode_windows(tokenizer, ["今"], ["天", "气"], max_length=100, stride=1)
  with pytest.raises(UserError, match="stride must be at least 1 token, not 0"):
    spans.encode_windows(tokenizer, ["今"], ["天"], max_length=100, stride=0)
  with pytest.raises(UserError, match="max_length 67 leaves no room for the passage beside 3 special tokens .* of 64"):
    spans.encode_windows(tokenizer, ["今"], ["天"], max_length=67, stride=1)


ARCHIVE, VOCABULARY = DATA / "cmrc2018" / "cmrc2018_public.zip", DATA / "tokenizers" / "bert_base_chinese_vocab.txt"


@pytest.mark.skipif(not (ARCHIVE.is_file() and VOCABULARY.is_file()), reason=f"no CMRC2018 in {DATA}")
@pytest.mark.parametrize(
  "every,max_length,stride",
  [(15, 160, 48), pytest.param(1, 384, 128, marks=pytest.mark.slow)],
  ids=["small windows", "all of it"],
)
def test_gold_answers_of_cmrc_come_back_through_the_windows(tmp_path, every, max_length, stride):
  (tmp_path / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
  tokenizer = load_tokenizer(tmp_path)
  with zipfile.ZipFile(ARCHIVE) as archive:
    articles = [article for name in ("trial.json", "dev.json") for article in json.loads(archive.read(name))["data"]]
  rows = [
    (question["question"], paragraph["context"], answer["text"], answer["answer_start"])
    for article in articles
    for paragraph in article["paragraphs"]
    for question in paragraph["qas"]
    for answer in question["answers"][:1]
  ][::every]
  # A few rows of the data set give a wrong place.
  usable = [row for row in rows if row[1][row[3] : row[3] + len(row[2])] == row[2]]
  assert len(usable) >= 0.99 * len(rows) > 250
  questions, passages, texts, starts = zip(*usable)
  windows = spans.encode_windows(tokenizer, questions, passages, max_length=max_length, stride=stride)
  offsets_of = [[] for _ in usable]
  for example, offsets in zip(windows["example"], windows["offsets"]):
    offsets_of[example].append(offsets)
  recovered = in_several = 0
  for own, passage, text, start in zip(offsets_of, passages, texts, starts):
    end = start + len(text)
    gold = [spans.answer_positions(offsets, start, end) for offsets in own]
    holding = [positions for positions in gold if positions != (spans.NO_ANSWER, spans.NO_ANSWER)]
    if not holding:
      # Longer than what two windows share, at least with the longest question.
      assert len(tokenizer.tokenize(text)) > max_length - 3 - 64 - stride
      continue
    if not any((offsets[:, 0] == start).any() and (offsets[:, 1] == end).any() for offsets in own):
      continue  # it begins or ends inside a token
    # Scores that say the labels, in windows of which all others say that they have no answer.
    logits = [np.eye(len(offsets))[list(positions)] for offsets, positions in zip(own, gold)]
    found = spans.best_answers(*zip(*logits), own, passage, count=1, max_tokens=len(text))
    assert found == [spans.Answer(text, start, end, 2.0)]
    recovered += 1
    in_several += len(holding) > 1
  assert recovered > 0.97 * len(usable) and in_several > 0.25 * len(usable)


def test_ratings_are_shared_out_among_the_best():
  offsets = [np.array([[-1, -1], *[[i, i + 1] for i in range(5)], [-1, -1]])]
  random = np.random.default_rng(0)
  starts, ends = ([random.normal(size=9).astype(np.float32)] for _ in range(2))  # two of padding
  best = spans.best_answers(starts, ends, offsets, "今天气真好", count=20, max_tokens=2)
  assert len(best) == 9
  scores = np.exp([answer.score for answer in best])
  found = spans.rated_answers(starts, ends, offsets, "今天气真好", max_tokens=2)
  assert [answer[:3] for answer in found] == [answer[:3] for answer in best]
  np.testing.assert_allclose([answer.score for answer in found], scores / scores.sum(), rtol=1e-12)
  # That there is none stands among them, as likely as the window's first token says.
  none = float(starts[0][0]) + float(ends[0][0])
  found = spans.rated_answers(starts, ends, offsets, "今天气真好", max_tokens=2, may_have_none=True)
  place = sum(answer.score >= none for answer in best)
  assert found[place][:3] == ("", 0, 0) and len(found) == 10
  assert found[place].score == pytest.approx(np.exp(none) / (scores.sum() + np.exp(none)))
  # Where there is no span at all it is the only one.
  assert spans.rated_answers(starts, ends, [np.full((7, 2), -1)], "  ") == [("", 0, 0, 1.0)]
