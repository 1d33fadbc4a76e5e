"""The command line as people meet it: what it says when they err, and how fast it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = ("train", "--gin_file=gin/runs/finetune.gin")
# A tiny model from scratch needs no checkpoint; its tokenizer is the lexicon's.
SCRATCH = ("train", "--gin_file=gin/experiments/quickstart.gin", "--gin.MODEL_DIR=run", "--gin.TRAIN_STEPS=1")


def one_sentence(error):
  """The one line a mistake is told in, after lines that say what is being read."""
  *before, last = error.strip().splitlines()
  assert all(line.startswith("reading ") for line in before), error
  assert last.startswith("fsb: ")
  return last


def test_wrong_gin_file(fsb):
  status, _, error = fsb("train", "--gin_file=gin/runs/finetunes.gin")
  assert status == 2
  assert "no gin file 'gin/runs/finetunes.gin'" in one_sentence(error)
  assert "did you mean gin/runs/finetune.gin?" in error


def test_wrong_gin_name(fsb):
  status, _, error = fsb(*TRAIN, "--gin.BATCHSIZE=4")
  assert status == 2
  assert "--gin.BATCHSIZE: the gin files have no BATCHSIZE; did you mean BATCH_SIZE?" in one_sentence(error)


def test_required_settings_are_asked_for_at_once(fsb):
  status, _, error = fsb(*TRAIN, "--gin.TRAIN_STEPS=5")
  assert status == 2
  sentence = one_sentence(error)
  assert "INITIAL_CHECKPOINT_PATH, MIXTURE_OR_TASK_NAME, MODEL_DIR" in sentence and "TRAIN_STEPS" not in sentence


@pytest.mark.parametrize(
  ("setting", "words"),
  [
    ("DTYPE=float99", "unknown dtype 'float99'"),
    ("DTYPE=float16", "use bfloat16"),
    ("REMAT=everything", "unknown remat 'everything'; known: none, full"),
    ("MODEL_DIR=", "gin: "),
  ],
)
def test_wrong_choices(fsb, setting, words):
  status, _, error = fsb(*SCRATCH, f"--gin.{setting}")
  assert status == 2 and words in one_sentence(error)


@pytest.mark.parametrize(("value", "words"), [("true", "write True"), ("[1, 2", "gin: ")])
def test_wrong_gin_value(fsb, value, words):
  status, _, error = fsb(*TRAIN, f"--gin.TRAIN_STEPS={value}")
  assert status == 2 and words in one_sentence(error)


def test_wrong_type_of_a_setting(fsb):
  status, _, error = fsb(*SCRATCH, "--gin.TRAIN_STEPS=many")
  assert status == 2 and "TRAIN_STEPS must be a whole number above 0, not 'many'" in one_sentence(error)


def test_unknown_option(fsb):
  status, _, error = fsb(*TRAIN, "--batch-size=4")
  assert status == 2 and "unknown option --batch-size=4" in one_sentence(error)


def test_unknown_task(fsb):
  status, _, error = fsb(*SCRATCH, "--gin.MIXTURE_OR_TASK_NAME=tnew")
  assert status == 2 and "no task 'tnew'" in one_sentence(error) and "tnews" in error


def test_missing_data_file(fsb, tmp_path):
  (tmp_path / "data").mkdir()
  status, _, error = fsb(*SCRATCH, "--gin.MIXTURE_OR_TASK_NAME=tnews", "--gin.DATA_DIR=data")
  sentence = one_sentence(error)
  assert status == 2
  assert "tnews" in sentence and "data" in sentence and "CLUE" in sentence


def test_no_cache(fsb):
  status, _, error = fsb(*SCRATCH, "--gin.CACHE_DIR=nowhere")
  assert status == 2
  assert "CACHE_DIR nowhere has no split 'train' of jieba_lexicon; make it with fsb data cache" in one_sentence(error)


def test_no_data_directory(fsb):
  status, _, error = fsb(*SCRATCH, "--gin.MIXTURE_OR_TASK_NAME=tnews")
  assert status == 2 and "FSB_DATA_DIR" in one_sentence(error)


def test_malformed_line_17(fsb, tmp_path):
  rows = [json.dumps({"text": "好", "label": "a"}, ensure_ascii=False)] * 20
  rows[16] = '{"text": "好", "label": '
  (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
  status, _, error = fsb(*SCRATCH, "--gin_file=gin/tasks/table.gin", "--gin.TRAIN_FILE=rows.jsonl")
  assert status == 2 and "rows.jsonl, line 17: not valid JSON" in one_sentence(error)


def test_missing_column(fsb, tmp_path):
  (tmp_path / "rows.csv").write_text("review,label\n好,a\n", encoding="utf-8")
  status, _, error = fsb(*SCRATCH, "--gin_file=gin/tasks/table.gin", "--gin.TRAIN_FILE=rows.csv")
  assert status == 2 and "no column 'text'; its columns are review, label" in one_sentence(error)


@pytest.mark.parametrize(
  "command",
  [
    (*TRAIN, "--gin.MIXTURE_OR_TASK_NAME=tnews", "--gin.MODEL_DIR=run", "--gin.TRAIN_STEPS=1",
     "--gin.INITIAL_CHECKPOINT_PATH=empty"),
    ("convert", "import", "empty", "target"),
    ("convert", "inspect", "empty"),
    ("predict", "text_classification", "--model", "empty", "--text", "好"),
  ],
  ids=["train", "import", "inspect", "predict"],
)
def test_a_folder_that_is_no_model(fsb, tmp_path, command):
  (tmp_path / "empty").mkdir()
  status, _, error = fsb(*command)
  assert status == 2 and "empty" in one_sentence(error)


def test_neither_folder_nor_hub_id(fsb):
  status, _, error = fsb("convert", "import", "erlangshen", "target")
  assert status == 2 and "erlangshen is neither a folder nor a Hub id (ORGANISATION/NAME)" in one_sentence(error)


@pytest.mark.parametrize(
  ("mesh", "words"),
  [
    ("{'tensor': 3}", "needs a multiple of 3 devices, but there are 8"),
    ("{'modle': 8}", "no axis 'modle'"),
    ("{'fsdp': 8}", "BATCH_SIZE 12 cannot be"),
  ],
)
def test_a_mesh_that_does_not_divide(fsb, mesh, words):
  status, _, error = fsb(*SCRATCH, f"--gin.MESH={mesh}", "--gin.BATCH_SIZE=12")
  assert status == 2 and words in one_sentence(error)


def test_model_dir_of_somebody_else_is_left_alone(fsb, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.txt").write_text("mine")
  status, _, error = fsb(*SCRATCH)
  assert status == 2 and "already exists and is not empty" in one_sentence(error)
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_debug_shows_the_traceback(fsb):
  from fsb_jax.errors import UserError

  with pytest.raises(UserError):
    fsb("convert", "import", "erlangshen", "target", "--debug")


@pytest.mark.parametrize("command", [(), ("train",), ("eval",), ("infer",), ("predict",), ("tasks",), ("tasks", "show"),
                                     ("data",), ("data", "cache"), ("data", "check"), ("data", "download"),
                                     ("convert",), ("convert", "import"), ("convert", "export"), ("convert", "verify")])
def test_help_has_an_example(fsb, command):
  status, out, _ = fsb(*command, "--help")
  assert status == 0 and "Usage" in out
  if command not in ((), ("convert",)):
    assert "Example: fsb" in " ".join(out.split())


def test_tasks_are_listed_without_tensorflow(fsb):
  status, out, _ = fsb("tasks")
  assert status == 0 and "tnews: " in out and "15 labels" in out
  for words in (("tasks", "afqmc"), ("tasks", "list", "afqmc")):
    status, out, _ = fsb(*words)
    assert status == 0 and out.count("\n") == 1 and "pairs of texts" in out
  status, _, error = fsb("tasks", "absent")
  assert status == 2 and "There is no task 'absent'" in one_sentence(error)


def test_data_on_the_command_line(fsb, tmp_path, monkeypatch):
  monkeypatch.delenv("FSB_DATA_DIR", raising=False)
  folder = tmp_path / "data" / "lcqmc"
  folder.mkdir(parents=True)
  (folder / "dev.tsv").write_text("几点\t现在几点\t1\n", "utf-8")
  status, out, _ = fsb("data", "list", "--data_dir", "data")
  assert status == 0 and "lcqmc: on disk validation; from https://github.com" in out
  status, out, _ = fsb("data", "check", "--data_dir", "data")
  assert status == 1 and "NOT WELL: lcqmc validation: 1 rows" in out and "has 8,802 rows: fetch it again" in out
  status, _, error = fsb("data", "check", "lcqmc")
  assert status == 2 and "Name the data directory" in one_sentence(error)
  status, _, error = fsb("data", "download", "lcqmc", "--data_dir", "data")
  assert status == 2 and "lcqmc has no address to fetch it from; get it from" in one_sentence(error)


def test_a_cache_of_own_texts(fsb, tmp_path, monkeypatch):
  from fsb_jax.encodings import bert_tokenizer_from_characters
  from fsb_jax.tasks import caching

  (tmp_path / "model").mkdir()
  bert_tokenizer_from_characters("今天很开心", tmp_path / "model")
  (tmp_path / "texts.txt").write_text("今天\n很开心\n", encoding="utf-8")
  asked = ("data", "cache", "--model", "model", "--output", "cache")
  own = ("--gin_file=gin/tasks/text.gin", "--gin.TRAIN_FILES=texts.txt")
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, "apache_beam", None)
    status, _, error = fsb(*asked, "jieba_lexicon")
    assert status == 2 and "pip install 'fsb_jax[beam]' brings it" in one_sentence(error)

  def pipeline(task, splits, folder, setup, options):
    assert [example["text"] for example in task.source.examples("train")] == ["今天", "很开心"]
    assert options == ["--runner=FlinkRunner", "--flink_master=here:8081"] and splits == ("train",)
    Path(folder).mkdir(parents=True)
    (Path(folder) / "stats.train.json").write_text('{"examples": 2, "input_ids_tokens": 5}')

  monkeypatch.setattr(caching, "require_beam", lambda: None)
  monkeypatch.setattr(caching, "_run_pipeline", pipeline)
  runner = ("--runner", "FlinkRunner", "--option", "flink_master=here:8081")
  assert fsb(*asked, *own, *runner) == (0, "text train: 2 examples, 5 tokens in cache/text\n", "")
  assert fsb(*asked, *own, *runner)[:2] == (0, "text: is in cache\n")
  status, _, error = fsb(*asked, *own, "tnews")
  assert status == 2 and "takes one task or mixture, or one that a --gin_file names" in one_sentence(error)
  status, _, error = fsb(*asked, "tnews", "--runer=x")
  assert status == 2 and "unknown option --runer=x" in one_sentence(error)


HEAVY = {
  "diffusers", "flax", "gin", "jax", "numpy", "optax", "orbax", "seqio", "tensorflow", "tokenizers", "torch",
  "transformers",
}  # fmt: skip


@pytest.mark.parametrize(
  ("statement", "most"), [("import fsb_jax", 30), ("from fsb_jax import cli; cli.app(['--help'])", 350)]
)
def test_starting_imports_little(statement, most):
  """Importing is what takes time at the start. A count of modules is the same on a busy machine; seconds are not."""
  code = f"""
