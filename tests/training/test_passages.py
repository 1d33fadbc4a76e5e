"""Reading comprehension: what is served of passages, learned, scored, predicted, answered and exported."""

import json

import jax
import numpy as np
import pytest
from tiny_run import run
from typer.testing import CliRunner

import fsb_jax
from fsb_jax import encodings
from fsb_jax.cli import app
from fsb_jax.errors import UserError
from fsb_jax.partitioning.mesh import make_mesh
from fsb_jax.tasks.metrics_text import reading_comprehension
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import describe, evaluate
from fsb_jax.training.infer import infer
from fsb_jax.training.loop import Periods

ASKED, TOLD, OTHER = "猫狗鸟鱼马", "一二三四五六七八九十", "天地人你我他在有的"
LENGTH = 80


def passages(random, answers=1, count=3):
  """Questions in SQuAD's form: which numbers stand behind the animal that is asked for."""
  data = []
  for number in range(count):
    text, told = "", {}
    for sign in random.permutation(list(ASKED)[:3]):
      text += "".join(random.choice(list(OTHER), random.integers(4, 40)))
      told[sign] = "".join(random.choice(list(TOLD), random.integers(1, 4)))
      start = len(text) + 1
      text += f"{sign}{told[sign]}。"
      told[sign] = [{"text": told[sign], "answer_start": start}]
    questions = [
      {"id": f"Q{number}-{sign}", "question": f"{sign}？", "answers": found if answers else
       [{"text": "FAKE_ANSWER_1", "answer_start": -1}]}
      for sign, found in told.items()
    ]  # fmt: skip
    data.append({"title": "", "paragraphs": [{"context": text, "qas": questions[: 2 + number % 2]}]})
  return {"data": data}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
  (folder / "cmrc2018").mkdir()
  learned = passages(random)
  for name, content in (("train", learned), ("dev", learned), ("test", passages(random, answers=0))):
    (folder / "cmrc2018" / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
  return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return encodings.bert_tokenizer_from_characters(
    sorted({*ASKED, *TOLD, *OTHER, *"？。"}), tmp_path_factory.mktemp("tokenizer")
  )


def loader_of(data, tokenizer, split="train", **options):
  arguments = {"shuffle": split == "train", "buckets": (LENGTH,), **options}
  return Loader("cmrc2018", split, tokenizer, LENGTH, 4, data_dir=data, **arguments)


def questions_of(data, name):
  content = json.loads((data / "cmrc2018" / f"{name}.json").read_text("utf-8"))
  return [
    (paragraph["context"], asked)
    for each in content["data"] for paragraph in each["paragraphs"] for asked in paragraph["qas"]
  ]  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_window_says_where_its_answer_is(data, tokenizer, side):
  asked = questions_of(data, "dev")
  tokenizer.padding_side = side
  try:
    loader = loader_of(data, tokenizer, "validation")
    batches = list(loader.batches(0))
  finally:
    tokenizer.padding_side = "right"
  windows = encodings.encode_windows(
    tokenizer, [each["question"] for _, each in asked], [text for text, _ in asked], max_length=LENGTH, stride=128
  )
  assert loader.num_examples == len(asked) == 7 < len(windows["example"])
  assert (loader.head, loader.objective, loader.question.best_in) == ("question_answering", "question_answering", "f1")
  assert [loader.raw(i)["id"] for i in range(7)] == [each["id"] for _, each in asked]
  rows, found, held = set(), set(), [0] * 7
  for batch in batches:
    for i in np.flatnonzero(batch["weights"]):
      row, mask = int(batch["example_ids"][i]), batch["attention_mask"][i] > 0
      assert mask[-1 if side == "left" else 0]
      np.testing.assert_array_equal(batch["input_ids"][i, mask], windows["input_ids"][row])
      rows.add(row)
      text, each = asked[windows["example"][row]]
      span = slice(batch["start_positions"][i], batch["end_positions"][i] + 1)
      said = tokenizer.decode(batch["input_ids"][i, span]).replace(" ", "")
      found.add(said)
      held[windows["example"][row]] += said == each["answers"][0]["text"]
      assert said in ("[CLS]", each["answers"][0]["text"])
  assert rows == set(range(len(windows["example"]))) and "[CLS]" in found
  # Numbers cut by a window's end are in none of them.
  assert sum(held) >= 5 and max(held) == 1


def test_parts_are_of_whole_questions(data, tokenizer):
  whole, part = (loader_of(data, tokenizer, "validation", max_examples=most) for most in (None, 4))
  kept = [0, 1, 3, 5]
  assert part.num_examples == 4 and [part.raw(i) for i in range(4)] == [whole.raw(i) for i in kept]
  expected = [row for i in kept for row in np.flatnonzero(_examples(whole) == i)]
  batches = {int(row): batch["input_ids"][i] for batch in whole.batches(0) for i, row in enumerate(batch["example_ids"])}
  for batch in part.batches(0):
    for i in np.flatnonzero(batch["weights"]):
      np.testing.assert_array_equal(batch["input_ids"][i], batches[expected[batch["example_ids"][i]]])
  assert part.digest != whole.digest == loader_of(data, tokenizer, "validation").digest


def _examples(loader):
  first = np.zeros(len(loader.question.starts), int)
  first[loader.question.first_rows] = 1
  return np.cumsum(first) - 1


def test_all_windows_of_a_question_answer_it_once(data, tokenizer):
  """Of logits that are made up, in batches of another order."""
  loader, random = loader_of(data, tokenizer, "validation"), np.random.default_rng(1)
  question, lengths = loader.question, [len(offsets) for offsets in loader.question.offsets]
  logits = [random.normal(size=(2, length)) for length in lengths]
  order, results = random.permutation(len(lengths)), []
  for rows in np.split(order, [3, 5]):
    width = max(lengths[row] for row in rows) + 2
    result = {name: np.full((len(rows), width), 9.0) for name in ("start_logits", "end_logits")}
    result |= {"attention_mask": np.zeros((len(rows), width), int), "example_ids": rows}
    for i, row in enumerate(rows):
      result["start_logits"][i, : lengths[row]], result["end_logits"][i, : lengths[row]] = logits[row]
      result["attention_mask"][i, : lengths[row]] = 1
    results.append(result)
  answers, expected = [], []
  for i, (text, asked) in enumerate(questions_of(data, "dev")):
    own = np.flatnonzero(_examples(loader) == i)
    found = encodings.rated_answers(*zip(*(logits[row] for row in own)), [question.offsets[row] for row in own], text)
    expected.append({"prediction": found[0].text, "score": round(found[0].score, 6)})
    answers.append([asked["answers"][0]["text"]])
  assert question.predictions(results) == expected
  said = [each["prediction"] for each in expected]
  assert question.scores(results, 0.0) == dict(reading_comprehension(answers, said))


@pytest.fixture(scope="module")
def finished(data, tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "reading"
  metrics = run(
    folder, "cmrc2018", tokenizer, 60, dropout_rate=0.0, data_dir=str(data), feature_lengths={"inputs": LENGTH}, buckets=(LENGTH,), batch_size=12,
    periods=Periods(log=20), mesh=make_mesh(devices=jax.devices()[:1]),
  )  # fmt: skip
  return folder, metrics


def test_it_learns_to_answer(finished):
  _, metrics = finished
  assert metrics["examples"] == 7 and metrics["exact_match"] == metrics["f1"] == 1.0
  assert describe("cmrc2018 validation", metrics).startswith(
    "cmrc2018 validation: f1 1.0000 (exact match 1.0000), loss 0."
  )
