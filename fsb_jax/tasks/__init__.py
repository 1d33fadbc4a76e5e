"""SeqIO tasks: the texts, where they come from, and what is asked about them.

Listing and describing tasks needs no TensorFlow; `register` imports it.
"""

from fsb_jax.tasks.jieba_lexicon import lexicon_characters
from fsb_jax.tasks.metrics import accuracy, predicted_labels
from fsb_jax.tasks.overlaps import overlaps
from fsb_jax.tasks.plain_text import plain_text_task
from fsb_jax.tasks.registry import MIXTURES, TaskInfo, declare, info, names
from fsb_jax.tasks.tables import table_task
from fsb_jax.tasks.text_task import NO_LABEL, PlainTextTask, Split, TextTask

__all__ = [
  "MIXTURES",
  "NO_LABEL",
  "PlainTextTask",
  "Split",
  "TaskInfo",
  "TextTask",
  "accuracy",
  "declare",
  "info",
  "lexicon_characters",
  "names",
  "overlaps",
  "plain_text_task",
  "predicted_labels",
  "register",
  "table_task",
]


def register(tokenizer, data_dir=None) -> None:
  """Registers every known task with SeqIO; see `fsb_jax.tasks.seqio_tasks.register`."""
  from fsb_jax.tasks.seqio_tasks import register

  register(tokenizer, data_dir)
