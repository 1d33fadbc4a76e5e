"""Tasks of a few rows, and what a loader serves of them."""

import itertools
import json

import numpy as np

from fsb_jax import tasks

CHARACTERS = "今天气真好不知道"


def declare_table(path, lengths, pairs=False):
  """Declares the task `table` with texts of the given lengths, written to `path`, and returns its name."""
  rows = [
    {
      "text": "".join(itertools.islice(itertools.cycle(CHARACTERS[number % 8 :]), length)),
      "second": CHARACTERS[: 1 + number % 8],
      "label": f"class{number % 3}",
    }
    for number, length in enumerate(lengths)
  ]
  path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
  names = ["class0", "class1", "class2"]
  tasks.table_task("table", {"train": path}, "text", "second" if pairs else None, label_names=names)
  return "table"


def served(loader, epoch):
  """The examples of an epoch, in order."""
  batches = list(loader.batches(epoch))
  return np.concatenate([batch["example_ids"][batch["weights"] > 0] for batch in batches]).tolist()
