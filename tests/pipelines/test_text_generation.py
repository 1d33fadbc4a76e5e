"""`fsb generate` and the pipeline behind it."""

import json

import pytest
from test_streaming import byte_bpe
from tiny_hub import LM, torch_model

import fsb_jax
from fsb_jax.errors import UserError

PROMPT = "今天心情"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
  folder = tmp_path_factory.mktemp("writer")
  tokenizer = byte_bpe()
  fields = dict(pad_token_id=0, eos_token_id=1, bos_token_id=0, vocab_size=len(tokenizer), n_positions=128)
  torch_model("gpt2", LM["gpt2"], **fields).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder


def test_lines_of_a_file_become_json_lines(fsb, hub, tmp_path):
  (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n不好\n", encoding="utf-8")
  arguments = ("--model", hub, "--prompt", "很开心", "--input", tmp_path / "prompts.txt", "--max-new-tokens", 8)
  status, out, error = fsb("generate", *arguments, "--output", tmp_path / "texts.jsonl")
  assert (status, out) == (0, "")
  # The cache's size is told before it is there.
  assert error.startswith("cache: ") and "3 texts of up to 32 tokens" in error
  rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
  assert [row["prompt"] for row in rows] == ["很开心", PROMPT, "不好"]
  alone = fsb_jax.pipeline("text_generation", hub)(PROMPT, max_new_tokens=8)
  assert rows[1]["generated_text"] == alone["generated_text"] != ""
  before = (tmp_path / "texts.jsonl").read_bytes()
  status, _, error = fsb("generate", *arguments, "--output", tmp_path / "texts.jsonl")
  assert status == 2 and "exists already" in error and (tmp_path / "texts.jsonl").read_bytes() == before


def test_what_is_shown_while_it_is_written_is_the_text(fsb, hub):
  arguments = ("--model", hub, "--prompt", PROMPT, "--max-new-tokens", 12)
  assert fsb("generate", *arguments)[1] == fsb("generate", *arguments, "--no-stream")[1] != "\n"


def test_on_a_mesh_the_same_text(hub):
  texts = [PROMPT, "不好", "很"]
  meshes = (None, {"data": 2, "fsdp": 2, "tensor": 2})
  plain, mesh = (fsb_jax.pipeline("text_generation", hub, mesh=mesh) for mesh in meshes)
  assert mesh(texts, max_new_tokens=6) == plain(texts, max_new_tokens=6)


def test_a_stop_string_ends_the_text_wherever_tokens_part_it(hub):
  writer = fsb_jax.pipeline("text_generation", hub)
  whole = writer(PROMPT, max_new_tokens=40)["generated_text"]
  # Later than the tokens that are looked at in one step, and across tokens.
  stop = whole[-9:-6]
  cut = writer(PROMPT, max_new_tokens=40, stop_strings=[stop])["generated_text"]
  assert cut.endswith(stop) or stop in cut[-8:]
  assert whole.startswith(cut) and whole.index(stop) + len(stop) <= len(cut) < len(whole)


@pytest.mark.parametrize(
  "arguments,words",
  [
    ((), "nothing to go on from: give --prompt, or --input FILE"),
    (("--prompt", PROMPT, "--system", "你是"), "add --chat"),
    (("--prompt", ""), "is empty"),
    (("--prompt", PROMPT, "--option", "num_beams"), "must be NAME=VALUE"),
    (("--prompt", PROMPT, "--option", "beams=2"), "there is no generation option 'beams'"),
  ],
  ids=str,
)
def test_mistakes(fsb, hub, arguments, words):
  status, _, error = fsb("generate", "--model", hub, *arguments)
  assert status == 2 and words in error and error.count("\n") == 1


def test_on_text_follows_one_text(hub):
  writer = fsb_jax.pipeline("text_generation", hub)
  with pytest.raises(UserError, match="follows one text"):
    writer([PROMPT, PROMPT], on_text=print)
