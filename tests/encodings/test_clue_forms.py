"""Rows of CLUE as items: those that the original makes of the same files."""

import json
import os
from pathlib import Path

import pytest

from fsb_jax.encodings import CLUE_FORMS, clue_answers, clue_items, cmrc_answers, cmrc_items, text_to_text
from fsb_jax.encodings.clue_forms import Verbaliser
from fsb_jax.encodings.clue_idioms import one_to_one
from fsb_jax.encodings.unimc import require_unimc
from fsb_jax.errors import UserError

HERE = Path(__file__).resolve().parents[1] / "goldens"
ALL = Path(os.environ.get("FSB_GOLDENS_DIR", HERE.parents[2] / "shared" / "goldens"))
needs_goldens = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
# Our names of the tasks, and the original's.
FOLDERS = {"cluewsc2020": "wsc", **{name: name for name in ("afqmc", "ocnli", "tnews", "iflytek", "csl", "chid", "c3")}}
# Files that the original makes from several.
PARTS = {("c3", "train"): ("d-train", "d-dev", "c3-m-train", "m-train"), ("c3", "dev"): ("m-dev",)}


def folder_of(task):
  # They are rows of the published sets, which do not travel with the code.
  if not ALL.is_dir():
    pytest.skip(f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
  return ALL / "clue_preprocessing" / FOLDERS.get(task, task)


def lines(path):
  return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def read(folder, task, split):
  """The rows of a split, and the answers where they are in a file of their own."""
  files = [folder / "input" / f"{name}.json" for name in PARTS.get((task, split), (split,))]
  rows = [row for file in files for row in (json.loads(file.read_text("utf-8")) if task == "c3" else lines(file))]
  answers = folder / "input" / f"{split}_answer.json"
  return rows, json.loads(answers.read_text("utf-8")) if answers.is_file() else None


def without_clauses_in_blanks(items, rows):
  """The original's items of ChID, its mistake undone: an earlier blank of a text holds a whole clause, not an idiom."""
  mended, clauses = [], {}
  for item in items:
    candidates = rows[item["line_id"]]["candidates"]
    place = item["line_id"], item["text_id"]
    for clause, idiom in clauses.get(place, []):
      item = {**item, "texta": item["texta"].replace(clause, idiom)}
    mended.append(item)
    clauses.setdefault(place, []).append((item["answer"], candidates[item["label"]]))
  return mended


@pytest.mark.parametrize("task", FOLDERS)
def test_items_are_the_originals(task):
  folder = folder_of(task)
  splits = sorted(path.stem for path in (folder / "output").iterdir())
  compared = 0
  for split in splits:
    rows, answers = read(folder, task, split)
    before = json.dumps(rows)
    ours, theirs = clue_items(task, rows, answers), lines(folder / "output" / f"{split}.json")
    if task == "chid" and answers:
      assert ours != theirs
      theirs = without_clauses_in_blanks(theirs, rows)
    assert ours == theirs, split
    assert json.dumps(rows) == before
    require_unimc(ours)
    compared += len(ours)
  assert len(splits) >= 3 and compared > 20


def test_windows_of_reading_are_the_originals():
  folder = folder_of("cmrc2018")

  def documents(*names):
    return [d for name in names for d in json.loads((folder / "input" / f"{name}.json").read_text("utf-8"))["data"]]

  for split, parts in {"train": ("train", "trial"), "dev": ("dev",), "test": ("test",)}.items():
    assert cmrc_items(documents(*parts)) == lines(folder / "output" / f"{split}.json"), split


@pytest.mark.parametrize("task", FOLDERS)
def test_answers_are_the_originals_submission(task):
  folder = folder_of(task)
  theirs = lines(folder / "submit.json")
  theirs = theirs[0] if task == "chid" else {row["id"]: row["label"] for row in theirs}
  ours = clue_answers(task, lines(folder / "predict.json"))
  assert ours == theirs and list(ours) == list(theirs)


def test_answers_of_reading_are_the_originals_submission():
  folder = folder_of("cmrc2018")
  assert cmrc_answers(lines(folder / "predict.json")) == json.loads((folder / "submit.json").read_text("utf-8"))


def test_the_better_half_of_an_abstracts_keywords():
  def item(number, abstract, can):
    choice = ["可以使用甲概括摘要", "不能使用甲概括摘要"]
    score = dict(zip(choice, (can, 1 - can)))
    return {"id": number, "texta": abstract, "choice": choice, "label": int(can < 0.5), "score": score}

  answered = [item(0, "一", 0.9), item(1, "二", 0.1), item(2, "一", 0.8), item(3, "二", 0.2), item(4, "二", 0.15)]
  assert clue_answers("csl", answered) == {0: "1", 1: "0", 2: "0", 3: "1", 4: "1"}


def test_options_in_the_other_order_mean_the_same():
  answered = [
    {"id": 0, "choice": ["他是曹操", "他不是曹操"], "label": 1},
    {"id": 1, "choice": ["他不是曹操", "他是曹操"], "label": 1},
  ]
  assert clue_answers("cluewsc2020", answered) == {0: "false", 1: "true"}
  assert clue_answers("afqmc", [{"id": 5, "choice": ["相似", "不相似"], "label": 0}]) == {5: "1"}


def test_no_idiom_twice_and_the_surest_first():
  # The first blank's favourite is the second's, more surely.
  assert one_to_one([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]]) == [1, 0]
  assert one_to_one([[0.2, 0.3], [0.6, 0.1], [0.1, 0.05]]) == [1, 0, 0]


