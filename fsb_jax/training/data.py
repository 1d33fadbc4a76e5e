"""Batches of text classification examples, as a pure function of (seed, epoch, step)."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from fsb_jax import tasks
from fsb_jax.errors import UserError

_EDGE_MULTIPLE = 8
_FILLING = -1


@dataclasses.dataclass(frozen=True)
class _Plan:
  """An epoch's batches: `rows` int32 `[steps, batch]`, example or `_FILLING`; `buckets` `[steps]`, which bucket."""

  rows: np.ndarray
  buckets: np.ndarray


class Loader:
  """Serves a split of a task in batches of a few fixed shapes.

  The examples are tokenised once, in memory. Order, buckets and every host's rows are pure functions of
  (seed, epoch, step), so a run resumes at once, on the same batch, on any number of hosts. Training (`shuffle=True`)
  draws a new order each epoch; a mixture's tasks then contribute by the mixture's rates (proportional rates: each
  example once). Evaluation (`shuffle=False`) serves each example once, shortest bucket first.

  A batch is filled from one bucket of lengths; what is left of a bucket moves up to the next longer one, and the one
  batch that stays short is filled with copies of its first row at weight 0 (never rows of padding alone, over which
  attention has no defined answer).

  Attributes:
    label_names: names of the head's outputs.
    label_slice: `(start, stop)`, the task's own outputs among them.
    num_examples: how many examples the split has.
    buckets: the lengths that batches may have, ascending.
  """

  def __init__(
    self,
    task_name: str,
    split: str,
    tokenizer,
    max_length: int,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool,
    buckets: int | Sequence[int] = 4,
    data_dir: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Reads and tokenises the split.

    Args:
      task_name: a known task or mixture (`fsb_jax.tasks.names()`), or any task or mixture in SeqIO's registry that
        gives `input_ids` and `label`.
      split: train, validation or test.
      tokenizer: the checkpoint's tokenizer.
      max_length: longest row in tokens; longer texts are cut.
      batch_size: examples in a batch, over all hosts, the same in every bucket.
      seed: of the order of examples and batches.
      shuffle: True for training, False for evaluation.
      buckets: how many lengths to choose (multiples of 8, as little padding as possible), or the lengths themselves.
      data_dir: where the published files lie; FSB_DATA_DIR where it is None.
      process_index: this host's number; it gets rows `[i * batch_size / n, (i + 1) * batch_size / n)` of each batch.
      process_count: number of hosts, n.

    Raises:
      UserError: an argument does not fit, or the task's files are missing or malformed.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
      raise UserError(f"batch_size {batch_size} must be a positive multiple of the number of hosts, {process_count}.")
    if not 0 <= process_index < process_count:
      raise UserError(f"process_index {process_index} is outside 0..{process_count - 1}.")
    if seed < 0:
      raise UserError(f"seed {seed} must not be negative.")
    self.batch_size = batch_size
    self._seed = seed
    self._shuffle = shuffle
    self._host_rows = slice(
      process_index * batch_size // process_count, (process_index + 1) * batch_size // process_count
    )
    self._pad_id = tokenizer.pad_token_id or 0
    self._pad_type_id = tokenizer.pad_token_type_id

    provider, members = _seqio_members(task_name, split, tokenizer, data_dir)
    self.label_names, self.label_slice = _labels(task_name, members)
    columns, self._raw = [], []
    for task in members:
      encoded, fields = _encode(task, split, tokenizer, max_length)
      columns.append(encoded)
      self._raw.append(fields)
    self._lengths = np.array([len(row) for encoded in columns for row in encoded["input_ids"]], np.int64)
    self._offsets = np.concatenate([[0], np.cumsum(self._lengths)])
    self._input_ids = np.concatenate([row for encoded in columns for row in encoded["input_ids"]])
    self._token_type_ids = np.concatenate([row for encoded in columns for row in encoded["token_type_ids"]])
    self._labels = np.concatenate([encoded["label"] for encoded in columns])
    self.num_examples = len(self._lengths)

    sizes = np.array([len(fields) for fields in self._raw])
    self._starts = np.concatenate([[0], np.cumsum(sizes)])
    self._counts = sizes
    if shuffle and len(members) > 1:
      rates = np.array([provider.get_rate(task) for task in members], np.float64)
      self._counts = np.round(self.num_examples * rates / rates.sum()).astype(np.int64)
    self.buckets = _buckets(buckets, self._lengths, max_length)
    self._last_plan: tuple[int, _Plan] | None = None

  def raw(self, index: int) -> dict:
    """The fields of an example as published; `index` is one of a batch's `example_ids`."""
    if not 0 <= index < self.num_examples:
      raise UserError(f"Example {index} is outside 0..{self.num_examples - 1}.")
    member = int(np.searchsorted(self._starts, index, side="right")) - 1
    return self._raw[member][index - int(self._starts[member])]

  def steps_per_epoch(self, epoch: int = 0) -> int:
    """Number of batches in an epoch; it is the same in every epoch."""
    del epoch
    return -(-int(self._counts.sum()) // self.batch_size)

  def batches(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over this host's part of an epoch's batches, from `start_step` on; threads prepare them ahead.

    Each batch has `input_ids`, `attention_mask`, `token_type_ids` int32 `[batch, length]` with one of `buckets` as
    length, `labels` int32 `[batch]` (-1 in a split without labels), `weights` float32 `[batch]` (0 for filling rows)
    and `example_ids` int32 `[batch]` (-1 for filling rows).
    """
    import grain

    plan = self._plan(epoch)
    steps = len(plan.rows)
    if not 0 <= start_step <= steps:
      raise UserError(f"Step {start_step} is outside epoch {epoch}, which has {steps} steps.")
    if start_step == steps:
      return iter(())
    served = grain.MapDataset.range(start_step, steps).map(lambda step: self._batch(plan, int(step)))
    return iter(served.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

  def real_token_share(self, epoch: int = 0) -> float:
    """Share of an epoch's batch positions that hold a real token; the rest is padding and filling rows."""
    plan = self._plan(epoch)
    tokens = self._lengths[plan.rows[plan.rows != _FILLING]].sum()
    return float(tokens / (np.array(self.buckets)[plan.buckets].sum() * self.batch_size))

  def _batch(self, plan: _Plan, step: int) -> dict[str, np.ndarray]:
    example_ids = plan.rows[step, self._host_rows]
    rows = np.where(example_ids == _FILLING, plan.rows[step, 0], example_ids)
    places = np.arange(self.buckets[plan.buckets[step]])
    real = places < self._lengths[rows][:, None]
    flat = (self._offsets[rows][:, None] + places)[real]
    input_ids = np.full(real.shape, self._pad_id, np.int32)
    token_type_ids = np.full(real.shape, self._pad_type_id, np.int32)
    input_ids[real] = self._input_ids[flat]
    token_type_ids[real] = self._token_type_ids[flat]
    return {
      "input_ids": input_ids,
      "attention_mask": real.astype(np.int32),
      "token_type_ids": token_type_ids,
      "labels": self._labels[rows],
      "weights": (example_ids != _FILLING).astype(np.float32),
      "example_ids": example_ids.copy(),
    }

  def _plan(self, epoch: int) -> _Plan:
    epoch = epoch if self._shuffle else 0
    if self._last_plan is None or self._last_plan[0] != epoch:
      self._last_plan = (epoch, self._make_plan(epoch))
    return self._last_plan[1]

  def _make_plan(self, epoch: int) -> _Plan:
    order = self._order(epoch)
    bucket_of = np.searchsorted(self.buckets, self._lengths[order])
    rows, buckets, left = [], [], np.array([], order.dtype)
    for bucket in range(len(self.buckets)):
      waiting = np.concatenate([left, order[bucket_of == bucket]])
      whole = len(waiting) // self.batch_size
      rows.append(waiting[: whole * self.batch_size].reshape(whole, self.batch_size))
      buckets += [bucket] * whole
      left = waiting[whole * self.batch_size :]
    if len(left):
      rows.append(np.pad(left, (0, self.batch_size - len(left)), constant_values=_FILLING)[None])
      buckets.append(int(np.searchsorted(self.buckets, self._lengths[left].max())))
    plan = _Plan(np.concatenate(rows).astype(np.int32), np.array(buckets))
    if self._shuffle:
      batch_order = self._generator(epoch, stream=1).permutation(len(plan.rows))
      plan = _Plan(plan.rows[batch_order], plan.buckets[batch_order])
    return plan

  def _order(self, epoch: int) -> np.ndarray:
    if not self._shuffle:
      return np.arange(self.num_examples)
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


def _buckets(buckets: int | Sequence[int], lengths: np.ndarray, max_length: int) -> tuple[int, ...]:
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


def _seqio_members(task_name: str, split: str, tokenizer, data_dir: str | None):
  import seqio

  if task_name in tasks.names():
    tasks.register(tokenizer, data_dir)
  if task_name not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
    raise UserError(f"There is no task {task_name!r}; the known ones are {', '.join(tasks.names())}.")
  provider = seqio.get_mixture_or_task(task_name)
  every = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
  members = [task for task in every if split in task.splits]
  if not members:
    raise UserError(f"Task {task_name} has no split {split!r}; its splits are {', '.join(sorted(provider.splits))}.")
  for task in members:
    missing = {"input_ids", "label"} - set(task.output_features)
    if missing:
      raise UserError(f"Task {task.name} gives no feature {min(missing)!r}; the loader needs input_ids and label.")
  for task in every:
    if task not in members:
      logging.getLogger(__name__).warning("%s: %s has no split %s and is left out", task_name, task.name, split)
  return provider, members


def _labels(task_name: str, members) -> tuple[tuple[str, ...], tuple[int, int]]:
  known = tasks.names()
  if task_name in known:
    found = tasks.info(task_name)
    return found.label_names, found.label_slice
  # Not one of ours, but its tasks may be.
  names = {
    tasks.info(task.name).label_names
    if task.name in known
    else tuple(str(label) for label in range(task.output_features["label"].vocabulary.vocab_size))
    for task in members
  }
  if len(names) > 1:
    raise UserError(f"The tasks of {task_name} do not share one list of labels, so no one head can serve them.")
  label_names = names.pop()
  if not label_names:
    raise UserError(
      f"Task {task_name} does not say how many labels it has: give its feature 'label' the vocabulary "
      "seqio.PassThroughVocabulary(size=<number of labels>)."
    )
  return label_names, (0, len(label_names))


def _encode(task, split: str, tokenizer, max_length: int) -> tuple[dict, list[dict]]:
  from fsb_jax.tasks.preprocessors import EncodePair
  from fsb_jax.tasks.seqio_tasks import TaskSource
  from fsb_jax.tasks.vocabularies import TokenizerVocabulary

  steps = task.preprocessors
  if isinstance(task.source, TaskSource) and len(steps) == 1 and isinstance(steps[0], EncodePair):
    # The same code as in the task's own pipeline, without tf.data between the rows and the tokenizer.
    if steps[0].vocabulary != TokenizerVocabulary(tokenizer):
      raise UserError(f"Task {task.name} is registered with another tokenizer; call fsb_jax.tasks.register first.")
    loaded = task.source.load(split)
    return steps[0].encode_batch(loaded.examples, max_length), loaded.fields
  lengths = {"input_ids": max_length, "token_type_ids": max_length}
  dataset = task.get_dataset(sequence_length=lengths, split=split, shuffle=False, num_epochs=1)
  rows = list(dataset.as_numpy_iterator())
  if not rows:
    raise UserError(f"Task {task.name} has no examples in its split {split!r}.")
  input_ids = [np.asarray(row["input_ids"], np.int32) for row in rows]
  encoded = {
    "input_ids": input_ids,
    "token_type_ids": [
      np.asarray(row["token_type_ids"], np.int32) if "token_type_ids" in row else np.zeros_like(ids)
      for row, ids in zip(rows, input_ids)
    ],
    "label": np.array([row["label"] for row in rows], np.int32),
  }
  return encoded, rows
