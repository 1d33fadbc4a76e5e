"""Predictions of a trained classifier, as a JSON-lines file."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import (
  compiled_eval_step,
  load_for_use,
  longest_row,
  require_new_file,
  scored_batches,
  task_loader,
  task_names,
)
from fsb_jax.training.reporting import say


def infer(
  *,
  model: str,
  task: Any,
  output_file: str,
  split: str = "test",
  feature_lengths: Mapping[str, int] = {"inputs": 128},
  batch_size: int = 64,
  buckets: int | tuple[int, ...] = 4,
  mesh: Mapping[str, int] | None = None,
  rules: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  tokenizer: Any = None,
  data_dir: str | None = None,
  cache_dir: str | None = None,
  view: str | None = None,
) -> int:
  """Writes a line per example, in the split's order: the published fields, then `prediction` and `score`.

  The arguments are those of `evaluate`, but that `output_file` is asked for and must not exist yet. Returns how many
  lines were written.
  """
  target = require_new_file(output_file)
  length = longest_row(feature_lengths)
  partitioner = Partitioner(mesh, rules)
  start, params = load_for_use(model, partitioner, dtype, tokenizer)
  if view is None and start.metadata.head != "sequence_classification":
    raise UserError(f"{model} has a {start.metadata.head} head; fsb infer writes the predictions of classifiers")
  name = getattr(task, "name", task)
  step, records = None, []
  for member in task_names(name):
    loader = task_loader(
      member, split, start, partitioner,
      max_length=length, batch_size=batch_size, buckets=buckets, data_dir=data_dir,
      cache_dir=cache_dir, view=view,
    )
    step = step or compiled_eval_step(start, partitioner, loader.objective)
    predictions = _predictions(loader, step, params, partitioner)
    # Of a mixture, a line also says which task it belongs to.
    source = {} if member == name else {"task": member}
    records += [{**loader.raw(i), **source, **predictions[i]} for i in range(loader.num_examples)]
  if jax.process_index() == 0:
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as lines:
      for record in records:
        lines.write(json.dumps(record, ensure_ascii=False, default=_plain) + "\n")
    temporary.replace(target)
    say(f"{len(records):,} predictions written to {target}")
  return len(records)


def _predictions(loader: Loader, step, params, partitioner: Partitioner) -> dict[int, dict[str, Any]]:
  """`prediction` and `score` of every example, by its index."""
  first, last = loader.label_slice
  found = {}
  for result in scored_batches(loader, step, params, partitioner):
    logits = np.asarray(result["logits"][:, first:last], np.float64)
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    for example, row in zip(result["example_ids"], scores):
      answer = loader.answer(int(example), int(row.argmax()))
      found[int(example)] = {"prediction": answer, "score": round(float(row.max()), 6)}
  return found


def _plain(value: Any) -> Any:
  """Fields of a foreign SeqIO task are arrays and bytes."""
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value).tolist()
