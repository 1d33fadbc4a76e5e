"""Predictions of a trained model, as a JSON-lines file."""

from collections.abc import Mapping
from typing import Any

import jax

from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.tasks.new_files import write_new
from fsb_jax.training.answers import json_lines
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
  """Writes a line per example, in the split's order: the published fields, then the question's `predictions`.

  The arguments are those of `evaluate`, but that `output_file` is asked for and must not exist yet. Returns how many
  lines were written.
  """
  target = require_new_file(output_file)
  length = longest_row(feature_lengths)
  partitioner = Partitioner(mesh, rules)
  start, params = load_for_use(model, partitioner, dtype, tokenizer)
  if view is None and start.metadata.head == "masked_lm":
    raise UserError(f"{model} has a masked_lm head, whose answers fsb infer writes with VIEW='unimc' alone")
  name = getattr(task, "name", task)
  step, records = None, []
  for member in task_names(name):
    loader = task_loader(
      member, split, start, partitioner,
      max_length=length, batch_size=batch_size, buckets=buckets, data_dir=data_dir,
      cache_dir=cache_dir, view=view,
    )
    step = step or compiled_eval_step(start, partitioner, loader.objective)
    # Of a mixture, a line also says which task it belongs to.
    source = {} if member == name else {"task": member}
    found = loader.question.predictions(list(scored_batches(loader, step, params, partitioner)))
    records += [{**loader.raw(i), **prediction, **source} for i, prediction in enumerate(found)]
  if jax.process_index() == 0:
    write_new(target, json_lines(records))
    say(f"{len(records):,} predictions written to {target}")
  return len(records)
