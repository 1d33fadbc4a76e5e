"""The zero_shot pipeline against what the original answered."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fsb_jax
from fsb_jax import encodings
from fsb_jax.cli import app
from fsb_jax.errors import UserError

HERE = Path(__file__).resolve().parents[1] / "goldens"
ALL = Path(os.environ.get("FSB_GOLDENS_DIR", HERE.parents[2] / "shared" / "goldens"))
needs_goldens = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
FOLDER = HERE / "unimc_bert"
ITEM = {"texta": "天气真好", "choice": ["今", "不好", "好天"]}


@pytest.fixture(scope="module")
def small():
  return fsb_jax.pipeline("zero_shot", FOLDER, max_length=96)


@pytest.fixture(scope="module")
def chinese():
  return fsb_jax.pipeline("zero_shot", ALL / "unimc_zeroclue", batch_size=10)


def original(folder):
  """Items as a user writes them, and the original's answers."""
  answered = json.loads((folder / "predict.json").read_text("utf-8"))["postprocess"]
  mine = ("score", "label_ori")
  return [{name: value for name, value in each.items() if name not in mine} for each in answered], answered


def check(answers, expected, score_keys=True):
  worst = 0.0
  for answer, theirs in zip(answers, expected, strict=True):
    assert (answer["label"], answer["answer"]) == (theirs["label"], theirs["answer"])
    assert set(answer) == {"label", "answer", "score"}
    if score_keys:
      assert list(answer["score"]) == list(theirs["score"])
    difference = np.abs(np.array(list(answer["score"].values())) - list(theirs["score"].values()))
    worst = max(worst, difference.max())
  assert worst <= 1e-5
  return worst


def test_answers_are_the_originals(small):
  items, expected = original(FOLDER)
  before = copy.deepcopy(items)
  check(small(items), expected)
  assert items == before
  # One alone is answered alone.
  check([small(items[1])], expected[1:2])
  assert small([]) == []


@needs_goldens
@pytest.mark.parametrize("task", ["eprstmt", "tnews", "ocnli", "bustm"])
def test_answers_on_real_rows_are_the_originals(chinese, task):
  lines = (ALL / "unimc_zeroclue" / f"{task}.jsonl").read_text("utf-8").split("\n")
  expected = [json.loads(line) for line in lines if line]
  # These scores are told by the options with the second text in them.
  answers = chinese([row["item"] for row in expected])
  check(answers, expected, score_keys=task in ("eprstmt", "tnews"))
  assert len(answers) == 24 and len({answer["answer"] for answer in answers}) > 1


@needs_goldens
@pytest.mark.parametrize("name", ["unimc_megatron_bert", "unimc_albert", "unimc_deberta_v2"])
def test_every_backbone_chooses_as_the_original(name):
  items, expected = original(ALL / name)
  answers = fsb_jax.pipeline("zero_shot", ALL / name, max_length=96)(items)
  for answer, theirs in zip(answers, expected, strict=True):
    assert (answer["label"], answer["answer"]) == (theirs["label"], theirs["answer"])
    np.testing.assert_allclose(list(answer["score"].values()), list(theirs["score"].values()), atol=1e-4)


def test_few_shapes_and_what_stands_beside_an_item_does_not_matter(small):
  items = [{**ITEM, "texta": "天气真好" * (1 + n % 7), "choice": ITEM["choice"][: 2 + n % 2]} for n in range(34)]
  known = small._probabilities._cache_size()
  together = small(items)
  # 32 rows, and the other 2.
  assert small._probabilities._cache_size() - known <= 2
  for number in (0, 33):
    alone = small(items[number])
    assert alone["label"] == together[number]["label"]
    for option, score in alone["score"].items():
      assert together[number]["score"][option] == pytest.approx(score, abs=1e-6)
    assert sum(alone["score"].values()) == pytest.approx(1, abs=1e-5)


def test_an_option_given_twice(small):
  answer = small({**ITEM, "choice": ["好", "好", "天"]})
  assert set(answer["score"]) == {"好", "天"} and sum(answer["score"].values()) == pytest.approx(1, abs=1e-5)


def test_the_shell(tmp_path):
  items, expected = original(FOLDER)
  path = tmp_path / "items.jsonl"
  path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in [*items, {**ITEM}]) + "\n", "utf-8")
  run = CliRunner().invoke(
    app, ["predict", "zero_shot", "--model", str(FOLDER), "--input", str(path), "--text", "真好[SEP]不好",
          "--choice", "今", "--choice", "天", "--question", "哪个"],
  )  # fmt: skip
  assert run.exit_code == 0, run.output
  first, *rest = [json.loads(line) for line in run.stdout.splitlines()]
  assert (first["texta"], first["textb"], first["question"]) == ("真好", "不好", "哪个")
  assert first["answer"] in ("今", "天") and set(first["score"]) == {"今", "天"}
  assert [row["answer"] for row in rest[:-1]] == [row["answer"] for row in expected]
  assert rest[0]["id"] == items[0]["id"] and rest[-1]["texta"] == ITEM["texta"]


@pytest.mark.parametrize(
  "arguments,message",
  [
    (["--text", "好"], "give --choice several times"),
    (["--input", "{broken}"], "line 2 of the items is not valid JSON"),
    (["--input", "{short}"], "item 0: choice is None; give a list of options"),
    (["--input", "{text}"], "item 0 is 'good'; give a dict with texta and choice"),
  ],
)
def test_mistakes_are_told_before_the_model_is_read(tmp_path, arguments, message):
  files = {"broken": json.dumps(ITEM) + "\n{", "short": '{"texta": "好"}\n', "text": '"good"\n'}
  for name, text in files.items():
    (tmp_path / name).write_text(text, "utf-8")
  arguments = [argument.format(**{name: tmp_path / name for name in files}) for argument in arguments]
  with pytest.raises(UserError, match=message):
    CliRunner().invoke(app, ["predict", "zero_shot", "--model", "no/such", *arguments], catch_exceptions=False)


def test_options_are_for_zero_shot_alone():
  with pytest.raises(UserError, match="--choice is for zero_shot and --question .*, not for text_classification"):
    CliRunner().invoke(
      app, ["predict", "text_classification", "--model", "no/such", "--text", "好", "--choice", "一"],
      catch_exceptions=False,
    )  # fmt: skip


def test_a_model_without_its_head_cannot_answer():
  folder = HERE / "hf_megatron_bert_base"
  with pytest.raises(UserError, match="has no masked language model's head"):
    fsb_jax.pipeline("zero_shot", folder)


def test_texts_that_are_no_items(small):
  with pytest.raises(UserError, match="item 0 is '好'; give a dict"):
    small(["好"])
  with pytest.raises(UserError, match="item 1: texta holds None"):
    small([ITEM, {"choice": ["一", "二"]}])
  assert encodings.require_unimc([ITEM]) is None
