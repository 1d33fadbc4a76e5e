"""Reading comprehension: what is served of passages, learned, scored, predicted, answered and exported."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_run import one_device, run
from typer.testing import CliRunner

import fsb_jax
from fsb_jax import encodings, tasks
from fsb_jax.cli import app
from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics_text import reading_comprehension
from fsb_jax.tasks.submissions import check_submission
from fsb_jax.training.benchmark import benchmark
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import describe, evaluate
from fsb_jax.training.infer import infer
from fsb_jax.training.loop import Periods
from fsb_jax.training.optimizers import adamw, schedule

ASKED, TOLD, OTHER = "猫狗鸟鱼马", "一二三四五六七八九十", "天地人你我他在有的"
LENGTH = 80


def passages(random, answers=1, count=3):
  """Questions in SQuAD's form: which numbers stand behind the animal that is asked for."""
  data = []
  for number in range(count):
    text, told = "", {}
    for sign in random.permutation(list(ASKED)[:3]):
      text += "".join(random.choice(list(OTHER), random.integers(2, 40 if not number else 10)))
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
  rows = {int(row): ids for batch in whole.batches(0) for row, ids in zip(batch["example_ids"], batch["input_ids"])}
  for batch in part.batches(0):
    for i in np.flatnonzero(batch["weights"]):
      np.testing.assert_array_equal(batch["input_ids"][i], rows[expected[batch["example_ids"][i]]])
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
  rate = schedule(learning_rate=4e-3, train_steps=120, warmup_ratio=0.1)
  metrics = run(
    folder, "cmrc2018", tokenizer, 120, optimizer=adamw(learning_rate=rate), learning_rate=rate, dropout_rate=0.0,
    data_dir=str(data), feature_lengths={"inputs": LENGTH}, buckets=(LENGTH,), batch_size=12,
    periods=Periods(log=20), mesh=one_device(),
  )  # fmt: skip
  return folder, metrics


def test_it_learns_to_answer(finished):
  _, metrics = finished
  assert metrics["examples"] == 7 and metrics["exact_match"] == metrics["f1"] == 1.0
  assert describe("cmrc2018 validation", metrics).startswith(
    "cmrc2018 validation: f1 1.0000 (exact match 1.0000), loss 0."
  )


def test_scored_predicted_and_asked_afterwards_it_says_the_same(finished, data, tmp_path):
  folder, metrics = finished
  asked = dict(
    model=str(folder), task="cmrc2018", data_dir=str(data), feature_lengths={"inputs": LENGTH}, batch_size=8,
    buckets=(LENGTH,),
  )  # fmt: skip
  assert evaluate(**asked)["cmrc2018"] == pytest.approx(metrics, rel=1e-5)
  with pytest.raises(UserError, match="this split is published without labels"):
    evaluate(**asked, split="test")
  with pytest.raises(UserError, match="VIEW 'unimc' is for|is for a question_answering head.*VIEW=None asks it"):
    evaluate(**asked, view="unimc")
  assert infer(**asked, output_file=str(tmp_path / "out.jsonl")) == 7
  lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
  assert [line["id"] for line in lines] == [each["id"] for _, each in questions_of(data, "test")]
  answers = fsb_jax.pipeline("question_answering", folder, max_length=LENGTH, batch_size=3, count=20)(lines)
  assert [answer["answer"] for answer in answers] == [line["prediction"] for line in lines]
  np.testing.assert_allclose([answer["score"] for answer in answers], [line["score"] for line in lines], atol=1e-5)
  for line, answer in zip(lines, answers):
    assert line["context"][answer["start"] : answer["end"]] == answer["answer"]
    assert len(answer["best"]) == 20 and answer["best"][0] == {n: x for n, x in answer.items() if n != "best"}
    scores = [each["score"] for each in answer["best"]]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)


def test_the_shell_answers_what_was_learned(finished, data, tmp_path):
  folder, _ = finished
  (text, asked), (other, asked_too) = questions_of(data, "train")[:2]
  (tmp_path / "items.jsonl").write_text(json.dumps({"question": asked_too["question"], "context": other}) + "\n")
  run = CliRunner().invoke(
    app, ["predict", "question_answering", "--model", str(folder), "--text", text, "--question", asked["question"],
          "--input", str(tmp_path / "items.jsonl"), "--option", f"max_length={LENGTH}"],
  )  # fmt: skip
  assert run.exit_code == 0, run.output
  found = [json.loads(line) for line in run.stdout.splitlines()]
  assert [each["answer"] for each in found] == [each["answers"][0]["text"] for each in (asked, asked_too)]
  assert found[0]["start"] == asked["answers"][0]["answer_start"] and found[0]["context"] == text


