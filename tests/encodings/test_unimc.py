"""UniMC's rows against those of the original, and what it must not do with them."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fsb_jax.encodings import (
  IGNORED,
  answers_unimc,
  batch_unimc,
  bert_tokenizer_from_characters,
  encode_unimc,
  load_tokenizer,
  mask_unimc,
  only_asked_unimc,
)
from fsb_jax.encodings.unimc import option_attention
from fsb_jax.errors import UserError

HERE = Path(__file__).resolve().parents[1] / "goldens"
ALL = Path(os.environ.get("FSB_GOLDENS_DIR", HERE.parents[2] / "shared" / "goldens"))
needs_goldens = pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
ITEM = {"texta": "天气真好", "textb": "", "question": "哪个", "choice": ["今", "不好", "好天"], "label": 1}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  characters = "今天气真好不知道哪个是非能理解为可以推断出很难：，"
  return bert_tokenizer_from_characters(characters, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def chinese():
  return load_tokenizer(ALL / "unimc_zeroclue")


def encoded_as_the_original(tokenizer, items, max_length):
  """It takes the first option as right where the label is missing."""
  return encode_unimc(tokenizer, [{"label": 0, **item} for item in items], max_length=max_length)


def row_as_the_original(encoded, i):
  """A row as a batch of its own, in the original's terms."""
  batch = batch_unimc({name: rows[i : i + 1] for name, rows in encoded.items()}, pad_id=0, ask_every_token=True)
  row = {name: x[0] for name, x in batch.items()}
  return in_its_terms(row)


def in_its_terms(row):
  return {
    "input_ids": row["input_ids"],
    "token_type_ids": row["token_type_ids"],
    "position_ids": row["position_ids"],
    "attention_mask": row["attention_mask"].astype(int),
    "mlmlabels": row["labels"],
    "clslabels": row["option_label"],
    "clslabels_mask": np.where(row["option_mask"], 0, -10000),
  }


@needs_goldens
def test_rows_and_batches_are_the_originals(chinese):
  golden = json.loads((ALL / "unimc_encoding" / "encoding.json").read_text("utf-8"))
  compared = 0
  for run in golden["runs"]:
    items, before = run["items_in"], copy.deepcopy(run["items_in"])
    encoded = encoded_as_the_original(chinese, items, run["max_length"])
    assert items == before
    assert {int(yes) for yes in encoded["yes_token"]} == {golden["yes_token"]}
    for i, expected in enumerate(run["encoded"]):
      ours = row_as_the_original(encoded, i)
      if "attention_mask" in expected:
        expected["attention_mask"] = [[int(c) for c in row] for row in expected["attention_mask"]]
      else:
        expected["attention_mask"] = ours["attention_mask"]
        np.testing.assert_array_equal(ours["attention_mask"].sum(1), expected["attention_mask_sum_rows"])
        np.testing.assert_array_equal(ours["attention_mask"].sum(0), expected["attention_mask_sum_cols"])
      for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=f"{name} of item {i}")
        compared += 1
    if "collated_first4" in run:
      first = {name: rows[:4] for name, rows in encoded.items()}
      collated = in_its_terms(batch_unimc(first, pad_id=0, ask_every_token=True, padding_label=0))
      expected = run["collated_first4"]
      expected["attention_mask"] = [[[int(c) for c in row] for row in rows] for rows in expected["attention_mask"]]
      for name, array in collated.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
  assert compared == 2 * 12 * 7


def golden_items(folder):
  """The items as a user writes them: the original's own, before it put second texts into options."""
  predicted = json.loads((folder / "predict.json").read_text("utf-8"))["postprocess"]
  return [{**item, "label": item["label_ori"]} for item in predicted]


def test_the_batch_kept_here_is_the_originals():
  folder = HERE / "unimc_bert"
  tokenizer = load_tokenizer(folder)
  encoded = encode_unimc(tokenizer, golden_items(folder), max_length=96)
  batch = in_its_terms(batch_unimc(encoded, pad_id=0, ask_every_token=True, padding_label=0))
  expected = np.load(folder / "inputs.npz")
  for name, array in batch.items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


