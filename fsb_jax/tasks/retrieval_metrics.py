"""Retrieval of images by texts and of texts by images: how often the right one is among the first."""

from collections.abc import Sequence

import numpy as np

from fsb_jax.errors import UserError


def retrieval_recall(
  similarity: np.ndarray, text_images: Sequence, images: Sequence | None = None, at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
  """Recall at k in both directions, as Flickr30k-CNA and COCO-CN are scored.

  A text asks for its one image. An image asks for any of its texts, of which it may have several. An image that stands
  in several columns, as it does where data are pairs, counts once: its first column does.

  Args:
    similarity: `[texts, columns]`, higher is more alike.
    text_images: which image each text is of, `[texts]`: its name or number.
    images: which image each column is, `[columns]`; 0, 1, ... if not given.
    at: numbers k.

  Returns:
    `text_to_image_recall@k` and `image_to_text_recall@k` for every k, and their mean `mean_recall`, between 0 and 1. What
    is as alike as the right one is taken to stand before it.

  Raises:
    UserError: shapes that do not fit, a text whose image is in no column, an image without a text, a similarity that is
      no number, or a k below 1.
  """
  similarity, text_images = np.asarray(similarity), np.asarray(text_images)
  images = np.arange(similarity.shape[-1]) if images is None else np.asarray(images)
  if not at or min(at) < 1:
    raise UserError(f"recall is asked for at {list(at)}; give numbers of at least 1")
  if similarity.ndim != 2 or similarity.shape != (len(text_images), len(images)) or not similarity.size:
    raise UserError(
      f"similarity has shape {similarity.shape}, but there are {len(text_images)} texts and {len(images)} images"
    )
  if np.isnan(similarity).any():
    raise UserError("some similarities are no numbers")
  distinct, columns = np.unique(images, return_index=True)
  place = np.searchsorted(distinct, text_images)
  known = distinct[np.minimum(place, len(distinct) - 1)] == text_images
  if not known.all():
    raise UserError(f"text {int(np.argmin(known))} is of image {text_images[np.argmin(known)]}, which is no column's")
  without = np.setdiff1d(np.arange(len(distinct)), place)
  if len(without):
    raise UserError(f"image {distinct[without[0]]} has no text")
  scores = similarity[:, columns]
  # [texts, distinct images]
  right = place[:, None] == np.arange(len(distinct))
  ranks = {"text_to_image": _ranks(scores, right), "image_to_text": _ranks(scores.T, right.T)}
  recalls = {f"{name}_recall@{k}": float(np.mean(rank < k)) for name, rank in ranks.items() for k in at}
  return {**recalls, "mean_recall": float(np.mean([*recalls.values()]))}


def _ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  """How many wrong candidates stand before the best right one, `[questions]`; both are `[questions, candidates]`."""
  best = np.max(np.where(right, scores, -np.inf), axis=1, keepdims=True)
  return np.sum((scores >= best) & ~right, axis=1)
