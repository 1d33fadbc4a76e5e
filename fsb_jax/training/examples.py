"""The examples of a task's split, tokenised, in memory; and what each kind of task asks of a model about them."""

import collections
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fsb_jax import tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks.kinds import READING, TAGGING, Kind
from fsb_jax.training.batching import spread
from fsb_jax.training.options import VIEW, encode_options, options_of
from fsb_jax.training.passages import encode_passages, passages_of
from fsb_jax.training.questions import Classes, HiddenWords, Question
from fsb_jax.training.tags import encode_tags, tags_of

_ENCODED_AT_ONCE = 8192  # documents and examples; their raw text is held no longer than that


class Ragged:
  """Rows of different lengths, of several features.

  Attributes:
    lengths: `[rows]`, in tokens.
    features: by name, all rows one after the other, int32 `[tokens]`.
  """

  def __init__(self, features: Mapping[str, Sequence[np.ndarray]]):
    self.lengths = np.array([len(row) for row in next(iter(features.values()))], np.int64)
    self.features = {name: np.concatenate(rows) for name, rows in features.items()}
    self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])

  def row(self, name: str, index: int) -> np.ndarray:
    """One row of a feature."""
    return self.features[name][self._offsets[index] : self._offsets[index + 1]]

  def padded(
    self, rows: np.ndarray, length: int, padding: Mapping[str, int], side: str = "right"
  ) -> dict[str, np.ndarray]:
    """The features named in `padding`, and `attention_mask`, of some rows: int32 `[rows, length]`.

    Padding stands on the `side` "right", or on the "left", where models that read a text from its last token want it.
    """
    lengths = self.lengths[rows][:, None]
    places = np.arange(length) - (length - lengths if side == "left" else 0)
    real = (places >= 0) & (places < lengths)
    tokens = (self._offsets[rows][:, None] + places)[real]
    arrays = {"attention_mask": real.astype(np.int32)}
    for name, value in padding.items():
      arrays[name] = np.full(real.shape, value, np.int32)
      arrays[name][real] = self.features[name][tokens]
    return arrays


# What is asked straight of a task's texts, by view or else by kind: the rows of a split, as
# `(task, split, tokenizer, max_length)` gives them by column, and the question about the rows of all members. Where an
# example may have several rows the column `first` says which of them begins it.
_ASKED = {
  VIEW: (encode_options, options_of), READING: (encode_passages, passages_of), TAGGING: (encode_tags, tags_of)
}
# The heads whose tasks are served, by view.
_HEADS = {
  None: (Classes.head, HiddenWords.head, *(kind.head for kind in _ASKED if kind != VIEW)),
  VIEW: (Classes.head, HiddenWords.head, "multiple_choice"),
}
Fields = Callable[[], list[dict] | None]


@dataclasses.dataclass(frozen=True)
class Examples:
  """A split.

  Attributes:
    tokens: the rows' tokens; an example has one row or, where its text is long, several that follow each other.
    question: what is asked about them: the `head` that answers, the `objective` that scores it, `features` of the rows
      it reads and their `padding` where it is not the tokenizer's.
    fields: per task of a mixture, reads each example's fields as published; None comes where there are none.
    sizes: how many examples each task of a mixture has; they stand one after the other.
    rows: how many rows.
    counts: how many of them an epoch takes.
  """

  tokens: Ragged
  question: Question
  fields: list[Fields]
  sizes: tuple[int, ...]
  rows: tuple[int, ...]
  counts: tuple[int, ...]


