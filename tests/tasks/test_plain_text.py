import gzip
import json

import pytest
import seqio

import gin
from fsb_jax import tasks
from fsb_jax.encodings import encode_documents
from fsb_jax.errors import UserError
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.training import gin_utils


def documents(task, split="train"):
  return [(where.rsplit("/", 1)[-1], fields["text"]) for where, fields in task.read(split, None)]


def test_lines_blocks_and_json(tmp_path):
  (tmp_path / "a.txt").write_bytes("\ufeff今天晴\r\n\n 明天雨 \n".encode())
  (tmp_path / "b.txt.gz").write_bytes(gzip.compress("后天阴".encode()))
  (tmp_path / "c.jsonl").write_text('{"body": "大风"}\n\n{"body": " "}\n{"body": "小雪\\n\\n冷"}\n', "utf-8")
  files = {
    "train": [str(tmp_path / "a.txt"), tmp_path / "b.txt.gz"], "validation": tmp_path / "c.jsonl", "test": None
  }
  task = tasks.plain_text_task("news", files, "body")
  assert known_tasks()["news"] is task and task.splits == ("train", "validation")
  assert documents(task) == [
    ("a.txt, line 1", "今天晴"), ("a.txt, line 3", " 明天雨 "), ("b.txt.gz, line 1", "后天阴")
  ]
  assert documents(task, "validation") == [("c.jsonl, line 1", "大风"), ("c.jsonl, line 4", "小雪\n\n冷")]
  (tmp_path / "a.txt").write_text("\n\n今天晴\n也热\n\n \n\n明天雨\n", "utf-8")
  task = tasks.plain_text_task("news", {"train": tmp_path / "a.txt"}, documents="blocks")
  assert documents(task) == [("a.txt, line 3", "今天晴\n也热"), ("a.txt, line 8", "明天雨")]


def test_patterns(tmp_path):
  for name in ("2.txt", "10.txt", "other.jsonl", "[1].txt"):
    (tmp_path / name).write_text('{"text": "文"}\n' if name.endswith("jsonl") else f"{name}\n", "utf-8")
  (tmp_path / "3.txt").mkdir()
  task = tasks.plain_text_task("news", {"train": [str(tmp_path / "*.txt"), str(tmp_path / "[1].txt")]})
  assert [text for _, text in documents(task)] == ["10.txt", "2.txt", "[1].txt", "[1].txt"]
  assert task.summary == "documents of 10.txt, 2.txt, [1].txt"
  for number in range(5, 10):
    (tmp_path / f"{number}.txt").write_text("好", "utf-8")
  task = tasks.plain_text_task("news", {"train": str(tmp_path / "*.txt")})
  assert task.summary == "documents of 10.txt, 2.txt, 5.txt and 5 more files"


