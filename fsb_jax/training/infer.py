"""Predictions of a trained classifier, as a JSON-lines file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training.evaluate import compiled_eval_step, load_for_use, scored_batches, task_loader
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
) -> int:
  """Writes a line per example, in the split's order: the published fields, then `prediction` and `score`.

  The arguments are those of `evaluate`, but that `output_file` is asked for and must not exist yet. Returns how many
  lines were written.
  """
  target = Path(output_file).expanduser()
  if target.exists():
    raise UserError(f"OUTPUT_FILE {target} already exists; choose another name or move it away")
  partitioner = Partitioner(mesh, rules)
  start, params = load_for_use(model, partitioner, dtype, tokenizer)
  loader = task_loader(
    getattr(task, "name", task), split, start, partitioner,
    max_length=feature_lengths["inputs"], batch_size=batch_size, buckets=buckets, data_dir=data_dir,
  )
  names = start.metadata.label_names or loader.label_names
  first, last = loader.label_slice
  found: dict[int, tuple[str, float]] = {}
  for result in scored_batches(loader, compiled_eval_step(start, partitioner), params, partitioner):
    logits = np.asarray(result["logits"][:, first:last], np.float64)
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    for example, row in zip(result["example_ids"], scores):
      found[int(example)] = (names[first + int(row.argmax())], float(row.max()))
  if jax.process_index() == 0:
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as lines:
      for example in range(loader.num_examples):
        label, score = found[example]
        record = {**loader.raw(example), "prediction": label, "score": round(score, 6)}
        lines.write(json.dumps(record, ensure_ascii=False, default=_plain) + "\n")
    temporary.replace(target)
    say(f"{len(found):,} predictions written to {target}")
  return len(found)


def _plain(value: Any) -> Any:
  """Fields of a foreign SeqIO task are arrays and bytes."""
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value).tolist()
