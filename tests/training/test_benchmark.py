"""A benchmark as a whole: every number in its files recomputed from the model's answers, item by item."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fsb_jax
from fsb_jax import checkpoints, encodings, tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics_bootstrap import intervals
from fsb_jax.tasks.submissions import check_submission
from fsb_jax.training.answers import Answers, answer_split
from fsb_jax.training.benchmark import benchmark
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import evaluate, warnings_of

MODEL = Path(__file__).resolve().parents[1] / "goldens" / "unimc_bert"
SIGNS = "大好很差喜惊房车游法辅定然理用电"
IDIOMS = ["大喜", "很差", "无车", "自然", "别动"]
ASKED = dict(feature_lengths={"inputs": 96}, batch_size=8, buckets=1)


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def read(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Reviews and abstracts with a labelled and an unlabelled split, idioms with a labelled one, nothing of BUSTM."""
  folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

  def text():
    return "".join(random.choice(list(SIGNS), random.integers(3, 12)))

  for split, rows in (("test_public", 21), ("test", 11)):
    labels = split == "test_public"
    reviews = [{"id": 50 + i, "sentence": text()} | ({"label": "Negative" if i % 3 else "Positive"} if labels else {})
               for i in range(rows)]  # fmt: skip
    write(folder / "fewclue" / "eprstmt" / f"{split}.json", reviews)
    abstracts = [text() for _ in range(5)]
    lists = [{"id": i, "abst": abstracts[i % 5], "keyword": [text()[:2], text()[:3]]} |
             ({"label": str(i % 2)} if labels else {}) for i in range(rows - 2)]  # fmt: skip
    write(folder / "fewclue" / "csl" / f"{split}.json", lists)
  blanks = [{"id": i, "candidates": IDIOMS, "content": f"{text()}，{text()}#idiom#。{text()}", "answer": i % 5}
            for i in range(9)]  # fmt: skip
  write(folder / "fewclue" / "chid" / "test_public.json", blanks)
  return folder


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "out"
  names = ["eprstmt", "cslf", "chidf", "bustm", "resume"]
  return folder, benchmark(model=str(MODEL), task=names, output_dir=str(folder), data_dir=str(data), **ASKED)


@pytest.fixture(scope="module")
def answered(data):
  """What the pipeline says of each item by itself, by task, with the rows as published."""
  pipeline = fsb_jax.pipeline("zero_shot", MODEL, max_length=96, batch_size=4)
  folders, found = {"eprstmt": "eprstmt", "cslf": "csl", "chidf": "chid"}, {}
  for task, folder in folders.items():
    rows = read(data / "fewclue" / folder / "test_public.json")
    items = encodings.clue_items(task, rows)
    found[task] = rows, items, pipeline([{k: v for k, v in item.items() if k != "label"} for item in items])
  return found


@pytest.mark.parametrize("task", ["eprstmt", "cslf", "chidf"])
def test_every_example_counts_once(done, answered, task):
  folder, report = done
  (scored,) = [each for each in report.tasks if each.task == task]
  rows, items, answers = answered[task]
  lines = read(folder / "predictions" / f"{task}_test_public.jsonl")
  assert [{name: line[name] for name in row} for line, row in zip(lines, rows, strict=True)] == rows
  chosen = [item["choice"].index(line["prediction"]) for item, line in zip(items, lines)]
  # Where the pipeline finds two options alike to the seventh digit, either may be chosen.
  likeliest = [max(answer["score"].values()) for answer in answers]
  np.testing.assert_allclose([answer["score"][line["prediction"]] for answer, line in zip(answers, lines)], likeliest,
                             atol=1e-6)  # fmt: skip
  np.testing.assert_allclose([line["score"] for line in lines], likeliest, atol=2e-6)
  right = [place == item["label"] for place, item in zip(chosen, items)]
  assert scored.examples == len(rows) and scored.scores["accuracy"].value == pytest.approx(np.mean(right))
  places = [item["label"] for item in items]
  assert scored.majority_baseline == max(map(places.count, places)) / len(places)
  expected = intervals(tasks.accuracy(places, chosen))["accuracy"]
  assert (scored.scores["accuracy"].low, scored.scores["accuracy"].high) == expected
  # Rows differ by much more than that, so that rows in another order would be seen.
  assert task == "chidf" or len({round(score, 5) for score in likeliest}) > 5
  wrong = {str(row["id"]): (item, line) for row, item, line, fine in zip(rows, items, lines, right) if not fine}
  assert {error.id for error in scored.worst_errors} == wrong.keys()
  if task == "chidf":
    assert not scored.confusion and set(scored.scores) == {"accuracy"}
    assert [line["submitted"] for line in lines] == chosen
    for error in scored.worst_errors:
      item, line = wrong[error.id]
      assert (error.target, error.prediction) == (item["answer"], line["prediction"])
  else:
    names = {"eprstmt": ("Negative", "Positive"), "cslf": ("1", "0")}[task]
    assert scored.label_names == names and np.trace(scored.confusion) == sum(right)
    np.testing.assert_array_equal(np.sum(scored.confusion, axis=1), [places.count(0), places.count(1)])


