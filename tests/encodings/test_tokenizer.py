import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from fsb_jax.encodings import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer
from fsb_jax.errors import UserError

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
WORDS = ["今", "天", "气", "真", "好", "不", "，", "。", "un", "##aff", "##able", "bert", "2", "##0", "##2", "e", "É"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = ["今天天气真好。", "unaffable BERT，今天不好", "2020天", "É e 龙", "", "  今\t天\n", "[MASK]天[SEP]好", "𠀀今"]


def write_vocabulary(folder, tokens=VOCABULARY, **config):
  (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
  if config:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
  return folder


def reference_ids(folder, text, **options):
  """Ids by transformers' own pure-Python BERT tokenizer, which shares no code with the Rust one."""
  from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

  return BertTokenizerLegacy(str(folder / "vocab.txt"), **options)(text)["input_ids"]


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_ids_equal_the_python_bert_tokenizer(tmp_path, config):
  write_vocabulary(tmp_path, **config)
  tokenizer = load_tokenizer(tmp_path)
  for text in TEXTS:
    assert tokenizer(text)["input_ids"] == reference_ids(tmp_path, text, **config), text


def test_lower_case_option_matters(tmp_path):
  cased = load_tokenizer(write_vocabulary(tmp_path, do_lower_case=False))
  assert cased("É")["input_ids"] == [2, VOCABULARY.index("É"), 3]
  assert cased("BERT")["input_ids"] == [2, 1, 3]


def test_ids_on_tnews_equal_the_python_bert_tokenizer(tmp_path):
  archive = DATA_DIR / "tnews" / "tnews_public.zip"
  vocabulary = DATA_DIR / "tokenizers" / "bert_base_chinese_vocab.txt"
  if not archive.is_file() or not vocabulary.is_file():
    pytest.skip(f"TNEWS and the BERT vocabulary are not under {DATA_DIR} (set FSB_DATA_DIR)")
  from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

  write_vocabulary(tmp_path, vocabulary.read_text("utf-8").split("\n")[:-1])
  with zipfile.ZipFile(archive) as opened, opened.open("tnews_public/train.json") as handle:
    texts = [json.loads(next(handle))["sentence"] for _ in range(2000)]
  reference = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
  assert load_tokenizer(tmp_path)(texts)["input_ids"] == [reference(text)["input_ids"] for text in texts]


def test_tokenizer_json_is_read_as_it_is(tmp_path):
  tokenizer = load_tokenizer(write_vocabulary(tmp_path))
  tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "vocab.txt").unlink()
  again = load_tokenizer(tmp_path)
  assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_named_class_and_its_own_files(tmp_path):
  vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
  (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
  (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
  with pytest.raises(UserError, match="tokenizer_class"):
    load_tokenizer(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
  assert load_tokenizer(tmp_path)("abba")["input_ids"] == [3, 2, 1]
  (tmp_path / "config.json").unlink()
  (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
  assert load_tokenizer(tmp_path)("abba")["input_ids"] == [3, 2, 1]


@pytest.mark.parametrize(
  "model_type, filename", [("llama", "llama2_tokenizer.model"), ("xlnet", "clue_xlnet_spiece.model")]
)
def test_sentencepiece_ids_equal_the_sentencepiece_library(tmp_path, model_type, filename):
  path = DATA_DIR / "tokenizers" / filename
  if not path.is_file():
    pytest.skip(f"{filename} is not under {DATA_DIR}/tokenizers (set FSB_DATA_DIR)")
  import sentencepiece

  (tmp_path / ("tokenizer.model" if model_type == "llama" else "spiece.model")).symlink_to(path.resolve())
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
  processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
  tokenizer = load_tokenizer(tmp_path)
  for text in ("今天天气真好", "不要相信 2020 年的新闻"):
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text)


def test_folder_without_tokenizer_files_gives_none(tmp_path):
  assert load_tokenizer(tmp_path) is None


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match="is not a folder"):
    load_tokenizer(tmp_path / "absent")
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match=f"The tokenizer files in {tmp_path} cannot be read"):
    load_tokenizer(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(UserError, match="tokenizer_config.json is not valid JSON"):
    load_tokenizer(tmp_path)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_saved_tokenizer_loads_with_the_same_ids(tmp_path, do_lower_case):
  (tmp_path / "from").mkdir()
  tokenizer = load_tokenizer(write_vocabulary(tmp_path / "from", do_lower_case=do_lower_case))
  paths = save_tokenizer(tokenizer, tmp_path / "to" / "folder")
  assert {path.name for path in paths} == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
  assert all(path.is_file() for path in paths)
  assert (tmp_path / "to" / "folder" / "vocab.txt").read_text("utf-8").split() == VOCABULARY
  again = load_tokenizer(tmp_path / "to" / "folder")
  assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
  assert again("今天")["token_type_ids"] == [0, 0, 0, 0]


def test_character_tokenizer(tmp_path):
  tokenizer = bert_tokenizer_from_characters("今天今气", tmp_path)
  assert tokenizer("天气好")["input_ids"] == [2, 6, 7, 1, 3]
  assert tokenizer.decode([5, 6]) == "今 天"
  with pytest.raises(UserError, match="'ab'"):
    bert_tokenizer_from_characters(["a", "ab"], tmp_path)


def test_loading_imports_neither_torch_nor_tensorflow(tmp_path):
  write_vocabulary(tmp_path)
  program = f"""
    import sys, time
    start = time.perf_counter()
    from fsb_jax import encodings
    tokenizer = encodings.load_tokenizer({str(tmp_path)!r})
    ids = encodings.encode_pairs(tokenizer, ["今天"], ["好"], max_length=8)["input_ids"]
    print(f"{{time.perf_counter() - start:.2f}} s", len(ids[0]))
    print([name for name in ("torch", "tensorflow", "seqio", "jax") if name in sys.modules])
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=120
  )
  seconds, imported = done.stdout.splitlines()
  print(f"imported and loaded in {seconds}")
  assert seconds.endswith(" 6")
  assert imported == "[]"
