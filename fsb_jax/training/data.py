"""Batches of a task's examples, as a pure function of (seed, epoch, step)."""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fsb_jax.encodings import IGNORED
from fsb_jax.errors import UserError
from fsb_jax.training.batching import FILLING, Batching, bucket_lengths
from fsb_jax.training.examples import read_examples
from fsb_jax.training.options import Options


class Loader:
  """Serves a split of a task in batches of a few fixed shapes.

  The examples are tokenised once, in memory. Order, buckets and hidden words are pure functions of (seed, epoch, step),
  so a run resumes at once, on the same batch, on any number of hosts. Training (`shuffle=True`) draws a new order each
  epoch; a mixture's tasks then contribute by the mixture's rates (proportional rates: each example once). Evaluation
  (`shuffle=False`) serves each example once, shortest bucket first, in every epoch as in epoch 0.

  The one batch of an epoch that may stay short is filled with copies of its first row at weight 0 (never rows of
  padding alone, over which attention has no defined answer).

  Attributes:
    head: the head that the task trains, such as sequence_classification or masked_lm.
    objective: the loss that trains it, one of `losses.OBJECTIVES`.
    label_names: names of the head's outputs; none where they are not labels.
    label_slice: `(start, stop)`, the task's own outputs among them.
    num_examples: how many examples the split has.
    batch_size: examples in a batch, over all hosts.
    buckets: the lengths that batches may have, ascending.
    question: what is asked about the examples, and how answers are scored.
    waited: seconds that whoever takes the batches has waited for them so far.
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
    rows: Sequence[int] | None = None,
    mixture_rate: Callable[..., float] | None = None,
    view: str | None = None,
    max_examples: int | None = None,
    cache_dir: str | None = None,
    head: str | None = None,
  ):
    """Reads and tokenises the split.

    Args:
      task_name: a known task or mixture (`fsb_jax.tasks.names()`), or any task or mixture in SeqIO's registry that
        gives `input_ids` and `label`, or `input_ids` and `word_ids`.
      split: train, validation or test.
      tokenizer: the checkpoint's tokenizer.
      max_length: longest row in tokens; longer texts are cut, longer documents cut into several rows.
      batch_size: examples in a batch, over all hosts, the same in every bucket.
      seed: of the order of examples and batches, and of what is hidden in them.
      shuffle: True for training, False for evaluation.
      buckets: how many lengths to choose (multiples of 8, as little padding as possible), or the lengths themselves.
      data_dir: where the published files lie; FSB_DATA_DIR where it is None.
      rows: which rows of each batch this host serves, in this order; all where it is None.
      mixture_rate: `(task, split=)` -> the rate at which training takes a mixture's SeqIO task, such as
        `seqio.mixing_rate_num_examples` with a temperature or a maximum; the mixture's own where it is None.
      view: "unimc" asks a classification or multiple choice as a question with options, see `options`; None as it is.
      max_examples: take so many of each task at most, see `batching.spread`.
      cache_dir: take the tokens from there, where `tasks.caching.cache_task` put them; None reads the files.
      head: that answers, where a task may be for several: the taggers; None is the usual one.

    Raises:
      UserError: an argument does not fit, or the task's files are missing or malformed.
    """
    if batch_size < 1:
      raise UserError(f"batch_size {batch_size} must be at least 1.")
    if seed < 0:
      raise UserError(f"seed {seed} must not be negative.")
    self._rows = np.arange(batch_size) if rows is None else np.array(rows, np.int64)
    if not len(self._rows) or self._rows.min() < 0 or self._rows.max() >= batch_size:
      raise UserError(f"rows {list(rows)} must be some of a batch's rows, 0 to {batch_size - 1}.")
    self.batch_size = batch_size
    self._seed = seed
    self._shuffle = shuffle
    self._tokenizer = tokenizer
    self._padding = {
      "input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id, "word_ids": -1
    }
    self._padding_side = tokenizer.padding_side
    self._examples = read_examples(
      task_name, split, tokenizer, max_length, seed=seed, by_rates=shuffle, data_dir=data_dir,
      mixture_rate=mixture_rate, view=view, max_examples=max_examples, cache_dir=cache_dir, head=head,
    )
    self.question = question = self._examples.question
    lengths = self._examples.tokens.lengths
    self.head, self.label_names, self.label_slice = question.head, question.label_names, question.label_slice
    self.objective = question.objective
    self.num_examples = sum(self._examples.sizes)
    self.buckets = bucket_lengths(buckets, lengths, max_length)
    self._batching = Batching(
      lengths, self.buckets, batch_size,
      shuffle=shuffle, seed=seed, member_sizes=self._examples.rows, member_counts=self._examples.counts,
    )
    self.waited = 0.0

  @functools.cached_property
  def digest(self) -> str:
    """sha256 of everything that decides the batches; hosts with the same digest serve parts of the same batches."""
    examples = self._examples
    settings = (
      self.head, self.label_names, self.label_slice, self.buckets, examples.sizes, examples.counts, self._seed,
      self.batch_size, self._shuffle, self._padding, self._padding_side,
    )
    found = hashlib.sha256(repr(settings).encode())
    arrays = {"lengths": examples.tokens.lengths, **examples.tokens.features, **self.question.arrays()}
    for name, array in arrays.items():
      found.update(f"{name} {array.dtype} {array.shape}".encode())
      found.update(np.ascontiguousarray(array))
    return found.hexdigest()

  def raw(self, index: int) -> dict:
    """The fields of an example as published, or the text of a document's row."""
    if not 0 <= index < self.num_examples:
      raise UserError(f"Example {index} is outside 0..{self.num_examples - 1}.")
    starts = np.cumsum([0, *self._examples.sizes])
    member = int(np.searchsorted(starts, index, side="right")) - 1
    fields = self._examples.fields[member]()
    if fields is None:
      return {"text": self._tokenizer.decode(self._examples.tokens.row("input_ids", index), skip_special_tokens=True)}
    return fields[index - int(starts[member])]

  def options(self, index: int) -> Sequence[str]:
    """The answers that an example may have, in words, in the order of `label_slice`."""
    return self.question.options(index)

  @property
  def items(self) -> Sequence[Mapping] | None:
    """With the view unimc what each example was encoded from, see `encodings.encode_unimc`; None without."""
    return self.question.items if isinstance(self.question, Options) else None

  def steps_per_epoch(self) -> int:
    """Number of batches in an epoch; it is the same in every epoch."""
    return self._batching.steps

  def example_ids(self, epoch: int, step: int) -> np.ndarray:
    """The rows of a batch, over all hosts: int32 `[batch]`, -1 for filling rows; see `batches`."""
    self._require_step(epoch, step, self.steps_per_epoch() - 1)
    return self._batching.plan(epoch).rows[step].copy()

  def batches(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over this host's part of an epoch's batches, from `start_step` on; threads prepare them ahead.

    Each batch has `input_ids`, `attention_mask`, `token_type_ids` int32 `[batch, length]` with one of `buckets` as
    length, `weights` float32 `[batch]` (0 for filling rows), `example_ids` int32 `[batch]` (-1 for filling rows; of
    passages the number of the window, of which an example has several), and what the question asks: `labels` for
    sequence_classification int32 `[batch]` (-1 in a split without labels), for masked_lm int32 `[batch, asked]` for
    `masked_lm_positions` of that shape (-100 where no word is hidden); -100 in filling rows. With the view unimc a
    batch is one of `encodings.only_asked_unimc`; of passages see `passages.Passages.ask`, of taggers `tags.Tags.ask`.
    """
    steps = self.steps_per_epoch()
    self._require_step(epoch, start_step, steps)
    return self.stream(epoch * steps + start_step, (epoch + 1) * steps)

  def stream(self, first_step: int, last_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over the batches of steps `first_step` to `last_step` (exclusive), counted over epochs.

    An epoch's order is drawn while the one before is being served.
    """
    if not 0 <= first_step <= last_step:
      raise UserError(f"Steps {first_step} to {last_step} are no steps of a run.")
    return self._serve(first_step, last_step)

  def _serve(self, first_step: int, last_step: int) -> Iterator[dict[str, np.ndarray]]:
    if first_step == last_step:
      return
    import grain

    steps = self.steps_per_epoch()

    def make(step) -> dict[str, np.ndarray]:
      epoch, step_of_epoch = divmod(int(step), steps)
      plan = self._batching.plan(epoch)
      if (epoch + 1) * steps < last_step:
        self._batching.prepare(epoch + 1)
      return self._batch(plan.rows[step_of_epoch], self.buckets[plan.buckets[step_of_epoch]], epoch)

    served = grain.MapDataset.range(first_step, last_step).map(make)
    ready = iter(served.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
    while True:
      since = time.monotonic()
      batch = next(ready, None)
      self.waited += time.monotonic() - since
      if batch is None:
        return
      yield batch

  def shapes(self, length: int) -> dict[str, tuple[int, ...]]:
    """The shape over all hosts of every array in a batch of that length."""
    batch = self._batch(np.zeros(self.batch_size, np.int32), length, epoch=0)
    return {name: (self.batch_size, *array.shape[1:]) for name, array in batch.items()}

  def real_token_share(self, epoch: int = 0) -> float:
    """Share of an epoch's batch positions that hold a real token; the rest is padding and filling rows."""
    plan = self._batching.plan(epoch)
    tokens = self._examples.tokens.lengths[plan.rows[plan.rows != FILLING]].sum()
    return float(tokens / (np.array(self.buckets)[plan.buckets].sum() * self.batch_size))

  def _batch(self, planned: np.ndarray, length: int, epoch: int) -> dict[str, np.ndarray]:
    example_ids = planned[self._rows]
    filling = example_ids == FILLING
    rows = np.where(filling, planned[0], example_ids)
    padding = {name: {**self._padding, **self.question.padding}[name] for name in self.question.features}
    batch = self._examples.tokens.padded(rows, length, padding, self._padding_side)
    batch = self.question.ask(batch, rows, epoch if self._shuffle else 0)
    if "labels" in batch:
      batch["labels"][filling] = IGNORED
    return {**batch, "weights": (~filling).astype(np.float32), "example_ids": example_ids}

  def _require_step(self, epoch: int, step: int, last: int) -> None:
    if epoch < 0 or not 0 <= step <= last:
      raise UserError(f"Step {step} is outside epoch {epoch}, which has {self.steps_per_epoch()} steps.")
