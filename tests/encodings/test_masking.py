import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.encodings import IGNORED, asked_positions, mask_words

MASK = 4
REPLACEMENTS = np.arange(5, 1000, dtype=np.int32)
WORDS = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=0, max_size=60)


def row(words):
  """A row with a special token at both ends and after some words: `input_ids`, `word_ids`."""
  word_ids = [-1]
  for number, (size, special_follows) in enumerate(words):
    word_ids += [number] * size + [-1] * special_follows
  word_ids = np.array([*word_ids, -1], np.int32)
  return np.where(word_ids < 0, 2, 10 + np.arange(len(word_ids))).astype(np.int32), word_ids


def hide(input_ids, word_ids, **changes):
  options = {"seed": 0, "epoch": 0, "example": 0, "mask_id": MASK, "replacements": REPLACEMENTS, **changes}
  return mask_words(input_ids, word_ids, **options)


@settings(max_examples=200, deadline=None)
@given(words=WORDS, seed=st.integers(0, 5), epoch=st.integers(0, 5), example=st.integers(0, 2**31 - 1))
def test_whole_words_are_hidden_up_to_the_budget(words, seed, epoch, example):
  input_ids, word_ids = row(words)
  given_ids = input_ids.copy()
  masked, labels = hide(input_ids, word_ids, seed=seed, epoch=epoch, example=example)
  np.testing.assert_array_equal(input_ids, given_ids)
  assert masked.dtype == labels.dtype == np.int32
  chosen = labels != IGNORED
  np.testing.assert_array_equal(labels[chosen], input_ids[chosen])
  np.testing.assert_array_equal(masked[~chosen], input_ids[~chosen])
  assert not chosen[word_ids < 0].any()
  for word in range(len(words)):
    assert len(set(chosen[word_ids == word])) <= 1
  candidates = int((word_ids >= 0).sum())
  budget = max(1, round(0.15 * candidates))
  left = [size for word, (size, _) in enumerate(words) if not chosen[word_ids == word].any()]
  # Nothing that is left would have fitted.
  assert chosen.sum() <= budget and all(size > budget - chosen.sum() for size in left)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(WORDS, min_size=1, max_size=4), seed=st.integers(0, 5))
def test_everything_that_is_asked_is_listed(rows, seed):
  hidden = [hide(*row(words), seed=seed)[1] for words in rows]
  length = max(map(len, hidden))
  labels = np.stack([np.pad(each, (0, length - len(each)), constant_values=IGNORED) for each in hidden])
  positions, asked = asked_positions(labels)
  assert positions.shape == asked.shape == (len(rows), max(1, -(-length * 15 // 100)))
  assert positions.dtype == asked.dtype == np.int32
  again = np.full_like(labels, IGNORED)
  np.put_along_axis(again, positions, asked, axis=1)
  np.testing.assert_array_equal(again, labels)
  assert all(len({*places}) == len(places) for places in positions.tolist())


def test_padding_changes_nothing():
  input_ids, word_ids = row([(1, False)] * 20 + [(3, True)] * 5)
  short = hide(input_ids, word_ids)
  long = hide(np.pad(input_ids, (0, 30)), np.pad(word_ids, (0, 30), constant_values=-1))
  for one, other in zip(short, long):
    np.testing.assert_array_equal(one, other[: len(one)])
  assert (long[0][len(input_ids) :] == 0).all() and (long[1][len(input_ids) :] == IGNORED).all()


def test_rates():
  """15 % of the tokens are chosen; of these 80 % become the mask, 10 % another token, 10 % stay: within 5 sigma."""
  input_ids, word_ids = row([(1, False), (2, False), (3, False)] * 30)
  # The row's own ids are not among the replacements, so that no replacement looks like a token that stays.
  replacements = np.arange(500, 1000, dtype=np.int32)
  chosen = masks = stays = others = 0
  places = np.zeros(len(input_ids))
  for example in range(2000):
    masked, labels = hide(input_ids, word_ids, example=example, replacements=replacements)
    where = labels != IGNORED
    places += where
    chosen += where.sum()
    masks += (masked[where] == MASK).sum()
    stays += (masked[where] == input_ids[where]).sum()
    others += np.isin(masked[where], replacements).sum()
  assert masks + stays + others == chosen
  assert chosen / (2000 * 180) == pytest.approx(0.15, abs=0.0005)
  for count, share in ((masks, 0.8), (stays, 0.1), (others, 0.1)):
    assert abs(count / chosen - share) < 5 * np.sqrt(share * (1 - share) / chosen)
  # A word is as likely as any other of its size; long ones are a little less likely, as they may not fit at the end.
  for first_token in (0, 1, 3):
    of_size = places[word_ids >= 0].reshape(30, 6)[:, first_token]
    assert np.abs(of_size - of_size.mean()).max() < 5 * np.sqrt(of_size.mean())
    assert of_size.mean() == pytest.approx(2000 * 0.15, rel=0.2)


def test_masks_are_a_pure_function_of_seed_epoch_and_example():
  input_ids, word_ids = row([(1, False)] * 100)
  drawn = {
    (seed, epoch, example): hide(input_ids, word_ids, seed=seed, epoch=epoch, example=example)
    for seed in (0, 1) for epoch in (0, 1) for example in (0, 1)
  }
  np.random.default_rng().random(3)
  for key, (masked, labels) in reversed(drawn.items()):
    seed, epoch, example = key
    again = hide(input_ids, word_ids, seed=seed, epoch=epoch, example=example)
    np.testing.assert_array_equal(masked, again[0])
    np.testing.assert_array_equal(labels, again[1])
  assert len({labels.tobytes() for _, labels in drawn.values()}) == 8


def test_masks_stay_what_they_are():
  """Another version of this code, or of NumPy, would otherwise change what a run that goes on sees."""
  input_ids = np.arange(10, 110, dtype=np.int32)
  masked, labels = hide(input_ids, np.arange(100, dtype=np.int32), seed=7, epoch=2, example=5)
  chosen = np.flatnonzero(labels != IGNORED)
  assert chosen.tolist() == [0, 6, 7, 21, 41, 50, 54, 60, 62, 74, 82, 85, 89, 97, 99]
  assert {place: masked[place] for place in chosen if masked[place] != MASK} == {21: input_ids[21], 60: 230, 62: 577}
