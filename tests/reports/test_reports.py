"""Reports hold the numbers they were given, and nothing that a text of an example says can change the page."""

import dataclasses
import html.parser
import json
import statistics

import numpy as np
import pytest
import sklearn.metrics

from fsb_jax import reports
from fsb_jax.errors import UserError
from fsb_jax.reports.content import WORST
from fsb_jax.tasks.metrics import entity_f1
from fsb_jax.tasks.metrics_text import reading_comprehension

NAMES = ("故事", "文化", "娱乐")
HOSTILE = "<script>alert('一')</script> & \"二\" | `三` ![四](http://x) \u202e\x00 行一\n行二 <img src=x>\ud800"


def softmax(logits):
  return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def classified(examples=40, names=NAMES, seed=0, text="一句话", task="tnews"):
  random = np.random.default_rng(seed)
  targets = random.integers(len(names), size=examples)
  probabilities = softmax(random.normal(size=(examples, len(names))) + 2 * np.eye(len(names))[targets])
  report = reports.classification_report(
    task, "validation", names, targets, probabilities,
    ids=range(100, 100 + examples), texts=[f"{text}{i}" for i in range(examples)], seconds=1.25, resamples=200,
  )  # fmt: skip
  return report, targets, probabilities


def whole(*tasks, **more):
  return reports.Report(
    "Evaluation", "models/<b>bert</b>", "2026-01-02 03:04", tuple(tasks), settings={"batch size": "8"}, **more
  )