def test_exported_it_is_a_transformers_model(finished, tokenizer, tmp_path):
  torch = pytest.importorskip("torch")
  from transformers import BertForQuestionAnswering

  folder, _ = finished
  exported = CliRunner().invoke(app, ["convert", "export", str(folder), str(tmp_path / "hub")])
  assert exported.exit_code == 0, exported.output
  theirs, info = BertForQuestionAnswering.from_pretrained(tmp_path / "hub", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  inputs = tokenizer(["猫？", "鱼？"], ["猫三。天地人鱼一二。", "天鱼四。"], padding=True, return_tensors="np")
  model, params = fsb_jax.from_pretrained(folder)
  ours = model.apply({"params": params}, **inputs)
  with torch.no_grad():
    expected = theirs.eval()(**{name: torch.from_numpy(ids) for name, ids in inputs.items()})
  real = inputs["attention_mask"] > 0
  for name in ("start_logits", "end_logits"):
    np.testing.assert_allclose(np.asarray(getattr(ours, name))[real], expected[name].numpy()[real], atol=1e-4)


def test_a_benchmark_has_a_model_for_every_task(finished, data, tmp_path, capsys):
  folder, metrics = finished
  (tmp_path / "cmrc2018").symlink_to(folder)
  asked = dict(
    model=str(tmp_path / "{task}"), task="cmrc2018", splits=("validation", "test"), data_dir=str(data),
    feature_lengths={"inputs": LENGTH}, batch_size=8, buckets=1,
  )  # fmt: skip
  report = benchmark(output_dir=str(tmp_path / "out"), view=None, **asked)
  (scored,) = report.tasks
  assert (scored.metric, scored.examples, scored.majority_baseline) == ("f1", 7, None)
  assert {name: score.value for name, score in scored.scores.items()} == {"exact_match": 1.0, "f1": 1.0}
  assert "cmrc2018 validation: f1 100.00 " in capsys.readouterr().out
  said = (tmp_path / "out" / "predictions" / "cmrc2018_test.jsonl").read_text("utf-8")
  answers = {line["id"]: line["prediction"] for line in map(json.loads, said.splitlines())}
  archive = tmp_path / "out" / "submission_test.zip"
  (content,) = zipfile.ZipFile(archive).namelist()
  assert content == "cmrc2018_predict.json" and json.loads(zipfile.ZipFile(archive).read(content)) == answers
  check_submission(archive, "cmrc2018", [asked["id"] for _, asked in questions_of(data, "test")])
  # Asked with other tasks' options, reading is still asked as it is.
  part = benchmark(output_dir=str(tmp_path / "part"), view="unimc", max_examples=4, **asked)
  assert part.tasks[0].examples == 4 and not (tmp_path / "part" / "submission_test.zip").exists()


def test_a_benchmark_leaves_out_what_its_model_does_not_answer(finished, data, tmp_path, capsys):
  folder, _ = finished
  rows = [{"id": i, "sentence": "猫在天地"} for i in range(3)]
  (tmp_path / "fewclue" / "eprstmt").mkdir(parents=True)
  (tmp_path / "fewclue" / "eprstmt" / "test.json").write_text("\n".join(map(json.dumps, rows)), "utf-8")
  (tmp_path / "cmrc2018").symlink_to(data / "cmrc2018")
  asked = dict(
    model=str(folder), splits=("test",), data_dir=str(tmp_path), feature_lengths={"inputs": LENGTH}, view=None
  )  # fmt: skip
  report = benchmark(task=["cmrc2018", "eprstmt"], output_dir=str(tmp_path / "out"), **asked)
  said = f"eprstmt: {folder} has a question_answering head, not sequence_classification"
  assert report.settings["not scored"] == said and f"skipped: {said}" in capsys.readouterr().err
  assert zipfile.ZipFile(tmp_path / "out" / "submission_test.zip").namelist() == ["cmrc2018_predict.json"]
  with pytest.raises(UserError, match="no task has a model that answers it; eprstmt: .* has a question_answering head"):
    benchmark(task="eprstmt", output_dir=str(tmp_path / "none"), **asked)
  assert not (tmp_path / "none").exists()


IMPOSSIBLE = [
  {"id": "1", "question": "猫？", "answers": [{"text": "三", "answer_start": 1}], "is_impossible": "false"},
  {"id": "2", "question": "狗？", "answers": [], "is_impossible": "true"},
  {"id": "3", "question": "鱼？", "answers": [{"text": "是", "answer_start": -1}], "is_impossible": "false"},
]


@pytest.fixture
def courts(tmp_path):
  (tmp_path / "cjrc").mkdir()
  content = {"data": [{"paragraphs": [{"context": "猫三。", "qas": IMPOSSIBLE}]}]}
  (tmp_path / "cjrc" / "dev.json").write_text(json.dumps(content), "utf-8")
  return tmp_path


def test_a_passage_may_hold_no_answer(courts, tokenizer):
  loader = Loader("cjrc", "validation", tokenizer, LENGTH, 4, shuffle=False, data_dir=courts)
  (batch,) = loader.batches(0)
  at = [batch[name][:3].tolist() for name in ("start_positions", "end_positions")]
  assert at == [[5, 0, encodings.IGNORED]] * 2  # [CLS] 猫 ？ [SEP] 猫 三 。 [SEP]
  starts = np.zeros((3, 8))
  starts[[0, 1, 2], [5, 0, 4]] = 3
  result = {"start_logits": starts, "end_logits": starts, "attention_mask": batch["attention_mask"][:3, :8]}
  result["example_ids"] = batch["example_ids"][:3]
  assert [each["prediction"] for each in loader.question.predictions([result])] == ["三", "", "猫"]
  assert loader.question.scores([result], 0.0) == pytest.approx({"exact_match": 2 / 3, "f1": 2 / 3})
  assert loader.question.score_names == ("exact_match", "f1")


def test_sets_together_are_asked_as_each_alone(data, courts, tokenizer):
  import seqio

  (courts / "cmrc2018").symlink_to(data / "cmrc2018")
  tasks.register(tokenizer, courts)
  names = ("cjrc", "cmrc2018")  # in the order that SeqIO gives them
  seqio.MixtureRegistry.add("both_sets", list(names), default_rate=seqio.mixing_rate_num_examples)
  try:
    both = Loader("both_sets", "validation", tokenizer, LENGTH, 4, shuffle=False, data_dir=courts)
    each = [Loader(name, "validation", tokenizer, LENGTH, 4, shuffle=False, data_dir=courts) for name in names]
  finally:
    seqio.MixtureRegistry.remove("both_sets")
  assert both.num_examples == sum(loader.num_examples for loader in each) == 10
  assert [both.raw(i) for i in range(10)] == [loader.raw(i) for loader in each for i in range(loader.num_examples)]
  assert both.question.items == [item for loader in each for item in loader.question.items]
  assert sorted({int(row) for batch in both.batches(0) for row in batch["example_ids"]} - {-1}) == list(
    range(len(both.question.starts))
  )


def test_heads_that_answer(data, tokenizer):
  assert loader_of(data, tokenizer, head="question_answering_simple").head == "question_answering_simple"
  with pytest.raises(UserError, match="are for the heads question_answering and .*_simple, not for crf"):
    loader_of(data, tokenizer, head="crf")
  with pytest.raises(UserError, match="read as text, which CACHE_DIR cache does not hold"):
    loader_of(data, tokenizer, cache_dir="cache")
  with pytest.raises(UserError, match="max_length 60 leaves no room for the passage"):
    Loader("cmrc2018", "train", tokenizer, 60, 4, shuffle=True, data_dir=data)


def test_what_the_pipeline_cannot_answer(finished):
  folder, _ = finished
  answer = fsb_jax.pipeline("question_answering", folder, max_length=LENGTH, may_have_none=True)
  found = answer({"question": "猫？", "context": "  "})
  assert found == {"answer": "", "start": 0, "end": 0, "score": 1.0} and answer([]) == []
  with pytest.raises(UserError, match="item 1 is .*; give a dict with question and context, both text"):
    answer([{"question": "猫？", "context": "天"}, {"question": "猫？"}])
  for arguments, message in (
    (["--text", "天"], "needs a question: give --question"),
    (["--text", "天", "--question", "猫", "--choice", "天"], "--choice is for zero_shot"),
    (["--text", "天", "--question", "猫", "--option", "count=0"], "count 0 must be at least 1"),
  ):
    with pytest.raises(UserError, match=message):
      CliRunner().invoke(
        app, ["predict", "question_answering", "--model", str(folder), *arguments], catch_exceptions=False
      )
  with pytest.raises(UserError, match="has a masked_lm head, not one that answers questions"):
    fsb_jax.pipeline("question_answering", Path(__file__).resolve().parents[1] / "goldens" / "unimc_bert")
