import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fsb_jax.training.batching import choose_buckets, spread


@settings(max_examples=60, deadline=None)
@given(
  lengths=st.lists(st.integers(2, 60), min_size=1, max_size=30),
  count=st.integers(1, 4),
  max_length=st.sampled_from([60, 61, 64]),
)
def test_buckets_are_the_best_of_all(lengths, count, max_length):
  def padded(edges):
    return sum(min(edge for edge in edges if edge >= length) for length in lengths)

  chosen = choose_buckets(np.array(lengths), count, max_length)
  largest = min(max_length, -(-max(lengths) // 8) * 8)
  assert chosen[-1] == largest and len(chosen) <= count and list(chosen) == sorted(set(chosen))
  smaller = range(8, largest, 8)
  every = [(*edges, largest) for size in range(count) for edges in itertools.combinations(smaller, size)]
  assert padded(chosen) == min(map(padded, every))


def test_rows_are_spread_over_all():
  assert spread(10, 4).tolist() == [0, 2, 5, 7] and spread(3, 3).tolist() == spread(3, None).tolist() == [0, 1, 2]
  assert spread(2, 5).tolist() == [0, 1] and len(set(spread(1009, 100).tolist())) == 100