import atexit, sys
before = set(sys.modules)
atexit.register(lambda: print("LOADED", *sorted(set(sys.modules) - before)))
{statement}
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  loaded = done.stdout.rpartition("LOADED ")[2].split()
  assert "fsb_jax" in loaded
  assert not HEAVY & set(loaded)
  assert len(loaded) < most, loaded


def test_a_llama_is_cut_into_parts_and_written_as_the_hub_has_it(fsb, tmp_path):
  golden = Path(__file__).parent / "goldens" / "llama_fs"
  assert fsb("convert", "import", str(golden), "ours")[0] == 0
  assert fsb("convert", "export", "ours", "cut", "--tensor-parallel", "2")[0] == 0
  assert {path.name for path in (tmp_path / "cut").iterdir()} == {"part_0", "part_1", "config.json"}
  assert fsb("convert", "import", "cut", "again")[0] == 0
  assert fsb("convert", "export", "again", "hub", "--family", "llama", "--vocab-size", "125")[0] == 0
  config = json.loads((tmp_path / "hub" / "config.json").read_text())
  assert (config["model_type"], config["vocab_size"]) == ("llama", 125) and "rms_norm_epsilon" not in config
  status, _, error = fsb("convert", "export", "ours", "uneven", "--tensor-parallel", "3")
  assert status == 2 and "does not divide num_attention_heads 4" in one_sentence(error)
