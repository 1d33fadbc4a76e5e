"""The same run with several seeds: what of a score is the method's, and what is luck."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.training.reporting import say

# Dropout's is an unsigned number of 32 bits.
_LARGEST = 2**32 - 1


def require_seed(seed: Any) -> None:
  """UserError where `seed` is none."""
  if not isinstance(seed, int) or not 0 <= seed <= _LARGEST:
    raise _mistake(seed)


def _mistake(given: Any) -> UserError:
  several = f"several different ones such as (0, 1, 2), each from 0 to {_LARGEST}"
  return UserError(f"SEED must be a whole number, or {several}, not {given!r}")


def train_seeds(train: Callable, seeds: Sequence[int], arguments: Mapping[str, Any]) -> dict[str, float]:
  """Trains once per seed, each in `model_dir/seed-N`; a run that is done already is not repeated.

  Args:
    train: what trains once.
    seeds: at least two, all different; UserError where they are not.
    arguments: those of `train`; its `model_dir` and `seed` are replaced.

  Returns:
    The mean of every metric. Means, sample standard deviations and each seed's own metrics are in
    `model_dir/seeds.json`.
  """
  if not isinstance(seeds, Sequence) or len(seeds) < 2 or len({*seeds}) < len(seeds):
    raise _mistake(seeds)
  for seed in seeds:
    require_seed(seed)
  folder = Path(str(arguments["model_dir"])).expanduser()
  results = {}
  for seed in seeds:
    say(f"seed {seed}")
    results[seed] = train(**{**arguments, "model_dir": str(folder / f"seed-{seed}"), "seed": seed})
  names = [name for name in results[seeds[0]] if all(name in metrics for metrics in results.values())]
  columns = {name: np.array([metrics[name] for metrics in results.values()]) for name in names}
  mean = {name: float(values.mean()) for name, values in columns.items()}
  spread = {name: float(values.std(ddof=1)) for name, values in columns.items()}
  if jax.process_index() == 0:
    summary = {"mean": mean, "standard_deviation": spread, "seeds": results}
    temporary = folder / "seeds.json.tmp"
    temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "seeds.json")
    shown = [name for name in ("accuracy", "f1", "perplexity", "loss") if name in mean]
    for name in shown:
      print(f"{name} over {len(seeds)} seeds: {mean[name]:.4f} ± {spread[name]:.4f} (standard deviation)", flush=True)
  return mean
