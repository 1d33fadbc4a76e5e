"""N-grams against what the original's own functions found, and what they are for."""

import json
from pathlib import Path

import numpy as np
import pytest

from fsb_jax.encodings import NgramForm, NgramLexicon, encode_ngrams, load_tokenizer, read_ngrams
from fsb_jax.encodings.ngrams import find_ngrams
from fsb_jax.errors import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "zen_ngram_features"
DATA = json.loads((GOLDEN / "data.json").read_text("utf-8"))
LENGTH, SLOTS = DATA["max_seq_length"], DATA["max_ngram_in_seq"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """The vocabulary as far as the examples show it: their texts are given as ids and their n-grams as tokens."""
  tokens = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
  for example in DATA["zen2"]:
    for start, ngram in zip(example["ngram_starts"], example["ngram_tuples"]):
      tokens |= {example["input_ids"][start + i]: token for i, token in enumerate(ngram)}
  shown = set(tokens.values())
  rest = sorted({each for line in _lines() for each in line.split(",")[0]} - shown)
  lines = [tokens.get(i, f"[unused{i}]") for i in range(21128)]
  folder = tmp_path_factory.mktemp("vocabulary")
  (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in [*lines, *rest]), "utf-8")
  return load_tokenizer(folder)


@pytest.fixture(scope="module")
def lexicon(tokenizer):
  return read_ngrams(GOLDEN / "ngram.txt", tokenizer)


def _lines():
  return (GOLDEN / "ngram.txt").read_text("utf-8").splitlines()


def encoded(example, lexicon, form, **options):
  real = sum(example["input_mask"])
  ids, types = (np.array(example[name][:real]) for name in ("input_ids", "segment_ids"))
  options = {"length": LENGTH, "ngrams": SLOTS, **options}
  return {name: x[0] for name, x in encode_ngrams([ids], [types], lexicon, form, **options).items()}


def assert_slots_equal(arrays, example):
  np.testing.assert_array_equal(arrays["input_ngram_ids"], example["ngram_ids"])
  np.testing.assert_array_equal(arrays["ngram_token_type_ids"], example["ngram_seg_ids"])
  np.testing.assert_array_equal(arrays["ngram_attention_mask"].astype(bool), example["ngram_masks"])


def test_the_lexicon(lexicon):
  assert len(lexicon.frequencies) == len(_lines()) + 1 and len(lexicon.ids) == len(_lines())
  assert lexicon.frequencies[[0, 1, 10]].tolist() == [0, 344, 177]


@pytest.mark.parametrize("example", DATA["zen1"])
def test_zen_1_without_its_shuffling(example, lexicon):
  arrays = encoded(example, lexicon, NgramForm(order="found", weights="ones"))
  assert_slots_equal(arrays, example)
  expected = np.zeros((LENGTH, SLOTS))
  for slot, places in enumerate(example["ngram_positions"]):
    expected[places, slot] = 1
  np.testing.assert_array_equal(arrays["ngram_position_matrix"], expected)


@pytest.mark.parametrize("padding_is_first", [False, True])
@pytest.mark.parametrize("example", DATA["zen2"])
def test_zen_2(example, lexicon, padding_is_first):
  arrays = encoded(example, lexicon, NgramForm(order="by_id", weights="shares", padding_is_first=padding_is_first))
  # The rows of these examples have no padding, so both ways of giving types agree.
  assert_slots_equal(arrays, example)
  assert lexicon.frequencies[arrays["input_ngram_ids"]].tolist() == example["ngram_freqs"]
  for slot in range(sum(example["ngram_masks"])):
    covered = np.flatnonzero(arrays["ngram_position_matrix"][:, slot])
    start = example["ngram_starts"][slot]
    assert covered.tolist() == list(range(start, start + example["ngram_lengths"][slot]))


def test_shares_of_frequencies(lexicon, tokenizer):
  compared = 0
  for case in DATA["zen2_extract_ngram_feature"]:
    ids = np.array(tokenizer.convert_tokens_to_ids(case["tokens"]))
    form = NgramForm(order="by_id", weights="shares")
    arrays = encode_ngrams([ids], [np.zeros_like(ids)], lexicon, form, length=LENGTH, ngrams=SLOTS)
    np.testing.assert_array_equal(arrays["input_ngram_ids"][0], case["feature"]["ngram_ids"])
    expected = np.zeros((LENGTH, SLOTS))
    for place, slot, weight in case["matrix_nonzero"]:
      expected[place, slot] = weight
    np.testing.assert_allclose(arrays["ngram_position_matrix"][0], expected, rtol=1e-6)
    compared += len(case["matrix_nonzero"])
    form = NgramForm(order="by_id", weights="whole_shares")
    arrays = encode_ngrams([ids], [np.zeros_like(ids)], lexicon, form, length=LENGTH, ngrams=SLOTS)
    whole = arrays["ngram_position_matrix"][0]
    alone = (np.count_nonzero(expected, axis=1) == 1)[:, None] & (expected > 0)
    np.testing.assert_array_equal(whole, alone)
    assert case is not DATA["zen2_extract_ngram_feature"][0] or 0 < whole.sum() < np.count_nonzero(expected)
  assert compared > 100