def read_examples(
  task_name: str, split: str, tokenizer, max_length: int, *, seed: int, by_rates: bool, data_dir: str | None,
  mixture_rate: Callable[..., float] | None = None, view: str | None = None, max_examples: int | None = None,
  cache_dir: str | None = None, head: str | None = None,
) -> Examples:
  """Reads and tokenises a split of a task or mixture.

  Args:
    task_name: see `Loader`.
    split: see `Loader`.
    tokenizer: see `Loader`.
    max_length: longest row in tokens.
    seed: of what is hidden.
    by_rates: whether an epoch takes the tasks of a mixture by its rates; else it takes each example once.
    data_dir: see `Loader`.
    mixture_rate: see `Loader`.
    view: see `Loader`.
    max_examples: see `Loader`.
    cache_dir: see `Loader`.
    head: see `Loader`.

  Raises:
    UserError: there is no such task or split, the head is not for it, or its files are missing or malformed.
  """
  if view not in _HEADS:
    raise UserError(f"unknown VIEW {view!r}; known: {VIEW!r}, or None for the task as it is")
  if view and cache_dir:
    raise UserError(f"VIEW {view!r} reads texts, which CACHE_DIR {cache_dir} does not hold; set one of the two to None")
  provider, members = _seqio_members(task_name, split, tokenizer, data_dir, view)
  encode, question_of = _ASKED.get(view or _kind(members[0]), (None, None))
  if encode and cache_dir:
    raise UserError(f"task {task_name} is read as text, which CACHE_DIR {cache_dir} does not hold; set it to None")
  columns, fields, sizes = [], [], []
  for task in members:
    if encode:
      encoded = encode(task, split, tokenizer, max_length)
      published = functools.partial(task.source.fields, split)
    else:
      encoded, published = _encode(task, split, tokenizer, max_length, data_dir, cache_dir)
    if not encoded["input_ids"]:
      raise UserError(f"Task {task.name} has no examples in its split {split!r}.")
    first = encoded.get("first", np.ones(len(encoded["input_ids"]), bool))
    count = int(np.sum(first))
    if max_examples is not None:
      kept = spread(count, max_examples)
      rows = np.flatnonzero(np.isin(np.cumsum(first) - 1, kept))
      encoded = {name: [column[i] for i in rows] for name, column in encoded.items()}
      published = functools.cache(functools.partial(_some_of, published, kept))
      count = len(kept)
    sizes.append(count)
    columns.append(encoded)
    fields.append(published)
  if question_of:
    rows = {name: [row for each in columns for row in each[name]] for name in columns[0]}
    question = question_of(rows, tokenizer, seed=seed, training=by_rates, head=head)
  elif "label" in columns[0]:
    question = Classes(np.concatenate([each["label"] for each in columns]), *_labels(task_name, members))
  else:
    question = _hidden_words(task_name, tokenizer, seed)
  if head not in (None, question.head):
    raise UserError(f"a {head} head does not fit task {task_name}, which is for {question.head}")
  counts = rows = [len(each["input_ids"]) for each in columns]
  if by_rates and len(members) > 1:
    rates = np.array([_rate(provider, task, split, mixture_rate) for task in members], np.float64)
    counts = np.round(sum(rows) * rates / rates.sum()).astype(int).tolist()
  return Examples(
    tokens=Ragged({name: [row for each in columns for row in each[name]] for name in question.features}),
    question=question,
    fields=fields,
    sizes=tuple(sizes),
    rows=tuple(rows),
    counts=tuple(counts),
  )


def _kind(task) -> Kind | None:
  """The kind of a task of ours that is no classification or plain text."""
  return getattr(task.source, "kind", None)


def _rate(provider, task, split: str, mixture_rate: Callable[..., float] | None) -> float:
  import seqio

  if mixture_rate is None and provider.name in tasks.MIXTURES:
    mixture_rate = seqio.mixing_rate_num_examples
  # A SeqIO mixture's own rate knows no other split than train.
  return mixture_rate(task, split=split) if mixture_rate else provider.get_rate(task)


def _hidden_words(task_name: str, tokenizer, seed: int) -> HiddenWords:
  if tokenizer.mask_token_id is None:
    raise UserError(f"Task {task_name} hides words, and this tokenizer has no mask token; use one of a masked model.")
  replacements = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), tokenizer.all_special_ids)
  return HiddenWords(seed, tokenizer.mask_token_id, replacements)


def _some_of(fields: Fields, kept: Sequence[int]) -> list[dict] | None:
  """Those rows' fields, read when they are asked for."""
  rows = fields()
  return rows and [rows[i] for i in kept]


