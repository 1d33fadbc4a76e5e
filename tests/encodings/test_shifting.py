import numpy as np
import pytest

from fsb_jax.encodings import shift_right


def test_the_decoder_reads_one_token_late():
  labels = np.array([[5, 6, 2, -100], [7, 2, -100, -100]], np.int32)
  shifted = shift_right(labels, 9, 0)
  np.testing.assert_array_equal(shifted, [[9, 5, 6, 2], [9, 7, 2, 0]])
  assert shifted.dtype == np.int32
  assert labels[0, 3] == -100


def test_one_row_and_rows_of_choices():
  np.testing.assert_array_equal(shift_right(np.array([3, -100, 4]), 1, 0), [1, 3, 0])
  assert shift_right(np.zeros((2, 3, 4), int), 1, 0).tolist() == [[[1, 0, 0, 0]] * 3] * 2


@pytest.mark.parametrize("seed", range(3))
def test_as_transformers_shifts(seed):
  torch = pytest.importorskip("torch")
  from transformers.models.bart.modeling_bart import shift_tokens_right

  labels = np.random.default_rng(seed).integers(0, 9, (3, 6))
  labels[labels < 3] = -100
  np.testing.assert_array_equal(shift_right(labels, 2, 1), shift_tokens_right(torch.from_numpy(labels), 1, 2).numpy())