@needs_goldens
def test_as_much_is_hidden_as_by_the_original(chinese):
  items = json.loads((ALL / "unimc_encoding" / "encoding.json").read_text("utf-8"))["runs"][0]["items_in"]
  expected = json.loads((ALL / "unimc_used_mask_stats" / "data.json").read_text("utf-8"))
  encoded = encoded_as_the_original(chinese, items, expected["max_length"])
  random, vocabulary = np.random.default_rng(0), chinese.vocab_size
  samples, tokens = 6000, 0
  rates, hidden, masked, kept, replacements = [], 0, 0, 0, set()
  for sample in range(samples):
    ids, labels, bounds = (encoded[name][sample % len(items)] for name in ("input_ids", "labels", "option_bounds"))
    new, asked = mask_unimc(ids, labels, bounds, random=random, mask_id=103, vocab_size=vocabulary)
    asked_text = asked[bounds[-1] :] != IGNORED
    np.testing.assert_array_equal(asked[: bounds[-1]], labels[: bounds[-1]])
    np.testing.assert_array_equal(asked[bounds[-1] :][asked_text], ids[bounds[-1] :][asked_text])
    unasked = np.r_[np.ones(bounds[-1], bool), ~asked_text]
    np.testing.assert_array_equal(new[unasked], ids[unasked])
    after = new[bounds[-1] :][asked_text]
    tokens, hidden = tokens + len(ids), hidden + len(after)
    masked += (after == 103).sum()
    kept += (after == ids[bounds[-1] :][asked_text]).sum()
    replacements.update(after[(after != 103) & (after != ids[bounds[-1] :][asked_text])].tolist())
    rates.append(len(after) / len(ids))
  # Both are samples: within four standard deviations of the difference of two.
  assert hidden / tokens == pytest.approx(expected["masked_non_option_per_token"], rel=0.085)
  assert masked / hidden == pytest.approx(expected["of_masked_mask"], abs=0.022)
  assert kept / hidden == pytest.approx(expected["of_masked_keep"], abs=0.016)
  assert np.mean(np.array(rates) == 0) == pytest.approx(expected["fraction_of_samples_without_any_mask"], abs=0.05)
  quantiles = np.quantile(rates, [0.1, 0.25, 0.5, 0.75, 0.9])
  np.testing.assert_allclose(quantiles, expected["per_sample_rate_quantiles"], atol=0.02)
  assert min(replacements) >= 1 and max(replacements) < vocabulary and len(replacements) > 500


def test_the_same_generator_hides_the_same(tokenizer):
  encoded = encode_unimc(tokenizer, [ITEM], max_length=64)
  row = [encoded[name][0] for name in ("input_ids", "labels", "option_bounds")]
  before = copy.deepcopy(row)

  def masked(seed):
    return mask_unimc(*row, random=np.random.default_rng(seed), mask_id=tokenizer.mask_token_id, vocab_size=20)

  draws = [masked(seed) for seed in range(30)]
  for seed, draw in enumerate(draws):
    for one, other in zip(draw, masked(seed)):
      assert one.dtype == np.int32
      np.testing.assert_array_equal(one, other)
  assert len({labels.tobytes() for _, labels in draws}) > 5
  for one, other in zip(row, before):
    np.testing.assert_array_equal(one, other)


def test_what_may_be_hidden_and_what_stands_in_its_place(tokenizer):
  encoded = encode_unimc(tokenizer, [ITEM], max_length=64)
  ids, labels, bounds = (encoded[name][0] for name in ("input_ids", "labels", "option_bounds"))
  random, places, others = np.random.default_rng(0), set(), set()
  for _ in range(1000):
    new, asked = mask_unimc(ids, labels, bounds, random=random, mask_id=4, vocab_size=4)
    places.update(np.flatnonzero(asked != labels).tolist())
    others.update(new[new != ids].tolist())
  assert places == set(range(bounds[-1], len(ids)))
  assert others == {1, 2, 3, 4}


def test_a_row_in_full(tokenizer):
  encoded = encode_unimc(tokenizer, [ITEM], max_length=64)
  ids = encoded["input_ids"][0]
  assert tokenizer.decode(ids) == (
    "[CLS] [MASK] 今 [MASK] 不 好 [MASK] 好 天 [SEP] 哪 个 [SEP] 天 气 真 好 [SEP]"
  )
  assert encoded["option_bounds"][0].tolist() == [1, 3, 6, 9]
  assert encoded["token_type_ids"][0].tolist() == [0] + 9 * [1] + 8 * [0]
  assert encoded["position_ids"][0].tolist() == [0, 1, 2, 1, 2, 3, 1, 2, 3, *range(4, 13)]
  yes, no = tokenizer.convert_tokens_to_ids(["是", "非"])
  labels = encoded["labels"][0]
  assert {i: int(x) for i, x in enumerate(labels) if x != IGNORED} == {1: no, 3: yes, 6: no}
  assert encoded["option_label"][0] == 1 and encoded["yes_token"][0] == yes
  unknown = encode_unimc(tokenizer, [{**ITEM, "label": None}], max_length=64)
  assert (unknown["labels"][0] == IGNORED).all() and unknown["option_label"][0] == IGNORED