class Page(html.parser.HTMLParser):
  """The elements of a page, and the text of all its cells."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.cells = [], [], []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag != "meta":
      self.open.append(tag)
    if tag in ("td", "th"):
      self.cells.append("")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if {"td", "th"} & {*self.open}:
      self.cells[-1] += data


def test_a_classification():
  report, targets, probabilities = classified()
  predictions = probabilities.argmax(-1)
  assert report.examples == 40 and report.metric == "accuracy" and report.seconds == 1.25
  assert report.scores["accuracy"].value == np.mean(targets == predictions)
  expected = sklearn.metrics.f1_score(targets, predictions, average="macro")
  assert report.scores["macro_f1"].value == pytest.approx(expected, abs=1e-12)
  for score in report.scores.values():
    assert 0 < score.low < score.value < score.high < 1
  assert np.array_equal(report.confusion, sklearn.metrics.confusion_matrix(targets, predictions))
  assert report.majority_baseline == np.bincount(targets).max() / 40
  assert report.references == reports.references("tnews") != ()


def test_the_most_confident_errors_come_first():
  report, targets, probabilities = classified(examples=200)
  predictions, confidence = probabilities.argmax(-1), probabilities.max(-1)
  wrong = sorted(np.flatnonzero(predictions != targets), key=lambda i: -confidence[i])
  assert len(wrong) > WORST == len(report.worst_errors)
  for i, error in zip(wrong, report.worst_errors):
    assert error == reports.WorstError(
      str(100 + i), f"一句话{i}", NAMES[targets[i]], NAMES[predictions[i]], pytest.approx(confidence[i], abs=1e-6)
    )


def test_the_worst_answers_come_first():
  answers, written = [["范廷颂"], ["1963年"], ["越南"]], ["枢机", "1963", "越南"]
  measured = reading_comprehension(answers, written)
  report = reports.task_report(
    "cmrc2018", "validation", measured, "f1",
    ids=["A", "B", "C"], texts=["问一", "问二", "问三"], targets=[a[0] for a in answers], predictions=written,
  )  # fmt: skip
  assert [error.id for error in report.worst_errors] == ["A", "B"]  # the third has nothing wrong
  assert [error.score for error in report.worst_errors] == pytest.approx([0, 2 / 3], abs=1e-6)
  assert report.scores["exact_match"].value == pytest.approx(1 / 3) and report.confusion == ()
  page = Page(reports.to_html(whole(report)))
  assert "RoBERTa-wwm-ext-large" in page.cells and "90.60" in page.cells


def test_spreads_over_training_sets():
  runs = [[classified(seed=seed)[0], classified(seed=seed + 50, task="iflytek")[0]] for seed in range(5)]
  found = reports.spreads(runs)
  assert [each.task for each in found] == ["tnews", "iflytek", "average"]
  values = [[report.scores["accuracy"].value for report in run] for run in runs]
  for i, each in enumerate(found[:2]):
    assert each.values == tuple(row[i] for row in values)
    assert (each.mean, each.standard_deviation) == pytest.approx(
      (statistics.mean(each.values), np.std(each.values, ddof=1))
    )
  assert found[2].values == pytest.approx([np.mean(row) for row in values])
  assert any(row.model == "UniMC-1.3B" and row.value == 0.7205 for row in found[2].references)
  report = whole(spreads=found)
  for text in (reports.to_html(report), reports.to_markdown(report)):
    assert f"{100 * found[1].standard_deviation:.2f}" in text
    assert "UniMC-1.3B" in text and "72.05" in text and text.count("this model") == 1
  with pytest.raises(UserError, match="at least two training sets, not 1"):
    reports.spreads(runs[:1])
  with pytest.raises(UserError, match="set 1 on tnews"):
    reports.spreads([runs[0], runs[1][:1]])


def test_json_holds_everything():
  report = whole(classified()[0], classified(task="其他", text=HOSTILE)[0], confidence=0.9)
  read = json.loads(reports.to_json(report).encode())
  assert read == json.loads(json.dumps(dataclasses.asdict(report)))
  assert read["tasks"][0]["scores"]["accuracy"]["value"] == report.tasks[0].scores["accuracy"].value


def test_hostile_texts_stay_texts():
  report = whole(classified(text=HOSTILE, names=("<b>甲", "乙\"'", "丙|丁"))[0])
  page = Page(reports.to_html(report))
  assert {tag for tag, _ in page.tags} == {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table", "thead", "tbody", "tr",
    "th", "td", "i", "bdi",
  }  # fmt: skip
  assert {name for _, attributes in page.tags for name in attributes} <= {
    "lang", "charset", "name", "content", "http-equiv", "class", "style", "title",
  }  # fmt: skip
  shown = "<script>alert('一')</script> & \"二\" | `三` ![四](http://x) \ufffd\ufffd 行一 行二 <img src=x>\ufffd"
  assert any(cell.startswith(shown) for cell in page.cells)
  assert "models/<b>bert</b>" in page.cells and "<b>甲" in page.cells

  text = reports.to_markdown(report)
  text.encode()
  rows = [line for line in text.splitlines() if "行一" in line]
  assert len(rows) == len(report.tasks[0].worst_errors) > 0
  for row in rows:
    bare = row.replace("\\\\", "").replace("\\|", "")
    assert bare.count("|") == 6  # five columns
    assert not any(sign in row.replace(f"\\{sign}", "") for sign in "<>`[&")


def test_the_page_of_a_hundred_labels():
  names = tuple(f"类别{i}" for i in range(119))
  report, targets, probabilities = classified(examples=500, names=names)
  text = reports.to_html(whole(report))
  page = Page(text)
  cells = [attributes for tag, attributes in page.tags if tag == "td" and attributes.get("class") in ("right", "wrong")]
  assert len(cells) == np.count_nonzero(report.confusion)
  assert sum(1 for cell in cells if cell["class"] == "right") == np.count_nonzero(np.diag(report.confusion))
  shares = [int(count) / sum(row) for row in report.confusion for count in row if count]
  assert [cell["style"] for cell in cells] == [f"--share:{65 * share:.1f}%" for share in shares]
  empty = sum(1 for tag, attributes in page.tags if tag == "td" and not attributes)
  assert len(cells) + empty >= 119**2
  assert len(text) < 400_000


def test_scores_stand_among_published_ones():
  report, *_ = classified(task="chnsenticorp")
  own = reports.to_markdown(whole(report)).split("### Beside published scores")[1].split("###")[0]
  values = [float(line.split("|")[3]) for line in own.splitlines() if "accuracy" in line]
  assert values == sorted(values, reverse=True) and len(values) == len(report.references) + 1
  assert own.count("this model") == 1  # there is no published macro-F1 to stand beside
  page = Page(reports.to_html(whole(report)))
  assert [attributes for tag, attributes in page.tags if attributes.get("class") == "own"]
  assert "Beside published" not in reports.to_html(whole(classified(task="mine")[0]))


def test_published_scores():
  found = {(row.model, row.metric): row for row in reports.references("cmrc2018")}
  assert found["RoBERTa-wwm-ext-large", "exact_match"].value == 0.742
  assert found["ELECTRA-180g-large", "f1"].value == 0.885
  assert [row.value for row in reports.references("cmnli") if row.model == "Erlangshen-MegatronBert-3.9B"] == [0.8517]
  tasks = ("cmrc2018", "drcd", "xnli", "chnsenticorp", "lcqmc", "bq", "afqmc", "tnews", "iflytek", "ocnli", "cmnli")
  for task in (*tasks, "zeroclue", "fewclue"):
    rows = reports.references(task)
    assert rows and all(0.2 < row.value < 1 and row.source.startswith("https://") for row in rows), task
    assert len({(row.model, row.metric) for row in rows}) == len(rows), task


def test_files(tmp_path):
  report = whole(classified()[0])
  written = reports.write_report(report, tmp_path, "tnews")
  assert [path.name for path in written] == ["tnews.json", "tnews.md", "tnews.html"]
  assert json.loads(written[0].read_text())["title"] == "Evaluation"
  written[0].unlink()
  with pytest.raises(UserError, match="tnews.md already exists"):
    reports.write_report(report, tmp_path, "tnews")
  assert not written[0].exists()


def test_where_nothing_was_to_be_found_nothing_is_wrong():
  measured = entity_f1([[], ["人"], []], [[], ["人"], ["地"]])
  report = reports.task_report(
    "cluener", "validation", measured, "f1", ids=[0, 1, 2], texts=["一"] * 3, targets=["", "人", ""],
    predictions=["", "人", "地"],
  )  # fmt: skip
  assert [error.id for error in report.worst_errors] == ["2"]


def test_a_choice_has_no_classes():
  """Examples with options of their own: errors are told in their words, and there is nothing to confuse."""
  options = [("山", "水", "火"), ("一", "二"), ("甲", "乙", "丙")]
  probabilities = np.array([[0.1, 0.7, 0.2], [0.6, 0.4, 0.0], [0.2, 0.0, 0.8]])
  report = reports.classification_report(
    "c3", "validation", (), [0, 0, 1], probabilities, ids="abc", texts=["1", "2", "3"], options=options, resamples=50
  )
  assert set(report.scores) == {"accuracy"} and report.scores["accuracy"].value == pytest.approx(1 / 3)
  assert report.confusion == () and report.label_names == () and report.majority_baseline == pytest.approx(2 / 3)
  errors = [(error.id, error.target, error.prediction, error.score) for error in report.worst_errors]
  assert errors == [("c", "乙", "丙", 0.8), ("a", "山", "水", 0.7)]
  assert "Confusions" not in reports.to_html(whole(report)) and "丙" in reports.to_markdown(whole(report))