CHID = {
  "candidates": ["左右为难", "取长补短"],
  "content": ["他#idiom000001#，她#idiom000002#，他们走了。", "只有#idiom000003#"],
}


def test_other_blanks_hold_their_idioms_or_nothing():
  answers = {"#idiom000001#": 0, "#idiom000002#": 1, "#idiom000003#": 1}
  known, unknown = clue_items("chid", [CHID], answers), clue_items("chid", [CHID])
  assert [item["texta"] for item in known] == ["", "他左右为难，", ""]
  assert [item["textb"] for item in known] == ["她取长补短，他们走了。", "他们走了。", ""]
  assert [item["answer"] for item in known] == ["他左右为难，", "她取长补短，", "只有取长补短"]
  assert [item["texta"] for item in unknown] == ["", "他，", ""]
  assert [item["textb"] for item in unknown] == ["她，他们走了。", "他们走了。", ""]
  assert {item["answer"] for item in unknown} == {""} and [item["choice"] for item in unknown] == [
    item["choice"] for item in known
  ]
  with pytest.raises(UserError, match="chid, row 0: the answer of #idiom000002# is None"):
    clue_items("chid", [CHID], {"#idiom000001#": 0})


def test_long_texts_of_idioms_keep_what_is_nearest():
  text = "甲" * 700 + "，他#idiom000001#，" + "乙" * 100
  (item,) = clue_items("chid", [{**CHID, "content": [text]}])
  options = len("".join(item["choice"]))
  assert item["choice"] == ["他左右为难，", "他取长补短，"] and item["textb"] == "乙" * 100
  assert item["texta"] == "甲" * (512 - options - 100 - 1) + "，"
  long = "丙" * 300 + "#idiom000001#" + "丁" * 300
  (item,) = clue_items("chid", [{**CHID, "content": [long]}])
  assert item["choice"] == CHID["candidates"] and (item["texta"], item["textb"]) == ("丙" * 252, "丁" * 252)


def test_the_only_end_in_a_text_counts_where_it_is_a_comma():
  def clause(text):
    (item,) = clue_items("chid", [{**CHID, "content": [text]}])
    return item["texta"], item["choice"][0], item["textb"]

  assert clause("早上好。他#idiom1#了") == ("", "早上好。他左右为难了", "")
  assert clause("早上好，他#idiom1#了") == ("早上好，", "他左右为难了", "")
  assert clause("早上好。他#idiom1#了。") == ("早上好。", "他左右为难了。", "")


def test_an_answer_that_a_window_cuts_is_not_in_it():
  asked = {"id": "Q", "question": "?", "answers": [{"text": "甲乙", "answer_start": 507}]}
  context = "丙" * 507 + "甲乙" + "丙" * 100
  items = cmrc_items([{"paragraphs": [{"context": context, "qas": [asked]}]}])
  found = [item["choices"][0]["entity_list"] for item in items]
  # 508 characters beside a question of one: the first window ends between the two.
  assert [len(item["text"]) for item in items] == [508, 481] and found[0] == []
  assert found[1][0]["entity_idx"] == [[379, 380]] and items[1]["text"][379:381] == "甲乙"


