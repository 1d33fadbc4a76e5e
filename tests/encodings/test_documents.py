import subprocess
import sys

import jieba
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fsb_jax.encodings import bert_tokenizer_from_characters, encode_documents
from fsb_jax.errors import UserError

CHARACTERS = "我来到北京清华大学他硕士毕业于中国科学院计算所，。"
TEXT = "我来到北京清华大学，他毕业于中国科学院。"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=60, deadline=None)
@given(
  texts=st.lists(st.text(f"{CHARACTERS} \nab猫", max_size=60), max_size=5),
  max_length=st.one_of(st.none(), st.integers(3, 20)),
  whole_words=st.booleans(),
)
def test_rows_are_the_documents_cut_into_few_and_even_parts(tokenizer, texts, max_length, whole_words):
  rows = encode_documents(tokenizer, texts, max_length=max_length, whole_words=whole_words)
  rows = list(zip(rows["input_ids"], rows["token_type_ids"], rows["word_ids"], strict=True))
  for text in texts:
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not expected:
      continue
    parts = 1 if max_length is None else -(-len(expected) // (max_length - 2))
    mine, rows = rows[:parts], rows[parts:]
    assert [token for ids, _, _ in mine for token in ids[1:-1].tolist()] == expected
    sizes = [len(ids) for ids, _, _ in mine]
    assert max(sizes) - min(sizes) <= 1 and (max_length is None or max(sizes) <= max_length)
    for ids, types, words in mine:
      assert ids.dtype == types.dtype == words.dtype == np.int32
      assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) and not types.any()
      np.testing.assert_array_equal(words < 0, np.isin(ids, tokenizer.all_special_ids))
      numbers = words[words >= 0]
      assert (np.diff(numbers) >= 0).all()
      if not whole_words:
        assert (np.diff(numbers) > 0).all()
  assert not rows


def test_words_are_jiebas(tokenizer):
  rows = encode_documents(tokenizer, [TEXT], max_length=None)
  words = [[] for _ in range(rows["word_ids"][0].max() + 1)]
  for token, word in zip(rows["input_ids"][0], rows["word_ids"][0]):
    if word >= 0:
      words[word].append(tokenizer.convert_ids_to_tokens(int(token)))
  assert ["".join(word) for word in words] == list(jieba.cut(TEXT))
  assert "清华大学" in ["".join(word) for word in words]


def test_a_word_that_is_cut_is_a_word_in_each_row(tokenizer):
  rows = encode_documents(tokenizer, ["清华大学"], max_length=4)
  assert [row.tolist() for row in rows["word_ids"]] == [[-1, 0, 0, -1]] * 2


def test_a_token_with_the_space_before_it_belongs_to_its_word():
  """A byte-level tokenizer, which also frames a row at its beginning only, with a type of its own for text."""
  vocabulary = {"<pad>": 0, "<s>": 1, "<unk>": 2, "the": 3, "Ġho": 4, "##use": 5, "Ġthe": 6}
  backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
  backend.post_processor = processors.TemplateProcessing(single="<s>:1 $A:3", special_tokens=[("<s>", 1)])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", bos_token="<s>"
  )
  rows = encode_documents(tokenizer, ["the house the dog"], max_length=None)
  assert rows["input_ids"][0].tolist() == [1, 3, 4, 5, 6, 2]
  assert rows["token_type_ids"][0].tolist() == [1, 3, 3, 3, 3, 3]
  assert rows["word_ids"][0].tolist() == [-1, 0, 1, 1, 2, -1]


def test_the_tokenizer_stays_as_it_was(tokenizer):
  tokenizer(TEXT, truncation=True, max_length=5, padding="max_length")
  backend = tokenizer.backend_tokenizer
  before = backend.truncation, backend.padding
  encode_documents(tokenizer, [TEXT], max_length=8)
  assert (backend.truncation, backend.padding) == before and before[0]["max_length"] == 5


def test_words_added_to_jieba_change_nothing(tokenizer):
  before = encode_documents(tokenizer, [TEXT], max_length=None)["word_ids"][0].tolist()
  jieba.add_word("他毕业于", freq=10**9)
  try:
    assert "他毕业于" in jieba.lcut(TEXT)
    assert encode_documents(tokenizer, [TEXT], max_length=None)["word_ids"][0].tolist() == before
  finally:
    jieba.del_word("他毕业于")


def test_too_short_rows_are_refused(tokenizer):
  with pytest.raises(UserError, match="max_length 2 leaves no room for text beside 2 special tokens"):
    encode_documents(tokenizer, [TEXT], max_length=2)


def test_importing_encodings_does_not_import_jieba():
  program = "import sys, fsb_jax.encodings; print('jieba' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
  assert done.stdout.strip() == "False"
