import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fsb_jax.encodings.streaming import StreamingDetokenizer

TEXTS = [
  "今天心情不好，今天很开心。😀👩‍👩‍👧 龘 I can't , don 't ! it's 5 o ' clock",
  "  前面两个空格\n换行\t制表 e\u0301 café 🇨🇳 𠮷野家",
  "The model writes <0x41> and �, too.",
]
SPECIAL = ["<s>", "</s>"]


def fast(backend, **options):
  backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
  return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **options)


def byte_bpe():
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  backend.train_from_iterator(TEXTS[:1], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
  return fast(backend)


def sentencepiece_bpe():
  """As LLaMA's: characters it lacks are bytes."""
  characters = sorted({*"今天心情不好。 I can'tdo".replace(" ", "▁")})
  vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, "今天", "▁c", "▁▁"]
  merges = [("今", "天"), ("▁", "c"), ("▁", "▁")]
  ids = {token: i for i, token in enumerate(vocabulary)}
  backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  return fast(backend)


def unigram():
  pieces = [("<unk>", 0.0), ("▁", -2.0), ("今天", -3.0), ("▁今", -3.5), *((x, -5.0) for x in "今天心情不好。can'tdo")]
  backend = Tokenizer(models.Unigram(pieces, 0))
  backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  return fast(backend)


def wordpiece(**options):
  characters = dict.fromkeys(c for c in "".join(TEXTS) if not c.isspace())
  words = ["[UNK]", *dict.fromkeys([*characters, *"mvre.?!"]), "can", "do", "##n", "##'", "##t", "n't"]
  backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
  backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
  return fast(backend, **options)


def word_ends():
  """As CLIP's: the last piece of a word says so."""
  words = ["<unk>", "a</w>", "b", "b</w>", "c", "今</w>", "今"]
  backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
  backend.decoder = decoders.BPEDecoder("</w>")
  return fast(backend)


TOKENIZERS = {
  "byte_bpe": byte_bpe(),
  "sentencepiece_bpe": sentencepiece_bpe(),
  "unigram": unigram(),
  "wordpiece": wordpiece(),
  "wordpiece_cleaned": wordpiece(clean_up_tokenization_spaces=True),
  "word_ends": word_ends(),
}
# Ids that go wrong more easily than others: halves of characters, spaces, special tokens, what is cleaned up.
TROUBLE = {
  "byte_bpe": [t for t in TOKENIZERS["byte_bpe"].get_vocab() if len(t) == 1 and not t.isascii()],
  "sentencepiece_bpe": [*(f"<0x{byte:02X}>" for byte in (0x41, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0x80)), "▁", "▁▁"],
  "unigram": ["▁", "▁今"],
  "wordpiece": ["##t", "'", "n't", "."],
  "wordpiece_cleaned": [*"n'tdomsvre.,!?", "##t", "##'", "##n", "can", "n't"],
  "word_ends": ["a</w>", "b"],
}


def pieces(tokenizer, ids, **options):
  stream = StreamingDetokenizer(tokenizer, **options)
  result = [stream.push(each) for each in ids]
  return [*result, stream.finish()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_pieces_of_any_ids_are_the_whole(kind, data):
  tokenizer = TOKENIZERS[kind]
  trouble = tokenizer.convert_tokens_to_ids([*TROUBLE[kind], *SPECIAL])
  each = st.one_of(st.integers(0, len(tokenizer) - 1), st.sampled_from(trouble))
  ids, skip = data.draw(st.lists(each, max_size=30)), data.draw(st.booleans())
  assert "".join(pieces(tokenizer, ids, skip_special_tokens=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_has_half_a_character(kind, text):
  tokenizer = TOKENIZERS[kind]
  ids = tokenizer.encode(text, add_special_tokens=False)
  parts, whole = pieces(tokenizer, ids), tokenizer.decode(ids)
  assert "".join(parts) == whole
  assert sum(part.count("\ufffd") for part in parts) == whole.count("\ufffd") <= text.count("\ufffd")


def test_a_character_is_out_as_soon_as_it_is_whole():
  tokenizer, text = TOKENIZERS["byte_bpe"], "今天😀龘好"
  stream, out = StreamingDetokenizer(tokenizer), ""
  for character in text:
    for each in tokenizer.encode(character, add_special_tokens=False):
      assert not out.endswith(character)
      out += stream.push(each)
    assert out.endswith(character)


def test_a_run_of_byte_tokens_is_out_when_it_ends():
  tokenizer = TOKENIZERS["sentencepiece_bpe"]
  ids = tokenizer.convert_tokens_to_ids(["今天", "<0xE4>", "<0xBD>", "<0xA0>", "好", "</s>"])
  assert pieces(tokenizer, ids) == ["今天", "", "", "", "你好", "", ""]
  # One byte too many, and the tokenizer knows none of them.
  assert pieces(tokenizer, [*ids[:4], ids[1], ids[4]]) == ["今天", "", "", "", "", "\ufffd" * 4 + "好", ""]
  assert pieces(tokenizer, ids[:3]) == ["今天", "", "", "\ufffd\ufffd"]


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe", "wordpiece"])
def test_a_token_costs_no_more_late_than_early(kind, monkeypatch):
  tokenizer, longest = TOKENIZERS[kind], 0
  decode = tokenizer.decode

  def counted(ids, **options):
    nonlocal longest
    longest = max(longest, len(ids))
    return decode(ids, **options)

  monkeypatch.setattr(tokenizer, "decode", counted)
  pieces(tokenizer, tokenizer.encode(TEXTS[0] * 5, add_special_tokens=False))
  assert 1 < longest < 45


def test_a_stream_serves_one_text_after_the_other():
  tokenizer = TOKENIZERS["sentencepiece_bpe"]
  ids = tokenizer.encode(" 今天", add_special_tokens=False)
  stream = StreamingDetokenizer(tokenizer)
  for _ in range(2):
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)
