"""Every command and every line of Python in the READMEs runs, on small stand-ins for what they name."""

import json
import re
import shlex
import sys
import zipfile
from pathlib import Path

import pytest
import tiny_diffusion
import torch
import transformers

import fsb_jax
from fsb_jax import cli, encodings

ROOT = Path(__file__).parent.parent
TEXTS = ("上课时学生手机响个不停怎么办", "今天心情不好", "今天很开心")
PROMPTS = "北京是中国的帮我写一份去西安的旅游计划<human>:bot"
WRITERS = (
  ("GPT2LMHeadModel", "GPT2Config", "Wenzhong-GPT2-110M", dict(n_embd=32, n_layer=2, n_head=4, n_positions=128)),
  (
    "LlamaForCausalLM", "LlamaConfig", "Ziya-LLaMA-13B-v1",
    dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
  ),
  (
    "T5ForConditionalGeneration", "T5Config", "Randeng-T5-784M",
    dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
  ),
)  # fmt: skip
# The README trains as long as a person would.
FEWER_STEPS = re.compile(r"(--gin\.TRAIN_STEPS=)\d+")


def blocks(name, language):
  return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)


def commands(name):
  return [line for block in blocks(name, "bash") for line in block.splitlines() if line.startswith("fsb ")]


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A folder with the data, the tables and the checkpoints that the READMEs speak of, all tiny."""
  monkeypatch.chdir(tmp_path)
  for architecture, config_class, name in (
    ("BertForSequenceClassification", "BertConfig", "Erlangshen-Roberta-110M-NLI"),
    ("MegatronBertForSequenceClassification", "MegatronBertConfig", "Erlangshen-MegatronBert-1.3B"),
  ):
    # Hub ids and relative folders look alike: a folder of that name is taken for the id.
    folder = tmp_path / "IDEA-CCNL" / name
    tokenizer = encodings.bert_tokenizer_from_characters(sorted(set("".join(TEXTS))), folder)
    config = getattr(transformers, config_class)(
      vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
      num_labels=3, initializer_range=0.3, max_position_embeddings=128,
    )
    getattr(transformers, architecture)(config).save_pretrained(folder)
  for architecture, config_class, name, fields in WRITERS:
    folder = tmp_path / "IDEA-CCNL" / name
    tokenizer = encodings.bert_tokenizer_from_characters(sorted(set(PROMPTS)), folder)
    config = getattr(transformers, config_class)(
      vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=3, pad_token_id=0, **fields
    )
    getattr(transformers, architecture)(config).save_pretrained(folder)
  text_encoder, tokenizer = tiny_diffusion.bert_reader(tmp_path / "reader")
  drawing = tmp_path / "IDEA-CCNL" / "Taiyi-Stable-Diffusion-1B-Chinese-v0.1"
  tiny_diffusion.save_pipeline(drawing, tiny_diffusion.tiny_unet(), text_encoder, tokenizer)
  rows = [{"label": "108", "label_desc": "news_edu", "sentence": text, "keywords": ""} for text in TEXTS] * 4
  data = tmp_path / "data" / "tnews"
  data.mkdir(parents=True)
  with zipfile.ZipFile(data / "tnews_public.zip", "w") as archive:
    for split in ("train", "dev"):
      archive.writestr(f"{split}.json", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
  monkeypatch.setenv("FSB_DATA_DIR", str(tmp_path / "data"))
  for name in ("reviews.csv", "reviews_dev.csv"):
    lines = [f"{text},{'good' if i % 2 else 'bad'}" for i, text in enumerate(TEXTS * 4)]
    (tmp_path / name).write_text("review,sentiment\n" + "\n".join(lines) + "\n", encoding="utf-8")
  (tmp_path / "corpus.txt").write_text("\n".join(TEXTS * 4) + "\n", encoding="utf-8")
  monkeypatch.setattr(cli, "_cache_compilations", lambda: None)
  return tmp_path


@pytest.mark.parametrize(
  "name", ["README.md", pytest.param("README_zh.md", marks=pytest.mark.slow)]
)
def test_commands(name, place, monkeypatch, capsys):
  assert len(commands(name)) >= 10
  for line in commands(name):
    arguments = shlex.split(FEWER_STEPS.sub(r"\g<1>2", line), comments=True)
    if arguments[1] == "train":
      # Eight forced devices and twelve rows: fewer rows at a time, and short ones.
      arguments += ["--gin.BATCH_SIZE=8", "--gin.BUCKETS=(16,)", "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}"]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
      cli.main()
    except SystemExit as stop:
      assert not stop.code, (line, capsys.readouterr().err)
  printed = capsys.readouterr().out
  assert '"label": "news_' in printed and "tnews validation: accuracy" in printed and "the same numbers" in printed
  assert [path.suffix for path in (place / "drawings").iterdir()] == [".png"]
  assert len((place / "runs" / "tnews.jsonl").read_text(encoding="utf-8").splitlines()) == 12
  theirs = transformers.BertForSequenceClassification.from_pretrained(place / "runs" / "tnews-hub")
  assert theirs.config.num_labels == 15
  assert torch.isfinite(theirs(torch.tensor([[2, 5, 3]])).logits).all()


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_python(name, place):
  (block,) = blocks(name, "python")
  names = {}
  exec(block, names)
  assert names["logits"].shape == (1, 3)
  assert set(names["answer"]) == {"label", "score"}
  assert isinstance(names["loaded"], fsb_jax.Loaded)
  assert names["tokens"].ndim == 2 and names["tokens"].shape[1] > names["ids"].shape[1]


def test_python_of_the_guide_to_generation(place):
  (block,) = blocks("docs/generation.md", "python")
  names = {}
  exec(block, names)
  assert names["made"].sequences.shape[0] == 6 and names["made"].logprobs.shape[0] == 6
  assert set(commands("docs/generation.md")) <= set(commands("README.md"))


def test_both_readmes_give_the_same_commands():
  assert set(commands("README_zh.md")) <= set(commands("README.md"))


def test_make_targets_exist():
  text = (ROOT / "Makefile").read_text()
  for name in ("README.md", "README_zh.md", "CONTRIBUTING.md"):
    for target in re.findall(r"make ([a-z-]+)", (ROOT / name).read_text(encoding="utf-8")):
      assert f"\n{target}:" in text, (name, target)
