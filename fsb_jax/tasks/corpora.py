"""Public corpora for pretraining by their names in TensorFlow Datasets, for people who have them prepared.

https://www.tensorflow.org/datasets/catalog/wikipedia, https://www.tensorflow.org/datasets/catalog/c4.
"""

import dataclasses
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.text_task import PlainTextTask


@dataclasses.dataclass(frozen=True)
class CorpusTask:
  """Documents that TensorFlow Datasets has prepared: in `tensorflow_datasets` of the data directory, or its own folder.

  Attributes:
    name: the task's name, under which it is registered.
    summary: what the documents are, in a few words.
    tfds_name: the corpus, with its config and version.
    tfds_splits: pairs of a split and the corpus's own.
  """

  name: str
  summary: str
  tfds_name: str
  tfds_splits: tuple[tuple[str, str], ...]

  head = PlainTextTask.head
  label_names = ()
  has_pair = False
  whole_words = True

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    return tuple(split for split, _ in self.tfds_splits)

  def folder(self, data_dir: Path | None) -> str | None:
    """Where TensorFlow Datasets looks for it; None is its own choice."""
    here = data_dir / "tensorflow_datasets" if data_dir else None
    return str(here) if here and here.is_dir() else None

  def require_prepared(self, data_dir: Path | None) -> None:
    """UserError where the corpus is not prepared; looks on this disk alone."""
    import tensorflow_datasets as tfds

    folder = self.folder(data_dir)
    try:
      tfds.builder(self.tfds_name, data_dir=folder, try_gcs=False).as_dataset(split=self.tfds_splits[0][1])
    except (AssertionError, ValueError, tfds.core.DatasetNotFoundError) as error:
      raise UserError(
        f"Task {self.name}: TensorFlow Datasets has no {self.tfds_name} prepared in {folder or 'its own folder'} "
        f"({' '.join(str(error).split())[:200]}); prepare it with tfds build {self.tfds_name} --data_dir "
        "<data directory>/tensorflow_datasets."
      ) from error


TASKS = (
  CorpusTask("wikipedia_zh", "articles of the Chinese Wikipedia", "wikipedia/20230601.zh:1.0.0", (("train", "train"),)),
  CorpusTask(
    "c4_zh", "Chinese pages of the web, cleaned", "c4/multilingual:3.1.0",
    (("train", "zh"), ("validation", "zh-validation")),
  ),
)
