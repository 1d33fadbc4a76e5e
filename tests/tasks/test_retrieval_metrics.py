import numpy as np
import pytest

from fsb_jax.errors import UserError
from fsb_jax.tasks.retrieval_metrics import retrieval_recall


def slowly(similarity, text_images, images, k):
  """Recall at k, by sorting; without ties."""
  columns = [i for i, image in enumerate(images) if image not in images[:i]]
  found = [
    image in [images[c] for c in sorted(columns, key=lambda c, row=row: -row[c])[:k]]
    for image, row in zip(text_images, similarity)
  ]
  of_images = [
    any(text_images[t] == images[c] for t in sorted(range(len(text_images)), key=lambda t, c=c: -similarity[t][c])[:k])
    for c in columns
  ]
  return np.mean(found), np.mean(of_images)


@pytest.mark.parametrize("seed", range(5))
def test_recall_is_that_of_sorting(seed):
  random = np.random.default_rng(seed)
  images = ["c", "a", "b", "a", "e", "c", "d", "c"]
  texts = [*"abcde", *random.choice([*"abcde"], 12)]
  similarity = random.normal(size=(len(texts), len(images)))
  got = retrieval_recall(similarity, texts, images, at=(1, 2, 4))
  for k in (1, 2, 4):
    expected = slowly(similarity.tolist(), texts, images, k)
    assert (got[f"text_to_image_recall@{k}"], got[f"image_to_text_recall@{k}"]) == pytest.approx(expected)
  assert got["mean_recall"] == pytest.approx(np.mean([x for name, x in got.items() if name != "mean_recall"]))


def test_an_image_in_several_columns_counts_once():
  # The wrong image, twice, is ahead of the right one: which is still the second.
  similarity = np.array([[3.0, 2.0, 3.0], [1.0, 0.0, 1.0]])
  got = retrieval_recall(similarity, [1, 0], [0, 1, 0], at=(1, 2))
  assert (got["text_to_image_recall@1"], got["text_to_image_recall@2"]) == (0.5, 1.0)


def test_pairs_of_one_caption_each():
  got = retrieval_recall(np.eye(12), range(12))
  assert got == dict.fromkeys(got, 1.0)
  assert list(got)[:3] == ["text_to_image_recall@1", "text_to_image_recall@5", "text_to_image_recall@10"]


def test_a_model_that_says_the_same_of_everything_finds_nothing():
  got = retrieval_recall(np.zeros((12, 12)), range(12))
  assert got["text_to_image_recall@10"] == got["image_to_text_recall@10"] == 0.0


@pytest.mark.parametrize(
  "similarity,texts,images,at,message",
  [
    (np.zeros((2, 3)), [0, 1], [0, 1], (1,), r"shape \(2, 3\), but there are 2 texts and 2 images"),
    (np.zeros((0, 0)), [], [], (1,), "there are 0 texts and 0 images"),
    (np.zeros((2, 2)), [0, 7], [0, 1], (1,), "text 1 is of image 7, which is no column's"),
    (np.zeros((2, 2)), [0, 0], [0, 1], (1,), "image 1 has no text"),
    (np.full((2, 2), np.nan), [0, 1], [0, 1], (1,), "no numbers"),
    (np.zeros((2, 2)), [0, 1], [0, 1], (0,), "at least 1"),
  ],
)
def test_what_cannot_be_scored(similarity, texts, images, at, message):
  with pytest.raises(UserError, match=message):
    retrieval_recall(similarity, texts, images, at)
