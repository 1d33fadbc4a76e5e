"""Registers the known tasks with SeqIO, for one checkpoint's tokenizer."""

import functools
import os
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from fsb_jax.tasks import metrics
from fsb_jax.tasks.files import data_directory
from fsb_jax.tasks.preprocessors import EncodePair
from fsb_jax.tasks.registry import MIXTURES, TaskInfo, info, known_tasks, mixture_members
from fsb_jax.tasks.text_task import Split, TextTask, load_split
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory


class TaskSource(seqio.DataSource):
  """The raw examples of a task: `id` int32, `text` and `text_pair` strings, `label` int32."""

  def __init__(self, task: TextTask, data_dir: Path | None):
    super().__init__(splits=task.splits)
    self._task = task
    self._data_dir = data_dir

  def load(self, split: str) -> Split:
    """The rows of a split, in the order of their file."""
    return load_split(self._task, split, self._data_dir)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: the rows are sharded one by one."""
    return True

  def num_input_examples(self, split: str) -> int:
    """How many examples the split has."""
    return len(self.load(split).examples)

  def list_shards(self, split: str) -> list[str]:
    """One name, the split's: it is one file."""
    return [split]

  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """The raw examples as a dataset; see `seqio.DataSource`."""
    examples = self.load(split).examples
    dtypes = {"id": np.int32, "text": object, "text_pair": object, "label": np.int32}
    columns = {name: np.array([each[name] for each in examples], dtypes[name]) for name in examples[0]}
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    if shuffle:
      dataset = dataset.shuffle(len(examples), seed=seed)
    if shard_info and shard_info.num_shards > 1:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset


def register(tokenizer, data_dir: str | os.PathLike | None = None) -> None:
  """Registers every known task, and every mixture with its members, in SeqIO's registry.

  Nothing is read yet. Registering again, with another tokenizer or data directory, replaces.

  Args:
    tokenizer: the checkpoint's tokenizer, a transformers fast tokenizer.
    data_dir: where the published files lie; the environment variable FSB_DATA_DIR where it is None.
  """
  vocabulary = TokenizerVocabulary(tokenizer)
  data_dir = data_directory(data_dir)
  for name, task in known_tasks().items():
    _register_task(info(name), task, vocabulary, data_dir)
  for mixture in MIXTURES:
    members = mixture_members(mixture)
    for name, task in members.items():
      _register_task(info(name), task, vocabulary, data_dir)
    seqio.MixtureRegistry.remove(mixture)
    # Without stop_on_empty_dataset=False a single epoch would end with its shortest task.
    seqio.MixtureRegistry.add(
      mixture,
      list(members),
      default_rate=seqio.mixing_rate_num_examples,
      sample_fn=functools.partial(tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False),
    )


def _register_task(task_info: TaskInfo, task: TextTask, vocabulary: TokenizerVocabulary, data_dir: Path | None) -> None:
  tokens = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  labels = seqio.PassThroughVocabulary(len(task_info.label_names))
  seqio.TaskRegistry.remove(task_info.name)
  seqio.TaskRegistry.add(
    task_info.name,
    source=TaskSource(task, data_dir),
    preprocessors=[EncodePair(vocabulary, label_offset=task_info.label_slice[0])],
    output_features={
      "input_ids": tokens,
      "token_type_ids": tokens,
      "label": seqio.Feature(labels, add_eos=False, dtype=tf.int32, rank=0),
    },
    postprocess_fn=functools.partial(_label_of, label_slice=task_info.label_slice),
    metric_fns=[metrics.accuracy],
  )


def _label_of(output, *, label_slice: tuple[int, int], is_target: bool = False, **unused) -> int:
  # SeqIO hands targets over as label ids, and a model's outputs as logits.
  return int(output) if is_target else int(metrics.predicted_labels(output, label_slice))