def test_an_option_sees_itself_and_what_is_no_option():
  allowed = option_attention(np.array([1, 3, 6]), 9)
  for query in range(9):
    for key in range(9):
      inside = {1: "a", 2: "a", 3: "b", 4: "b", 5: "b"}
      one, other = inside.get(query), inside.get(key)
      assert allowed[query, key] == (one is None or other is None or one == other)


def test_positions_end_with_the_models_table(tokenizer):
  encoded = encode_unimc(tokenizer, [{**ITEM, "texta": "天" * 900}], max_length=700)
  positions = encoded["position_ids"][0]
  assert len(positions) == 700 and positions.max() == 511
  # As the original's rule has it: from index 512 on nothing is beyond 511, before it nothing could be.
  assert (positions[:512] <= np.arange(512)).all() and positions[600] == 511


def test_options_are_halved_until_the_text_has_room(tokenizer):
  item = {**ITEM, "choice": ["天" * 40, "好" * 41]}
  encoded = encode_unimc(tokenizer, [item], max_length=60)
  # 1 + 2 masks or special tokens beside 20 and 20, then 10 and 10, are more, then less than 60 - 32.
  assert np.diff(encoded["option_bounds"][0]).tolist() == [11, 11]
  assert item["choice"] == ["天" * 40, "好" * 41]
  exact = encode_unimc(tokenizer, [{**ITEM, "choice": ["天" * 12, "好" * 13]}], max_length=60)
  assert np.diff(exact["option_bounds"][0]).tolist() == [13, 14]
  more = encode_unimc(tokenizer, [{**ITEM, "choice": ["天" * 13, "好" * 13]}], max_length=60)
  assert np.diff(more["option_bounds"][0]).tolist() == [7, 7]


def test_more_options_than_fit_are_a_mistake_and_not_an_endless_loop(tokenizer):
  item = {**ITEM, "choice": list("今天气真好不知道哪个是非能理解为可以推断出很难：，今天气真好")[:30]}
  with pytest.raises(UserError, match="item 1: 30 options need max_length 63 even without their text, not 48"):
    encode_unimc(tokenizer, [ITEM, item], max_length=48)
  assert len(encode_unimc(tokenizer, [item], max_length=63)["option_bounds"][0]) == 31


@pytest.mark.parametrize(
  "task,choice,rewritten",
  [
    ("语义匹配", ["不相似", "相似"], ["不能理解为：今天", "可以理解为：今天"]),
    # Another order of the options is another order, not another meaning.
    ("语义匹配", ["相似", "不相似"], ["可以理解为：今天", "不能理解为：今天"]),
    ("自然语言推理", ["矛盾", "自然", "蕴含"], ["不能推断出：今天", "很难推断出：今天", "可以推断出：今天"]),
  ],
)
def test_tasks_of_two_texts_put_the_second_into_the_options(tokenizer, task, choice, rewritten):
  item = {"texta": "天气", "textb": "今天", "choice": choice, "task_type": task}
  plain = {"texta": "天气", "choice": rewritten}
  before = copy.deepcopy(item)
  ours, same = (encode_unimc(tokenizer, [x], max_length=96) for x in (item, plain))
  np.testing.assert_array_equal(ours["input_ids"][0], same["input_ids"][0])
  assert item == before
  # The answer is in the item's own words.
  probabilities = np.full((1, len(choice)), 0.1)
  probabilities[0, -1] += 1 - probabilities.sum()
  (answer,) = answers_unimc([item], probabilities)
  assert answer["answer"] == choice[-1] and answer["label"] == len(choice) - 1


def test_options_that_are_alike_keep_their_scores_apart(tokenizer):
  item = {**ITEM, "choice": ["好", "好", "天"]}
  (answer,) = answers_unimc([item], np.array([[0.2, 0.5, 0.3, 0.0]]))
  assert answer == {"label": 1, "answer": "好", "scores": [0.2, 0.5, 0.3]}
  assert len(encode_unimc(tokenizer, [item], max_length=64)["option_bounds"][0]) == 4


