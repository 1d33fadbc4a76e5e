import numpy as np
import pytest

from fsb_jax.errors import UserError
from fsb_jax.tasks import accuracy, predicted_labels


def test_accuracy():
  assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == {"accuracy": 0.75}
  with pytest.raises(UserError, match="published without"):
    accuracy([-1, 0], [0, 0])
  for targets, predictions in (([], []), ([1, 0], [1])):
    with pytest.raises(UserError, match="as many predictions as targets"):
      accuracy(targets, predictions)


def test_predictions_stay_inside_the_slice():
  logits = np.array([[9.0, 1.0, 3.0, 2.0, 8.0], [0.0, 4.0, 1.0, 5.0, 9.0]])
  assert predicted_labels(logits, (1, 4)).tolist() == [2, 3]
  assert predicted_labels(logits[0], (0, 5)) == 0
