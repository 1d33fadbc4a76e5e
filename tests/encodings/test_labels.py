import numpy as np
import pytest

from fsb_jax.encodings import LabelMap
from fsb_jax.errors import UserError


def test_names_and_ids():
  labels = LabelMap(["矛盾", "中立", "蕴含"])
  assert labels.ids(["蕴含", "矛盾"]).tolist() == [2, 0]
  assert labels.ids([]).dtype == np.int32
  assert [labels.name(index) for index in range(len(labels))] == ["矛盾", "中立", "蕴含"]
  assert labels == LabelMap(labels.names) and labels != LabelMap(["蕴含"])


def test_mistakes_are_named():
  labels = LabelMap(["yes", "no"])
  with pytest.raises(UserError, match="unknown label 'maybe'; the known labels are yes, no"):
    labels.id("maybe")
  with pytest.raises(UserError, match="and 5 more"):
    LabelMap(str(number) for number in range(25)).id("x")
  for label_id in (-1, 2):
    with pytest.raises(UserError, match=f"label id {label_id} is outside 0..1"):
      labels.name(label_id)
  with pytest.raises(UserError, match="'a' is listed twice"):
    LabelMap(["a", "b", "a"])
  with pytest.raises(UserError, match="at least one"):
    LabelMap([])