def test_batches_hold_rows_with_different_options(tokenizer):
  other = {"texta": "不知道", "choice": ["今天", "好"]}
  encoded = encode_unimc(tokenizer, [ITEM, other], max_length=64)
  batch = batch_unimc(encoded, pad_id=tokenizer.pad_token_id, length=24)
  tokens = [len(ids) for ids in encoded["input_ids"]]
  for i, count in enumerate(tokens):
    assert not batch["attention_mask"][i, count:].any() and not batch["attention_mask"][i, :, count:].any()
    assert (batch["labels"][i, count:] == IGNORED).all()
    assert (batch["input_ids"][i, count:] == tokenizer.pad_token_id).all()
  assert batch["option_mask"].sum(axis=1).tolist() == [3, 2]
  assert batch["option_label"].tolist() == [3, IGNORED]
  with pytest.raises(UserError, match="a row of 18 tokens does not fit into length 12"):
    batch_unimc(encoded, pad_id=0, length=12)


def test_only_what_is_asked(tokenizer):
  items = [ITEM, {"texta": "不知道", "choice": ["今天", "好"]}]
  encoded = encode_unimc(tokenizer, items, max_length=64)
  batch = batch_unimc(encoded, pad_id=0)
  asked = only_asked_unimc(batch)
  assert asked["masked_lm_positions"][:, :2].tolist() == [[1, 3], [1, 4]] and asked["labels"].shape == (2, 3)
  assert asked["option_mask"].tolist() == [[True, True, True], [True, True, False]]
  assert asked["option_label"].tolist() == [1, IGNORED]
  # Words of the text come behind the options; what is asked stays the same.
  ids, labels = encoded["input_ids"][0].copy(), encoded["labels"][0].copy()
  labels[14:16] = ids[14:16]
  encoded["labels"][0] = labels
  batch = batch_unimc(encoded, pad_id=0)
  asked = only_asked_unimc(batch, asked=6)
  assert asked["masked_lm_positions"][0, :5].tolist() == [1, 3, 6, 14, 15]
  for i in range(2):
    kept = batch["labels"][i] != IGNORED
    got = asked["labels"][i] != IGNORED
    assert dict(zip(np.flatnonzero(kept), batch["labels"][i][kept])) == dict(
      zip(asked["masked_lm_positions"][i][got], asked["labels"][i][got])
    )
  with pytest.raises(UserError, match="a row asks at 5 positions, more than asked=4"):
    only_asked_unimc(batch, asked=4)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"choice": None}, "item 1: choice is None; give a list of options"),
    ({"choice": []}, r"item 1: choice is \[\]; give a list"),
    ({"choice": "今天"}, "item 1: choice is '今天'; give a list"),
    ({"choice": ["今", 3]}, "item 1: choice holds 3, which is no text"),
    ({"texta": None}, "item 1: texta holds None, which is no text"),
    ({"question": 5}, "item 1: question holds 5, which is no text"),
    ({"label": 3}, "item 1: label is 3; give the place of one of 3 options"),
    ({"label": -1}, "item 1: label is -1"),
    ({"label": "今"}, "item 1: label is '今'"),
    ({"task_type": "语义匹配", "textb": "今"}, "item 1: 语义匹配 has the options 不相似, 相似, not '今'"),
    ({"task_type": "语义匹配", "choice": ["相似", "不相似"], "label": 0}, "语义匹配 is about two texts; give textb"),
  ],
)
def test_mistakes_are_named(tokenizer, change, message):
  with pytest.raises(UserError, match=message) as error:
    encode_unimc(tokenizer, [ITEM, {**ITEM, **change}], max_length=64)
  assert "\n" not in str(error.value)


def test_a_language_must_be_known_and_its_words_in_the_vocabulary(tokenizer):
  with pytest.raises(UserError, match="unknown language 'french'; known: chinese, english"):
    encode_unimc(tokenizer, [ITEM], max_length=64, language="french")
  with pytest.raises(UserError, match="the tokenizer has no token for 'yes'"):
    encode_unimc(tokenizer, [ITEM], max_length=64, language="english")


@needs_goldens
def test_english_says_yes(chinese):
  item = {"texta": "a new phone", "choice": ["world", "sports"], "label": 1}
  encoded = encode_unimc(chinese, [item], max_length=64, language="english")
  yes, no = chinese.convert_tokens_to_ids(["yes", "no"])
  assert encoded["yes_token"][0] == yes != chinese.unk_token_id
  assert encoded["labels"][0][encoded["option_bounds"][0][:-1]].tolist() == [no, yes]


def test_probabilities_of_a_batch_whose_options_do_not_stand_first():
  items = [{"choice": ["好", "不好"]}]
  assert answers_unimc(items, np.array([[0.3, 0.7, 0.0]]))[0]["answer"] == "不好"
  with pytest.raises(UserError, match="do not add up to 1; give those of a batch of only_asked_unimc"):
    answers_unimc(items, np.array([[0.0, 0.3, 0.7]]))
