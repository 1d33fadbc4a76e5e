"""Which of some labels an image shows, in words nobody trained it for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.pipelines.image_text import ImageText


class ZeroShotImageClassification:
  """Answers with a label and its probability: a softmax of how alike the image and every label are.

  Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.2.

  Args:
    model: see `ImageText`.
    labels: texts to choose from, such as ["猫", "狗"] or "猫,狗".
    template: what is read of a label, with {} in its place, such as "一张{}的照片".
    **options: of `ImageText` and of `from_pretrained`, such as image_model= or dtype=.

  Raises:
    UserError: fewer than two labels, or a template without a place for them; or see `ImageText`.
  """

  def __init__(self, model: str | Path, *, labels: Sequence[str] = (), template: str = "{}", **options: Any):
    labels = labels.split(",") if isinstance(labels, str) else list(labels)
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
      raise UserError(f"labels={labels} is no choice; give at least two, each once")
    if template.count("{}") != 1:
      raise UserError(f"template={template!r} must have one {{}}, where the label goes")
    self.labels = labels
    self._reader = ImageText(model, **options)
    self._texts = self._reader.texts([template.replace("{}", label) for label in labels])

  def __call__(self, images: Any) -> dict[str, Any] | list[dict[str, Any]]:
    """{"label", "score", "scores"} for an image, or a list of them for several.

    Args:
      images: a path or an image of Pillow's, or a list of them.

    Returns:
      The likeliest label, its probability, and the probability of every label by its name.
    """
    if not isinstance(images, list | tuple):
      return self([images])[0]
    logits = self._reader.scale * self._reader.images(images) @ self._texts.T
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    answers = []
    for row in odds / odds.sum(axis=-1, keepdims=True):
      scores = {label: float(score) for label, score in zip(self.labels, row)}
      best = self.labels[int(row.argmax())]
      answers.append({"label": best, "score": scores[best], "scores": scores})
    return answers
