import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics_bootstrap import intervals
from fsb_jax.tasks.metrics_text import bleu, reading_comprehension, rouge

TEXTS = st.text("天地人玄黄ab1 ，。-《A", max_size=12)
QUESTIONS = st.lists(st.tuples(st.lists(TEXTS, min_size=1, max_size=3), TEXTS), min_size=1, max_size=4)


def by_hand(answers, prediction):
  """The rules of CMRC 2018 in another way: pieces one by one, and every run of them compared."""

  def pieces(text):
    found, word = [], ""
    for sign in [*text.lower().strip(), None]:
      if sign is not None and sign in "，。-《":
        continue
      if sign is not None and not "一" <= sign <= "龥":
        word += sign
        continue
      found += word.split()
      word = ""
      if sign is not None:
        found.append(sign)
    return found

  def f1(answer):
    if not answer:  # there is none
      return float(not bare(prediction))
    true, said = pieces(answer), pieces(prediction)
    runs = {tuple(true[i:j]) for i in range(len(true)) for j in range(i + 1, len(true) + 1)}
    mine = [(i, j) for i in range(len(said)) for j in range(i + 1, len(said) + 1)]
    shared = max((j - i for i, j in mine if tuple(said[i:j]) in runs), default=0)
    if not shared:
      return 0
    precision, recall = shared / len(said), shared / len(true)
    return 2 * precision * recall / (precision + recall)

  def bare(text):
    return "".join(sign for sign in text.lower().strip() if sign not in "，。-《")

  return bare(prediction) in map(bare, answers), max(map(f1, answers))


@settings(deadline=None, max_examples=80)
@given(QUESTIONS)
def test_reading_comprehension_is_that_of_a_slow_implementation(questions):
  targets, predictions = zip(*questions)
  exact, f1 = zip(*[by_hand(*question) for question in questions])
  found = reading_comprehension(targets, predictions)
  assert found == pytest.approx({"exact_match": np.mean(exact), "f1": np.mean(f1)}, abs=1e-12)
  assert found.by_example()["f1"].tolist() == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
  "answers, prediction, exact, f1",
  [
    (["1963年"], "1963年", 1, 1),
    (["《西游记》"], "西游记。", 1, 1),  # punctuation does not count
    (["Port Royal"], "port royal", 1, 1),  # nor does case
    (["越南罗马天主教枢机"], "天主教枢机", 0, 2 * 5 / (9 + 5)),
    (["甲乙丙丁"], "甲丙乙丁", 0, 2 * 1 / 8),  # a run, not a subsequence, which would be 3
    (["范廷颂", "范廷颂枢机"], "枢机", 0, 2 * 2 / (5 + 2)),  # the best of the answers
    (["在1963年"], "1963年5月", 0, 2 * 2 / (3 + 4)),  # 在 1963 年; 1963 年 5 月
    (["天…"], "天", 0, 2 * 1 / (2 + 1)),  # the official list holds …… as one sign, which no sign equals
    (["天"], "", 0, 0),
    ([""], "", 1, 1),  # the passage holds no answer
    ([""], "天", 0, 0),
  ],
)
def test_reading_comprehension_by_hand(answers, prediction, exact, f1):
  assert reading_comprehension([answers], [prediction]) == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_rouge_by_hand():
  # Pieces 今天 天气 ... are single characters; GPT is one.
  found = rouge(["今天天气好", "用GPT写诗"], ["今天好", "用GPT写词"])
  first = {"rouge1": 2 * 3 / 8, "rouge2": 2 * 1 / 6, "rougeL": 2 * 3 / 8}
  second = {"rouge1": 2 * 3 / 8, "rouge2": 2 * 2 / 6, "rougeL": 2 * 3 / 8}
  assert found == pytest.approx({name: (first[name] + second[name]) / 2 for name in first})
  assert rouge([["甲乙", "今天好"]], ["今天好"]) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
  assert rouge(["甲乙"], [""]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


REFERENCES = [
  ["今天的天气非常好，我们去公园", "今天天气很好，我们去公园"],
  ["他在北京大学读书"],
  ["Wukong has 100 images"],
]
WRITTEN = ["今天的天气很好，我们去公园", "他在北京读书呢", "Wukong has 100 images"]


def test_bleu_is_that_of_sacrebleu():
  for rows in ([0, 1, 2], [0], [1, 1, 2], [2]):
    references, written = [REFERENCES[i] for i in rows], [WRITTEN[i] for i in rows]
    columns = [[each[min(k, len(each) - 1)] for each in references] for k in range(2)]
    expected = sacrebleu.corpus_bleu(written, columns, tokenize="zh").score / 100
    assert bleu(references, written)["bleu"] == pytest.approx(expected, abs=1e-12)
  # A resample's sums give the same as its texts would.
  measured = bleu(REFERENCES, WRITTEN)
  again = bleu([REFERENCES[i] for i in (0, 0, 1)], [WRITTEN[i] for i in (0, 0, 1)])
  assert measured.of_sums(measured.statistics[[0, 0, 1]].sum(axis=0))["bleu"] == pytest.approx(again["bleu"], abs=1e-12)
  low, high = intervals(measured, resamples=200)["bleu"]
  assert 0 <= low < measured["bleu"] < high <= 1


@pytest.mark.parametrize("metric", [reading_comprehension, rouge, bleu])
def test_what_cannot_be_scored(metric):
  with pytest.raises(UserError, match="got 1 for 2"):
    metric([["甲"], ["乙"]], ["甲"])
  with pytest.raises(UserError, match="example 1 has no reference"):
    metric([["甲"], []], ["甲", "乙"])
  with pytest.raises(UserError, match="no examples"):
    metric([], [])