def test_the_benchmarks_own_rule_is_scored_beside(done, answered):
  _, report = done
  rows, items, answers = answered["cslf"]
  can = [answer["score"][item["choice"][0]] for item, answer in zip(items, answers)]
  right = 0
  for i, row in enumerate(rows):
    others = [can[j] for j, other in enumerate(rows) if other["abst"] == row["abst"]]
    better = sum(score > can[i] for score in others) < -(-len(others) // 2)
    right += row["label"] == "01"[better]
  (scored,) = [each for each in report.tasks if each.task == "cslf"]
  assert scored.scores["accuracy_by_rule"].value == pytest.approx(right / len(rows))
  assert "accuracy_by_rule" in report.settings


def test_the_report_says_what_is_missing_and_the_mean(done):
  folder, report = done
  for said in ("resume: tagging", "bustm test_public: no file", "bustm test: no file", "chidf test: no file"):
    assert said in report.settings["not scored"]
  *scored, average = report.tasks
  assert average.task == "average of 3 tasks" and average.examples == 21 + 19 + 9
  values = [each.scores["accuracy"] for each in scored]
  assert average.scores["accuracy"].value == pytest.approx(np.mean([each.value for each in values]))
  assert average.scores["accuracy"].low < average.scores["accuracy"].value < average.scores["accuracy"].high
  assert average.references == () and all(each.seconds > 0 for each in report.tasks)
  for name in ("report.json", "report.md", "report.html"):
    assert "average of 3 tasks" in (folder / name).read_text("utf-8")


def test_what_is_handed_in_is_whole(done, data):
  folder, _ = done
  archive = folder / "submission_test.zip"
  assert zipfile.ZipFile(archive).namelist() == ["eprstmt_predict.json", "cslf_predict.json"]
  for task, name in (("eprstmt", "eprstmt"), ("cslf", "csl")):
    check_submission(archive, task, [row["id"] for row in read(data / "fewclue" / name / "test.json")])
  assert not (folder / "submission_test_public.zip").exists()


def test_nothing_is_overwritten(done, data):
  folder, _ = done
  before = sorted(path.name for path in folder.rglob("*"))
  with pytest.raises(UserError, match="out already exists"):
    benchmark(model=str(MODEL), task="eprstmt", output_dir=str(folder), data_dir=str(data), **ASKED)
  assert sorted(path.name for path in folder.rglob("*")) == before


def test_models_of_several_training_sets(data, tmp_path, capsys):
  for number in "01":
    (tmp_path / f"run-eprstmt-{number}").symlink_to(MODEL)
  report = benchmark(
    model=str(tmp_path / "run-{task}-{split}"), task=["eprstmt"], output_dir=str(tmp_path / "out"), data_dir=str(data),
    training_sets=("0", "1"), submit_labelled=True, **ASKED,
  )  # fmt: skip
  of_task, average = report.spreads
  assert (of_task.task, len(of_task.values), of_task.standard_deviation) == ("eprstmt", 2, 0)
  assert of_task.mean == of_task.values[0] == average.mean
  assert [each.split for each in report.tasks] == [f"test_public, training set {number}" for number in "01"]
  for split in ("test", "test_public"):
    names = zipfile.ZipFile(tmp_path / "out" / f"submission_{split}.zip").namelist()
    assert names == ["eprstmt_predict_0.json", "eprstmt_predict_1.json"]
  assert capsys.readouterr().out.count("eprstmt test_public, training set") == 2


def test_a_part_is_marked_and_not_handed_in(data, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("fsb_jax.training.benchmark.warnings_of", lambda model, task, split: [f"{task} {split} was seen"])
  report = benchmark(
    model=str(MODEL), task="eprstmt", output_dir=str(tmp_path / "out"), data_dir=str(data), max_examples=7, **ASKED
  )
  assert report.title == "eprstmt (partial)" and "7 examples" in report.settings["partial"]
  assert report.settings["seen in training"] == "eprstmt test_public was seen; eprstmt test was seen"
  assert "warning: eprstmt test_public was seen" in capsys.readouterr().err
  (scored,) = report.tasks
  assert scored.examples == 7 and not list((tmp_path / "out").glob("submission*"))
  # From all over the file: every third row, so that labels that are sorted do not matter.
  lines = read(tmp_path / "out" / "predictions" / "eprstmt_test_public.jsonl")
  assert [line["id"] for line in lines] == list(range(50, 71, 3))
  texts = {str(line["id"]): line["sentence"] for line in lines}
  assert scored.worst_errors and all(error.text == texts[error.id] for error in scored.worst_errors)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"task": "nothing"}, "There is no task 'nothing'"),
    ({"task": "resume"}, "none of resume can be scored with VIEW 'unimc'"),
    ({"task": "bustm"}, "the data directory has no file of bustm for test_public"),
    ({"splits": "test"}, "SPLITS must be a list of splits"),
    ({"splits": ("tests",)}, "Task eprstmt has no split 'tests'"),
    ({"view": "classes"}, "unknown VIEW 'classes'"),
    ({"max_examples": 0}, "MAX_EXAMPLES 0 must be at least 1"),
    ({"model": "{split}", "training_sets": ("0", "9")}, "TRAINING_SETS must be two or more of 0, 1"),
    ({"model": "/no/model"}, "/no/model is neither a folder nor a Hub id"),
    ({"output_dir": "/no/folder/here"}, "there is no folder /no/folder"),
  ],
)
def test_mistakes_are_told_before_anything_is_written(data, tmp_path, changes, message):
  given = dict(model=str(MODEL), task="eprstmt", output_dir=str(tmp_path / "out"), splits=("test_public",))
  with pytest.raises(UserError, match=message):
    benchmark(**{**given, **changes}, data_dir=str(data))
  assert not list(tmp_path.iterdir())


