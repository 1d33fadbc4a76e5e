"""Which examples stand in which batch: pure functions of (seed, epoch) over the examples' lengths."""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from fsb_jax.errors import UserError

FILLING = -1
_EDGE_MULTIPLE = 8
_PLANS_KEPT = 3  # batches of an epoch are still being made when those of the next begin, and one is made ahead


def spread(count: int, at_most: int | None) -> np.ndarray:
  """`at_most` of `count` rows, evenly spread over them (files may be sorted by label), or all: int64 `[rows]`."""
  if at_most is None or at_most >= count:
    return np.arange(count)
  return np.arange(at_most) * count // at_most


@dataclasses.dataclass(frozen=True)
class Plan:
  """An epoch's batches: `rows` int32 `[steps, batch]`, example or `FILLING`; `buckets` `[steps]`, which bucket."""

  rows: np.ndarray
  buckets: np.ndarray


class Batching:
  """The batches of every epoch.

  A batch is filled from one bucket of lengths; what is left of a bucket moves up to the next longer one, so that one
  batch at most stays short. Plans are made in a thread of their own, `prepare` makes one ahead.

  Attributes:
    steps: how many batches an epoch has; the same in every epoch.
  """

  def __init__(
    self,
    lengths: np.ndarray,
    buckets: Sequence[int],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    member_sizes: Sequence[int],
    member_counts: Sequence[int],
  ):
    """Makes no plan yet.

    Args:
      lengths: `[examples]`, in tokens.
      buckets: lengths of batches, ascending; none of `lengths` is longer than the last.
      batch_size: examples in a batch.
      shuffle: draw an order for each epoch; else the order is that of the examples, shortest bucket first.
      seed: of the order.
      member_sizes: how many examples each task of a mixture has; they stand one after the other.
      member_counts: how many of them an epoch takes, where it shuffles.
    """
    self._lengths = lengths
    self._buckets = buckets
    self._batch_size = batch_size
    self._shuffle = shuffle
    self._seed = seed
    self._starts = np.concatenate([[0], np.cumsum(member_sizes)])
    self._counts = member_counts
    self.steps = -(-int(sum(member_counts)) // batch_size)
    self._made: dict[int, concurrent.futures.Future[Plan]] = {}
    self._lock = threading.Lock()
    self._executor = concurrent.futures.ThreadPoolExecutor(1, "plan")

  def plan(self, epoch: int) -> Plan:
    """The batches of an epoch; waits for them where they are not made yet."""
    return self.prepare(epoch).result()

  def prepare(self, epoch: int) -> concurrent.futures.Future[Plan]:
    """Begins to make the batches of an epoch, unless they are there."""
    epoch = epoch if self._shuffle else 0
    with self._lock:
      if epoch not in self._made:
        self._made[epoch] = self._executor.submit(self._make, epoch)
        for oldest in list(self._made)[:-_PLANS_KEPT]:
          del self._made[oldest]
      return self._made[epoch]

  def _make(self, epoch: int) -> Plan:
    order = self._order(epoch)
    bucket_of = np.searchsorted(self._buckets, self._lengths[order])
    rows, buckets, left = [], [], np.array([], order.dtype)
    for bucket in range(len(self._buckets)):
      waiting = np.concatenate([left, order[bucket_of == bucket]])
      whole = len(waiting) // self._batch_size
      rows.append(waiting[: whole * self._batch_size].reshape(whole, self._batch_size))
      buckets += [bucket] * whole
      left = waiting[whole * self._batch_size :]
    if len(left):
      rows.append(np.pad(left, (0, self._batch_size - len(left)), constant_values=FILLING)[None])
      buckets.append(int(np.searchsorted(self._buckets, self._lengths[left].max())))
    plan = Plan(np.concatenate(rows).astype(np.int32), np.array(buckets))
    if self._shuffle:
      batch_order = self._generator(epoch, stream=1).permutation(len(plan.rows))
      plan = Plan(plan.rows[batch_order], plan.buckets[batch_order])
    return plan

  def _order(self, epoch: int) -> np.ndarray:
    if not self._shuffle:
      return np.arange(len(self._lengths))
    chosen = []
    for member, count in enumerate(self._counts):
      # A member is an endless row of whole passes, each in its own order, of which an epoch takes the next `count`.
      start, size = int(self._starts[member]), int(self._starts[member + 1] - self._starts[member])
      first, last = epoch * int(count), (epoch + 1) * int(count)
      passes = range(first // size, -(-last // size))
      stream = [self._generator(number, stream=2 + member).permutation(size) for number in passes]
      skipped = first - passes.start * size
      chosen.append(start + np.concatenate([*stream, np.array([], np.int64)])[skipped : skipped + int(count)])
    chosen = np.concatenate(chosen)
    return chosen[self._generator(epoch, stream=0).permutation(len(chosen))]

  def _generator(self, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[self._seed, epoch], counter=[0, 0, 0, stream]))


def choose_buckets(lengths: np.ndarray, count: int, max_length: int) -> tuple[int, ...]:
  """Chooses at most `count` bucket lengths that leave the fewest padded positions.

  Args:
    lengths: the examples' lengths in tokens, none above `max_length`.
    count: how many buckets at most.
    max_length: no bucket is longer.

  Returns:
    Lengths, ascending: multiples of 8, and the largest the smaller of `max_length` and the longest example rounded up.
  """
  rounded = np.minimum(-(-np.asarray(lengths) // _EDGE_MULTIPLE) * _EDGE_MULTIPLE, max_length)
  edges, occupancy = np.unique(rounded, return_counts=True)
  below = np.concatenate([[0], np.cumsum(occupancy)])
  # cost[j]: positions of the examples up to edge j, with edge j the last bucket; choice[k][j]: the edge before it.
  cost = edges * below[1:]
  choices = []
  for _ in range(min(count, len(edges)) - 1):
    # table[i, j]: buckets up to edge i as before, then one more that reaches to edge j.
    table = cost[:, None] + edges[None, :] * (below[None, 1:] - below[1:, None])
    table = np.where(np.arange(len(edges))[:, None] < np.arange(len(edges))[None, :], table, np.iinfo(np.int64).max)
    choices.append(np.where(table.min(axis=0) < cost, table.argmin(axis=0), -1))
    cost = np.minimum(table.min(axis=0), cost)
  chosen, edge = [], len(edges) - 1
  for choice in reversed(choices):
    if choice[edge] >= 0:
      chosen.append(int(edges[edge]))
      edge = int(choice[edge])
  return tuple(sorted([*chosen, int(edges[edge])]))


def bucket_lengths(buckets: int | Sequence[int], lengths: np.ndarray, max_length: int) -> tuple[int, ...]:
  """The lengths that batches may have: `buckets` themselves, checked, or as many as it says, chosen."""
  longest = int(lengths.max())
  if isinstance(buckets, int):
    if buckets < 1:
      raise UserError(f"buckets {buckets} must be at least 1.")
    return choose_buckets(lengths, buckets, max_length)
  buckets = tuple(int(length) for length in buckets)
  if not buckets or buckets[0] < 1 or any(low >= high for low, high in zip(buckets, buckets[1:])):
    raise UserError(f"buckets {buckets} must be positive lengths in ascending order.")
  if buckets[-1] < longest:
    raise UserError(f"buckets {buckets} end before the longest example, {longest} tokens; add {longest} or more.")
  return buckets