def test_documents_are_read_as_they_are_asked_for(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes("好\n".encode() * 3 + b"\xff\n")
  rows = tasks.plain_text_task("news", {"train": path}).read("train", None)
  assert [next(rows)[1]["text"] for _ in range(3)] == ["好"] * 3
  with pytest.raises(UserError, match="a.txt, line 4: not UTF-8"):
    next(rows)


def test_the_task_describes_itself(tmp_path):
  (tmp_path / "corpus.txt").write_text("好\n", "utf-8")
  tasks.plain_text_task("news", {"train": tmp_path / "corpus.txt"})
  info = tasks.info("news")
  assert (info.head, info.label_names, info.label_slice, info.has_pair) == ("masked_lm", (), (0, 0), False)
  assert info.describe() == "news: documents of corpus.txt; plain text, for masked language modelling"
  assert "news" in tasks.names()
  assert tasks.info("tnews").head == "sequence_classification"


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.txt", b"", "a.txt: has no text."),
    ("a.txt", b"\n \n", "a.txt: has no text."),
    ("a.txt", b"\xff\xfe\n", "a.txt, line 1: not UTF-8"),
    ("a.txt.gz", b"plain", "a.txt.gz is damaged"),
    ("a.csv", b"text\nx\n", "a.csv: text is read from a .txt, .json or .jsonl file"),
    ("a.json", b'[{"text": "x"}]', "a.json, line 1: must be one JSON object, not list"),
    ("a.jsonl", b'{"text": \n', "a.jsonl, line 1: not valid JSON"),
    ("a.jsonl", b'{"title": "x"}\n', "a.jsonl, line 1: no field 'text'; it has title"),
    ("a.jsonl", b'\n{"text": 3}\n', "a.jsonl, line 2: field 'text' must be text, not int"),
    ("a.jsonl", b'{"text": "\\ud83d"}\n', "a.jsonl, line 1: field 'text' is not valid Unicode"),
  ],
)
def test_malformed_files_are_named_at_once(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as raised:
    tasks.plain_text_task("broken", {"train": tmp_path / name})
  assert str(raised.value).startswith(f"{tmp_path}/{message}")
  assert "broken" not in tasks.names()


def test_mistakes_are_named(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("好\n", "utf-8")
  for files, options, message in (
    ({"train": tmp_path / "b.txt"}, {}, "the file of its split 'train', .*b.txt, does not exist"),
    ({"train": path, "validation": str(tmp_path / "*.gz")}, {}, r"split 'validation', .*\*.gz, does not exist"),
    ({"train": []}, {}, "its split 'train' names no file"),
    ({"train": None}, {}, "Text task news names no file"),
    ({"train": path}, {"documents": "pages"}, "documents must be 'lines' or 'blocks', not 'pages'"),
  ):
    with pytest.raises(UserError, match=message):
      tasks.plain_text_task("news", files, **options)
  with pytest.raises(UserError, match="'tnews' is taken"):
    tasks.plain_text_task("tnews", {"train": path})
  with pytest.raises(UserError, match="letters, digits"):
    tasks.plain_text_task("my news", {"train": path})


@pytest.mark.parametrize("whole_words", [True, False])
def test_the_seqio_task_gives_the_rows(tokenizer, tmp_path, whole_words):
  texts = ["明天会下雨吗，昨晚的球赛", "猫", "", "怎么改密码" * 9]
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
  tasks.plain_text_task("news", {"train": path}, whole_words=whole_words)
  tasks.register(tokenizer)
  task = seqio.TaskRegistry.get("news")
  lengths = {"input_ids": 16, "token_type_ids": 16, "word_ids": 16}
  expected = encode_documents(tokenizer, texts, max_length=16, whole_words=whole_words)

  def rows(**options):
    dataset = task.get_dataset(lengths, "train", **{"shuffle": False, "num_epochs": 1, **options})
    return [{name: row[name].tolist() for name in expected} for row in dataset.as_numpy_iterator()]

  assert rows() == [
    {name: row.tolist() for name, row in zip(expected, each)} for each in zip(*expected.values(), strict=True)
  ]
  assert task.num_input_examples("train") == 3
  shards = [rows(shard_info=seqio.ShardInfo(index, 2), shuffle=True, seed=0) for index in range(2)]
  assert all(shards) and sorted(map(str, sum(shards, []))) == sorted(map(str, rows()))


def test_the_gin_file_declares_the_task(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"body": "好"}\n', "utf-8")
  (tmp_path / "b.txt").write_text("今天\n晴\n\n明天\n", "utf-8")
  bindings = [
    f"TRAIN_FILES=['{tmp_path}/*.jsonl']", f"VALIDATION_FILES={tmp_path}/b.txt", "TEXT_COLUMN=body",
    "DOCUMENTS=blocks", "WHOLE_WORDS=False",
  ]
  try:
    declare, _ = gin_utils.configured(tasks.plain_text_task, ["gin/tasks/text.gin"], bindings)
    task = declare()
  finally:
    gin.clear_config()
  assert known_tasks()["text"] is task and task.splits == ("train", "validation") and not task.whole_words
  assert documents(task) == [("a.jsonl, line 1", "好")]
  assert documents(task, "validation") == [("b.txt, line 1", "今天\n晴"), ("b.txt, line 4", "明天")]