def _seqio_members(task_name: str, split: str, tokenizer, data_dir: str | None, view: str | None):
  import seqio

  if task_name in tasks.names():
    found = tasks.info(task_name)
    if found.head not in _HEADS[view]:
      also = next((f"; VIEW={other!r} asks it" for other, heads in _HEADS.items() if found.head in heads), "")
      raise UserError(
        f"Task {task_name} ({found.kind}) is for a {found.head} head, which the loader does not serve yet; it serves "
        f"{' and '.join(_HEADS[view])} heads{also}."
      )
    if found.alone:
      logging.getLogger(__name__).warning(
        "%s: left out, being of other kinds: %s; each is a task of its own", task_name, ", ".join(found.alone)
      )
    tasks.register(tokenizer, data_dir)
  if task_name not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
    raise UserError(f"There is no task {task_name!r}; the known ones are {', '.join(tasks.names())}.")
  provider = seqio.get_mixture_or_task(task_name)
  every = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
  members = [task for task in every if split in task.splits]
  if not members:
    raise UserError(f"Task {task_name} has no split {split!r}; its splits are {', '.join(sorted(provider.splits))}.")
  if not view and len({_kind(task) for task in members}) > 1:
    raise UserError(f"The tasks of {task_name} are of several kinds, which no one head can serve.")
  for task in members:
    if _kind(task) in _ASKED:
      continue
    if "input_ids" not in task.output_features or len({"label", "word_ids"} & set(task.output_features)) != 1:
      raise UserError(
        f"Task {task.name} gives the features {', '.join(task.output_features)}; the loader needs input_ids, and label "
        "(classification) or word_ids (masked language modelling)."
      )
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


def _encode(
  task, split: str, tokenizer, max_length: int, data_dir: str | None, cache_dir: str | None
) -> tuple[dict, Fields]:
  import seqio

  from fsb_jax.tasks import caching
  from fsb_jax.tasks.corpora import CorpusTask
  from fsb_jax.tasks.files import data_directory
  from fsb_jax.tasks.preprocessors import Step
  from fsb_jax.tasks.seqio_tasks import TaskSource
  from fsb_jax.tasks.vocabularies import TokenizerVocabulary

  steps = [step for step in task.preprocessors if not isinstance(step, seqio.CacheDatasetPlaceholder)]
  ours = isinstance(task.source, TaskSource) and all(isinstance(step, Step) for step in steps)
  fields = functools.partial(task.source.fields, split) if ours else None
  if ours and any(step.vocabulary != TokenizerVocabulary(tokenizer) for step in steps):
    raise UserError(f"Task {task.name} is registered with another tokenizer; call fsb_jax.tasks.register first.")
  lengths = {name: max_length for name in ("input_ids", "token_type_ids", "word_ids")}
  if cache_dir:
    return caching.cached_columns(task, split, cache_dir, lengths), fields or _no_fields
  if ours:
    # The same code as in the task's own pipeline, without tf.data between the rows and the tokenizer.
    examples, columns = iter(task.source.examples(split)), collections.defaultdict(list)
    while chunk := list(itertools.islice(examples, _ENCODED_AT_ONCE)):
      made = {name: [example[name] for example in chunk] for name in chunk[0]}
      for step in steps:
        made = step.apply(made, max_length)
      for name, rows in made.items():
        columns[name].extend(rows)
    return columns, fields
  known = tasks.registry.known_tasks().get(task.name)
  if isinstance(known, CorpusTask):
    known.require_prepared(data_directory(data_dir))
  dataset = task.get_dataset(sequence_length=lengths, split=split, shuffle=False, num_epochs=1)
  rows = list(dataset.as_numpy_iterator())
  names = [name for name in (*lengths, "label") if name in task.output_features]
  columns = {name: [np.asarray(row[name], np.int32) for row in rows] for name in names}
  columns.setdefault("token_type_ids", [np.zeros_like(row) for row in columns["input_ids"]])
  return columns, lambda: rows


def _no_fields() -> None:
  """A corpus's cache keeps its tokens alone."""
