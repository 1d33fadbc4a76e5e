"""Tasks that HFL scores its models on beside CLUE's, read from the files as they go round.

Cui et al., "Pre-Training with Whole Word Masking for Chinese BERT", 2021;
https://github.com/ymcui/Chinese-BERT-wwm.
"""

from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import find, read_table
from fsb_jax.tasks.text_task import Split, TextTask, make_split

_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def _read_chnsenticorp(split: str, data_dir: Path | None) -> Split:
  if data_dir is None:
    raise UserError("Task chnsenticorp needs the data directory: set FSB_DATA_DIR, or --gin.DATA_DIR of a run.")
  found = find(data_dir, "chnsenticorp", _FILES[split])
  if found is None:
    raise UserError(
      f"Task chnsenticorp found no file for its split {split!r}: looked in the data directory {data_dir} for "
      f"chnsenticorp/{_FILES[split]} (plain or .gz); get it from datasets/chnsenticorp of "
      f"https://github.com/dbiir/UER-py and put it into {data_dir / 'chnsenticorp'}."
    )
  return make_split(read_table(found), "text_a", None, "label", {"0": 0, "1": 1})


TASKS = (
  TextTask(
    name="chnsenticorp",
    summary="reviews of hotels, books and computers, by sentiment",
    label_names=("negative", "positive"),
    has_pair=False,
    splits=tuple(_FILES),
    read=_read_chnsenticorp,
  ),
)