def test_text_to_text():
  (item,) = clue_items("tnews", [{"sentence": "大学开学", "label": "108", "id": 3}])
  made = text_to_text(item)
  assert made["targets"] == "教育"
  assert made["inputs"].startswith("下面新闻属于哪一个类别？故事，文化，")
  assert made["inputs"].endswith("，电竞。大学开学")
  pair = {"sentence1": "天气", "sentence2": "下雨", "label": "neutral"}
  assert text_to_text(clue_items("ocnli", [pair])[0]) == {"inputs": "矛盾，自然，蕴含。天气下雨", "targets": "自然"}
  del pair["label"]
  assert text_to_text(clue_items("ocnli", [pair])[0])["targets"] == ""


FEWCLUE = {
  "eprstmt": ({"id": 0, "sentence": "好", "label": "Positive"}, "好评", "Positive"),
  "csldcp": ({"id": 0, "content": "论文", "label": "作物学"}, "作物", "作物学"),
  "tnewsf": ({"id": 0, "sentence": "好", "label": 116}, "电竞", "116"),
  "iflytekf": ({"sentence": "好", "label": 118}, "其他", "118"),
  "ocnlif": ({"id": 0, "sentence1": "好", "sentence2": "坏", "label": "neutral"}, "自然", "neutral"),
  "bustm": ({"id": 0, "sentence1": "好", "sentence2": "坏", "label": "1"}, "相似", "1"),
  "chidf": ({"id": 0, "candidates": ["左右", "取长补短"], "content": "他#idiom#了", "answer": 1}, "他取长补短了", 1),
  "cslf": ({"id": 0, "abst": "天气预报", "keyword": ["天气"], "label": "0"}, "不能使用天气概括摘要", None),
  "cluewscf": (
    {"text": "水清，它流", "label": "true", "target": {
      "span1_index": 0, "span1_text": "水", "span2_index": 3, "span2_text": "它"}},
    "它是水", "true",
  ),
}  # fmt: skip


@pytest.mark.parametrize("task", FEWCLUE)
def test_rows_of_fewclue(task):
  row, answer, published = FEWCLUE[task]
  (item,) = clue_items(task, [row])
  assert item["answer"] == answer == item["choice"][item["label"]] and item["id"] == 0
  if published is not None:
    assert clue_answers(task, [item]) == {0: published}
  no_label = {name: value for name, value in row.items() if name not in ("label", "answer")}
  (item,) = clue_items(task, [no_label])
  assert item["answer"] not in item["choice"] and item["label"] == 0


def test_options_are_different_words():
  forms = {name: form for name, form in CLUE_FORMS.items() if isinstance(form, Verbaliser)}
  sizes = {name: len(set(form.options.values())) for name, form in forms.items()}
  assert sizes == {name: len(form.options) for name, form in forms.items()}
  assert sizes["iflytek"] == 119 and sizes["csldcp"] == 67 and sizes["tnews"] == 15
  assert set(CLUE_FORMS["iflytek"].options) == {str(label) for label in range(119)}


@pytest.mark.parametrize(
  "task,row,message",
  [
    ("news", {}, "there is no form of task 'news'; known: afqmc"),
    ("tnews", {"sentence": "好", "label": "99"}, "tnews, row 1: label '99' is none of 100, 101"),
    ("tnews", {"label": "100"}, "tnews, row 1: no field 'sentence'"),
    ("csl", {"abst": "好", "keyword": ["天"], "label": "2"}, "csl, row 1: label '2' is none of 1, 0"),
    ("c3", [["好"], [{"question": "?", "choice": ["一"], "answer": "二"}]], "c3, row 1: answer '二' is none of"),
    ("chidf", {"content": "无", "candidates": []}, "chidf, row 1: content has no blank"),
  ],
)
def test_mistakes_are_named(task, row, message):
  good = {
    "tnews": {"sentence": "好"}, "csl": {"abst": "好", "keyword": ["天"]}, "c3": [["好"], []],
    "chidf": {"content": "#idiom#", "candidates": ["一"]},
  }  # fmt: skip
  with pytest.raises(UserError, match=message):
    clue_items(task, [good.get(task), row])


def test_what_was_not_answered_is_named():
  with pytest.raises(UserError, match="csl, answered item 0 has no score"):
    clue_answers("csl", [{"id": 0, "choice": ["可以", "不能"], "label": 0, "texta": "好"}])
  with pytest.raises(UserError, match="the answer '好' is none of the options 不相似, 相似"):
    clue_answers("afqmc", [{"id": 0, "choice": ["好", "坏"], "label": 0}])


def test_rows_without_a_gold_label_are_left_out():
  rows = [{"sentence1": "一", "sentence2": "二", "label": label} for label in ("-", "entailment")]
  assert [item["answer"] for item in clue_items("ocnli", rows)] == ["蕴含"]
