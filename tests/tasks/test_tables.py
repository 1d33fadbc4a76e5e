import gzip

import pytest

from fsb_jax import tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import load_split


def declared(name, files, *arguments, **options):
  task = tasks.table_task(name, files, *arguments, **options)
  assert known_tasks()[name] is task
  return task


def examples(task, split="train"):
  return load_split(task, split, None).examples


def test_csv_with_pairs(tmp_path):
  train, test = tmp_path / "train.csv", tmp_path / "test.csv"
  train.write_bytes("\ufeff问,答,类\n".encode() + '"你好，""朋友""\n再见",好,乙\n天气,晴,甲\n'.encode())
  test.write_text("问,答\n几点,三点\n", "utf-8")
  task = declared("questions", {"train": train, "test": test}, "问", "答", "类")
  assert task.label_names == ("乙", "甲") and task.has_pair
  assert examples(task) == [
    {"id": 0, "text": '你好，"朋友"\n再见', "text_pair": "好", "label": 0},
    {"id": 1, "text": "天气", "text_pair": "晴", "label": 1},
  ]
  assert load_split(task, "train", None).fields[1] == {"问": "天气", "答": "晴", "类": "甲"}
  assert examples(task, "test") == [{"id": 0, "text": "几点", "text_pair": "三点", "label": -1}]
  assert tasks.info("questions").label_slice == (0, 2)


def test_tsv_takes_quotation_marks_as_text(tmp_path):
  path = tmp_path / "train.tsv.gz"
  path.write_bytes(gzip.compress('label\ttext_a\n1\t"只有一半\n\n0\t他说"好"\n'.encode()))
  task = declared("reviews", {"train": path}, "text_a")
  assert [(row["text"], row["label"]) for row in examples(task)] == [('"只有一半', 1), ('他说"好"', 0)]


def test_json_lines_and_given_label_names(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"t": "晴", "label": 3}\n{"t": "雨", "label": 1}\n', "utf-8")
  task = declared("weather", {"train": path, "test": path}, "t", label_names=["3", "2", "1"])
  assert [row["label"] for row in examples(task)] == [0, 2]
  assert [row["label"] for row in examples(task, "test")] == [0, 2]
  again = declared("weather", {"train": path}, "t")
  assert again.label_names == ("1", "3")


def test_a_long_document_is_one_row(tmp_path):
  path = tmp_path / "train.csv"
  path.write_text(f"text,label\n{'长' * 200_000},a\n", "utf-8")
  assert len(examples(declared("long", {"train": path}, "text"))[0]["text"]) == 200_000


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.csv", "text,label\nx,a\ny\n", "a.csv, line 3: has 1 columns where the first line names 2"),
    ("a.csv", "text,label\nx,a\ny,b,c\n", "a.csv, line 3: has 3 columns where the first line names 2"),
    ("a.csv", "text,kind\nx,a\n", "a.csv: no column 'label'; its columns are text, kind"),
    ("a.csv", "title,label\nx,a\n", "a.csv: no column 'text'; its columns are title, label"),
    ("a.csv", "text,text,label\nx,y,a\n", "a.csv: its first line names a column twice"),
    ("a.csv", 'text,label\n"x"y,a\n', "a.csv, line 2: not valid CSV"),
    ("a.csv", "", "a.csv: is empty; its first line must name the columns"),
    ("a.csv", "text,label\n", "a.csv: has no rows"),
    ("a.csv", "text,label\nx,a\ny,\n", "a.csv, line 3: 'label' is '', and a label must be text"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n', "a.jsonl, line 2: no field 'label'"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": null}\n', "a.jsonl, line 2: 'label' is None"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": true}\n', "a.jsonl, line 2: 'label' is True"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
    ("a.xlsx", "x", "a.xlsx: a table is a .csv, .tsv, .json, .jsonl or .parquet file"),
  ],
)
def test_malformed_tables_are_named(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_text(content, "utf-8")
  with pytest.raises(UserError) as raised:
    tasks.table_task("broken", {"train": path}, "text")
  assert message in str(raised.value)


def test_mistakes_are_named(tmp_path):
  path = tmp_path / "train.csv"
  path.write_text("text,label\nx,a\ny,b\n", "utf-8")
  with pytest.raises(UserError, match="'tnews' is taken"):
    tasks.table_task("tnews", {"train": path}, "text")
  with pytest.raises(UserError, match="'clue_classification.mine' is taken"):
    tasks.table_task("clue_classification.mine", {"train": path}, "text")
  with pytest.raises(UserError, match="absent.csv, does not exist"):
    tasks.table_task("mine", {"train": tmp_path / "absent.csv"}, "text")
  with pytest.raises(UserError, match="give label_names"):
    tasks.table_task("mine", {"validation": path}, "text")
  task = tasks.table_task("mine", {"train": path}, "text", label_names=["a"])
  with pytest.raises(UserError, match="line 3: unknown label 'b' in 'label'; the known labels are a"):
    examples(task)
  with pytest.raises(UserError, match="'a' is listed twice"):
    tasks.table_task("mine", {"train": path}, "text", label_names=["a", "a"])