LETTERS = NgramLexicon({(1, 2): 3, (2, 3): 1, (1, 2, 3): 2}, np.array([0, 10, 20, 30]))


def test_finds_by_length_then_start():
  assert find_ngrams(np.array([1, 2, 3, 9, 1, 2]), LETTERS).tolist() == [[3, 0, 2], [1, 1, 2], [3, 4, 2], [2, 0, 3]]
  assert find_ngrams(np.array([1]), LETTERS).shape == (0, 3)
  longest = NgramLexicon({(5,) * n: n for n in range(1, 10)}, np.ones(10))
  assert find_ngrams(np.array([5] * 9), longest)[:, 2].tolist() == [n for n in range(2, 8) for _ in range(10 - n)]


def test_a_shorter_row_has_room_for_its_share():
  form = NgramForm(order="by_id", weights="ones")
  rows = [np.array([1, 2, 3, 9, 1, 2]), np.array([1, 2, 3]), np.array([7])]
  arrays = encode_ngrams(rows, [0 * row for row in rows], LETTERS, form, length=6, ngrams=3)
  # 6 of 6 tokens: 3 slots; 3 of 6: 2, rounded up from 1.5.
  assert arrays["input_ngram_ids"].tolist() == [[1, 2, 3], [1, 2, 0], [0, 0, 0]]
  assert arrays["ngram_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
  assert arrays["ngram_position_matrix"].shape == (3, 6, 3)
  assert arrays["ngram_position_matrix"][1].T.tolist() == [[0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6]


def test_types_with_padding():
  rows, types = [np.array([1, 2, 9, 1, 2])], [np.array([0, 0, 0, 1, 1])]
  given = {}
  for padding_is_first in (False, True):
    form = NgramForm(order="found", weights="ones", padding_is_first=padding_is_first)
    given[padding_is_first] = encode_ngrams(rows, types, LETTERS, form, length=7, ngrams=3)["ngram_token_type_ids"]
  # 3 tokens of the first text and 2 of padding: the second text's n-gram at 3 counts for the first.
  assert given[False].tolist() == [[0, 1, 0]] and given[True].tolist() == [[0, 0, 0]]


def test_shuffling_is_the_generators():
  row, form = np.array([1, 2, 3, 9, 1, 2]), NgramForm(order="shuffled", weights="ones")

  def ids(seed):
    arrays = encode_ngrams(
      [row], [0 * row], LETTERS, form, length=6, ngrams=8, random=np.random.default_rng(seed)
    )
    return tuple(arrays["input_ngram_ids"][0])

  orders = {ids(seed) for seed in range(20)}
  assert len(orders) > 3 and {tuple(sorted(order)) for order in orders} == {(0, 0, 0, 0, 1, 2, 3, 3)}
  assert ids(4) == ids(4)
  with pytest.raises(UserError, match="need a random generator"):
    encode_ngrams([row], [0 * row], LETTERS, form, length=6)


def test_mistakes_are_one_sentence(tmp_path, tokenizer):
  with pytest.raises(UserError, match="ngram.txt is missing: it lists the model's n-grams"):
    read_ngrams(tmp_path, tokenizer)
  path = tmp_path / "ngram.txt"
  for text, message in (
    ("公交,3\n公交线\n", "line 2 is '公交线'; it must be an n-gram, a comma and its frequency"),
    ("公交,3\n\n", "line 2 is ''"),
    ("公交,many\n", "line 1 is '公交,many'"),
    (",3\n", "line 1 is ',3'"),
  ):
    path.write_text(text, "utf-8")
    with pytest.raises(UserError) as error:
      read_ngrams(tmp_path, tokenizer)
    assert message in str(error.value) and "\n" not in str(error.value)
  path.write_bytes("公交,3\n".encode("gbk"))
  with pytest.raises(UserError, match="is not UTF-8"):
    read_ngrams(path, tokenizer)
  with pytest.raises(UserError, match="a row of 3 tokens does not fit the length 2"):
    encode_ngrams(
      [np.array([1, 2, 3])], [np.zeros(3, int)], LETTERS, NgramForm(order="found", weights="ones"), length=2
    )
  with pytest.raises(UserError, match="unknown order 'random' of n-grams; known: shuffled, found, by_id"):
    NgramForm(order="random", weights="ones")


def test_commas_and_windows_lines_and_the_last_of_the_same_tokens(tmp_path, tokenizer):
  (tmp_path / "ngram.txt").write_bytes("公,交,7\r\n公交,3\r\n公 交,4\r\n".encode())
  lexicon = read_ngrams(tmp_path, tokenizer)
  public = tuple(tokenizer.convert_tokens_to_ids(["公", "交"]))
  assert lexicon.ids[public] == 3 and lexicon.frequencies.tolist() == [0, 7, 3, 4] and len(lexicon.ids) == 2
