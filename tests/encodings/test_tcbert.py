"""TCBert's rows against those of the original."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fsb_jax.encodings import IGNORED, bert_tokenizer_from_characters, encode_tcbert, load_tokenizer
from fsb_jax.errors import UserError

ALL = Path(os.environ.get("FSB_GOLDENS_DIR", Path(__file__).resolve().parents[3] / "shared" / "goldens"))
PROMPT = "关于{}："
NAMES = {"tax": "税", "sports": "体育"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters("关于体育税：今天", tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize("labelled", [True, False])
def test_rows_are_the_originals(labelled):
  golden = json.loads((ALL / "tcbert_encoding" / "encoding.json").read_text("utf-8"))
  texts, classes = ([item[name] for item in golden["train"]] for name in ("content", "label"))
  encoded = encode_tcbert(
    load_tokenizer(ALL / "unimc_zeroclue"), texts, classes if labelled else None,
    prompt=golden["prompt"], names=golden["prompt_label"], max_length=golden["max_length"],
  )  # fmt: skip
  theirs = {"input_ids": "input_ids", "token_type_ids": "token_type_ids"}
  theirs |= {"labels": "mlmlabels", "class_label": "labels"} if labelled else {}
  assert encoded.keys() == theirs.keys()
  for name, rows in encoded.items():
    for i, row in enumerate(rows):
      assert row.dtype == np.int32
      np.testing.assert_array_equal(row, golden["encoded" if labelled else "encoded_unlabeled"][i][theirs[name]])


def test_as_many_masks_as_the_name_has_tokens(tokenizer):
  encoded = encode_tcbert(
    tokenizer, ["今天", "今天"], ["tax", "sports"], prompt=PROMPT, names=NAMES, max_length=20
  )
  assert [tokenizer.decode(ids) for ids in encoded["input_ids"]] == [
    "[CLS] 关 于 [MASK] ： 今 天 [SEP]", "[CLS] 关 于 [MASK] [MASK] ： 今 天 [SEP]"
  ]
  assert [int(label) for label in encoded["class_label"]] == [0, 1]
  asked = [ids[ids != IGNORED] for ids in encoded["labels"]]
  assert [tokenizer.decode(ids) for ids in asked] == ["税", "体 育"]
  assert [np.flatnonzero(labels != IGNORED).tolist() for labels in encoded["labels"]] == [[3], [3, 4]]
  unknown = encode_tcbert(tokenizer, ["今天"], prompt=PROMPT, names=NAMES, max_length=20)
  assert tokenizer.decode(unknown["input_ids"][0]) == "[CLS] 关 于 [MASK] [MASK] ： 今 天 [SEP]"


def test_long_texts_lose_their_end(tokenizer):
  encoded = encode_tcbert(tokenizer, ["今" * 30], ["tax"], prompt=PROMPT, names=NAMES, max_length=12)
  assert tokenizer.decode(encoded["input_ids"][0]) == "[CLS] 关 于 [MASK] ： 今 今 今 今 今 今 [SEP]"
  assert len(encoded["labels"][0]) == 12


@pytest.mark.parametrize(
  "change,message",
  [
    ({"prompt": "关于："}, "the prompt '关于：' must hold {} once"),
    ({"classes": ["tax", "news"]}, "unknown class 'news'; known: tax, sports"),
    ({"classes": ["tax"]}, "2 texts and 1 classes do not make pairs"),
    ({"max_length": 7}, "max_length 7 leaves no room for text beside a prompt of 7 tokens; raise it"),
  ],
)
def test_mistakes_are_named(tokenizer, change, message):
  given = {"classes": ["tax", "sports"], "prompt": PROMPT, "names": NAMES, "max_length": 20, **change}
  with pytest.raises(UserError, match=message) as error:
    encode_tcbert(tokenizer, ["今", "天"], **given)
  assert "\n" not in str(error.value)