def test_a_broken_file_is_no_missing_one(tmp_path):
  write(tmp_path / "fewclue" / "eprstmt" / "test.json", [{"id": 1, "sentence": "好", "label": "Positive"}])
  with pytest.raises(UserError, match="has a label, so this is not the split that is published without"):
    benchmark(model=str(MODEL), task="eprstmt", output_dir=str(tmp_path / "out"), data_dir=str(tmp_path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """What a run on TNEWS leaves behind, as far as warnings read it."""
  folder = tmp_path_factory.mktemp("runs") / "tnews"
  folder.mkdir()
  checkpoints.write_metadata(folder, checkpoints.Metadata(family="bert", head="masked_lm"), {})
  store = checkpoints.CheckpointStore(folder)
  store.save(3, {"x": np.zeros(1)}, progress={"task": "clue_classification", "split": "train"})
  store.close()
  return folder


def test_what_a_run_has_seen_is_told(trained, tmp_path):
  (said,) = warnings_of(trained, "tnewsf", "test_public")
  assert said == (
    f"{trained}: 2,010 of the 2,010 rows of tnewsf test_public are in tnews train: a model trained on these has seen "
    "their answers"
  )
  assert warnings_of(trained, "fewclue.tnewsf", "test_public") == [said]
  (other,) = warnings_of(trained, "tnews", "validation")
  assert "1,099 of the 10,000" in other
  assert warnings_of(trained, "tnewsf", "test") == warnings_of(trained, "eprstmt", "test_public") == []
  assert warnings_of(MODEL, "tnewsf", "test_public") == []
  # A converted model's folder has a step too, but no record of a run.
  converted = tmp_path / "converted"
  converted.mkdir()
  checkpoints.write_metadata(converted, checkpoints.Metadata(family="bert", head="masked_lm"), {})
  store = checkpoints.CheckpointStore(converted)
  store.save(0, {"x": np.zeros(1)})
  store.close()
  assert warnings_of(converted, "tnewsf", "test_public") == []


def test_scoring_says_what_a_run_has_seen(done, data, capsys, monkeypatch):
  monkeypatch.setattr("fsb_jax.training.evaluate.warnings_of", lambda model, task, split: [f"{task} {split} was seen"])
  asked = dict(model=str(MODEL), task="eprstmt", data_dir=str(data), view="unimc", split="test_public")
  scores = evaluate(**asked, **ASKED)["eprstmt"]
  assert "warning: eprstmt test_public was seen" in capsys.readouterr().err
  (scored,) = [each for each in done[1].tasks if each.task == "eprstmt"]
  assert scored.scores["accuracy"].value == pytest.approx(scores["accuracy"])


@pytest.mark.parametrize("task", ["cluewscf", "tnewsf", "csldcp", "bustm"])
def test_classes_are_handed_in_as_published(task, data):
  """What a classifier answers, whose places are the ids of labels."""
  names = tasks.info(task).label_names
  loader = SimpleNamespace(items=None)
  published = Answers(loader, np.eye(len(names)), np.zeros(len(names)), 0.0).published(task)
  known = {"cluewscf": ["false", "true"], "bustm": ["0", "1"], "csldcp": list(names)}
  assert published == known.get(task, list(encodings.CLUE_FORMS[task].options) if task == "tnewsf" else None)


def test_answers_are_those_of_the_tasks_own_outputs(data):
  """Of a head over several tasks only the asked one's outputs count; every example is answered in the file's order."""
  tokenizer = encodings.load_tokenizer(MODEL)
  loader = Loader("fewclue.cslf", "test_public", tokenizer, 96, 8, shuffle=False, data_dir=data)
  first, last = loader.label_slice
  outputs = len(loader.label_names)
  outside = [i for i in range(outputs) if not first <= i < last]
  assert first > 0 and outside

  def step(params, batch):
    logits = np.eye(outputs)[np.maximum(batch["labels"], 0)]
    logits[:, outside] = 9
    return {"logits": logits, **{name: batch[name] for name in ("labels", "weights", "example_ids")}}

  answers = answer_split(loader, step, None, SimpleNamespace(shard_batch=lambda batch: batch))
  rows = read(data / "fewclue" / "csl" / "test_public.json")
  assert answers.published("cslf") == [row["label"] for row in rows] and answers.labelled
  np.testing.assert_array_equal(answers.places, answers.labels)
  np.testing.assert_allclose(answers.probabilities.max(axis=1), np.e / (np.e + 1), rtol=1e-12)


def test_batches_of_short_rows_answer_fewer_options(data):
  tokenizer = encodings.load_tokenizer(MODEL)
  loader = Loader(
    "chidf", "test_public", tokenizer, 96, 8, shuffle=False, view="unimc", buckets=1, data_dir=data
  )  # fmt: skip

  def step(params, batch):
    logits = np.zeros((8, 3 if batch["weights"].all() else 5))
    return {"logits": logits, "labels": batch["option_label"], **{n: batch[n] for n in ("weights", "example_ids")}}

  answers = answer_split(loader, step, None, SimpleNamespace(shard_batch=lambda batch: batch))
  shares = sorted(answers.probabilities.tolist())
  assert shares == [[0.2] * 5, *[pytest.approx([1 / 3] * 3 + [0, 0])] * 8]


@pytest.mark.slow
def test_a_classifier_is_scored_as_evaluate_scores_it(data, tmp_path):
  from tiny_run import run

  write(tmp_path / "fewclue" / "eprstmt" / "train_0.json", read(data / "fewclue" / "eprstmt" / "test_public.json"))
  write(tmp_path / "fewclue" / "eprstmt" / "dev_0.json", read(data / "fewclue" / "eprstmt" / "test_public.json"))
  tokenizer = encodings.bert_tokenizer_from_characters(SIGNS, tmp_path / "tokenizer")
  run(
    tmp_path / "run", "eprstmt", tokenizer, 4, train_split="train_0", validation_split="dev_0",
    data_dir=str(tmp_path), batch_size=16,
  )  # fmt: skip
  asked = dict(model=str(tmp_path / "run"), feature_lengths={"inputs": 16}, batch_size=8, data_dir=str(data))
  report = benchmark(task="eprstmt", output_dir=str(tmp_path / "out"), view=None, **asked)
  scores = evaluate(task="eprstmt", split="test_public", **asked)["eprstmt"]
  assert report.tasks[0].scores["accuracy"].value == pytest.approx(scores["accuracy"])
  assert report.tasks[0].majority_baseline == pytest.approx(scores["majority_baseline"])
  assert zipfile.ZipFile(tmp_path / "out" / "submission_test.zip").namelist() == ["eprstmt_predict.json"]


CHID = {
  "candidates": IDIOMS,
  "content": ["大喜，这#idiom000001#了。车很大，那#idiom000002#。", "房#idiom000003#好。"],
}
RIGHT = {"#idiom000001#": 2, "#idiom000002#": 0, "#idiom000003#": 4, "#idiom000004#": 1}
C3 = [
  [["男：吃？", "女：好。"], [{"question": "用？", "choice": ["大", "好"], "answer": "好"},
                            {"question": "车？", "choice": ["电", "大", "喜"], "answer": "电"}], "1-1"],
  [["大电。"], [{"question": "理？", "choice": ["大", "然"], "answer": "然"}], "1-2"],
]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_of_several_questions_are_asked_one_by_one(tmp_path, split):
  last = {"candidates": IDIOMS, "content": ["法#idiom000004#。"]}
  rows = [CHID, last]
  write(tmp_path / "chid" / "train.json", rows)
  write(tmp_path / "chid" / "test1.1.json", rows)
  write(tmp_path / "chid" / "train_answer.json", [RIGHT])
  hidden = [
    [text, [{**each, "id": f"{name}, {i}"} for i, each in enumerate(asked)], name] for text, asked, name in C3
  ]
  for each in hidden if split == "test" else ():
    for question in each[1]:
      del question["answer"]
  write(tmp_path / "c3" / "d-train.json", [C3])
  write(tmp_path / "c3" / "m-train.json", [C3[1:]])
  write(tmp_path / "c3" / "test1.1.json", [hidden])
  tokenizer = encodings.load_tokenizer(MODEL)
  expected = {
    "chid": encodings.clue_items("chid", rows, RIGHT if split == "train" else None),
    "c3": encodings.clue_items("c3", hidden + (C3[1:] if split == "train" else [])),
  }
  for name, items in expected.items():
    loader = Loader(name, split, tokenizer, 96, 2, shuffle=False, view="unimc", buckets=1, data_dir=tmp_path)
    assert loader.num_examples == len(items) and loader.head == "masked_lm"
    for i, item in enumerate(items):
      assert {**loader.items[i], "label": 0, "id": 0} == {**item, "label": 0, "id": 0}
      assert list(loader.options(i)) == item["choice"]
    labels = {int(i): int(label) for batch in loader.batches(0)
              for i, label in zip(batch["example_ids"], batch["option_label"])}  # fmt: skip
    assert [labels[i] for i in range(len(items))] == [
      item["label"] if split == "train" else encodings.IGNORED for item in items
    ]
    with pytest.raises(UserError, match=f"Task {name} .* not serve yet; .*; VIEW='unimc' asks it"):
      Loader(name, split, tokenizer, 96, 2, shuffle=False, data_dir=tmp_path)


def test_no_idiom_twice_in_a_line(tmp_path):
  """All three blanks like the first idiom best: the surest gets it, then the third is surer of the second idiom."""
  write(tmp_path / "chid" / "test1.1.json", [CHID])
  loader = Loader(
    "chid", "test", encodings.load_tokenizer(MODEL), 96, 2, shuffle=False, view="unimc", buckets=1, data_dir=tmp_path
  )
  likes = np.array([[0.5, 0.3, 0.1, 0.06, 0.04], [0.6, 0.1, 0.2, 0.05, 0.05], [0.4, 0.35, 0.05, 0.1, 0.1]])
  answers = Answers(loader, likes, np.full(3, -100), 0.0)
  assert answers.published("chid") == [2, 0, 1] and answers.places.tolist() == [0, 0, 0]
  assert not answers.labelled
