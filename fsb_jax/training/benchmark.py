"""A whole benchmark with one model: scores, predictions, the files that leaderboards take, and a report."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fsb_jax import pretrained, reports, tasks
from fsb_jax.encodings import SPAN_HEADS
from fsb_jax.errors import MissingDataError, UserError
from fsb_jax.partitioning import Partitioner, multihost
from fsb_jax.tasks.files import data_directory
from fsb_jax.tasks.kinds import READING
from fsb_jax.tasks.new_files import require_new, write_new
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.submissions import PARTS, SUBMISSIONS, check_submission, write_submission, zip_submissions
from fsb_jax.tasks.text_task import Split, load_split
from fsb_jax.training.answers import answer_split, json_lines
from fsb_jax.training.benchmark_reports import Scored, describe, report_of_runs, scored
from fsb_jax.training.evaluate import compiled_eval_step, load_for_use, longest_row, task_loader, warnings_of
from fsb_jax.training.options import VIEW
from fsb_jax.training.reporting import say

# The heads of the tasks that can be scored, by view.
_HEADS = {
  None: ("sequence_classification", READING.head),
  VIEW: ("sequence_classification", "multiple_choice", READING.head),
}
# What MODEL may hold in place of the name of a task and of the number of a training set.
_TASK, _TRAINING_SET = "{task}", "{split}"


def benchmark(
  *,
  model: str,
  task: str | Sequence[str],
  output_dir: str,
  splits: Sequence[str] = ("test_public", "test"),
  training_sets: Sequence[str] = PARTS[:5],
  view: str | None = VIEW,
  feature_lengths: Mapping[str, int] = {"inputs": 512},
  batch_size: int = 64,
  buckets: int | tuple[int, ...] = 4,
  max_examples: int | None = None,
  submit_labelled: bool = False,
  mesh: Mapping[str, int] | None = None,
  rules: Mapping[str, Any] | None = None,
  dtype: str = "float32",
  tokenizer: Any = None,
  data_dir: str | None = None,
) -> reports.Report:
  """Scores a model on all tasks of a benchmark and writes a folder with everything about it.

  The folder gets `predictions/` (JSON lines by task and split), `submission_SPLIT.zip` with the files that leaderboards
  take for splits without labels, each checked, and `report.json`, `report.md` and `report.html`. A line per score is
  printed. A task whose files are not in the data directory, or whose model has a head for something else, is skipped,
  which the report says too.

  Args:
    model: a training run's folder, a converted folder, or a Hub folder or id. "{task}" in it stands for the name of a
      task, and "{split}" for the number of a training set; then the report has means and deviations over the sets.
    task: a mixture of `fsb tasks`, a task, or a list of tasks.
    output_dir: the folder; must not exist yet.
    splits: which splits are scored.
    training_sets: what "{split}" stands for, of `submissions.PARTS`.
    view: "unimc" asks a model that answers questions with options; None asks classifiers. Reading is asked as it is in
      either view, of a model of its own.
    feature_lengths: {"inputs": longest row in tokens}.
    batch_size: examples at a time.
    buckets: see `Loader`.
    max_examples: of each split score so many at most, for a trial; the report calls itself partial and nothing is
      made to be handed in.
    submit_labelled: make files to be handed in for splits with labels too.
    mesh: sizes of the mesh axes.
    rules: changes to the partitioning rules.
    dtype: of activations.
    tokenizer: folder of the tokenizer, where it is not the model's.
    data_dir: where data lies; FSB_DATA_DIR if not given.

  Returns:
    The report.

  Raises:
    UserError: an argument does not fit, a file is malformed, there is no data or no fitting model at all, or the folder
      exists.
  """
  folder = Path(str(output_dir)).expanduser()
  require_new(folder)
  length = longest_row(feature_lengths)
  if max_examples is not None and max_examples < 1:
    raise UserError(f"MAX_EXAMPLES {max_examples} must be at least 1, or None for all")
  name, asked, left_out = _tasks(task, view)
  sets = _training_sets(model, training_sets)
  found, missing = _read(asked, splits, data_dir)
  models = {(part, each): model.replace(_TASK, each).replace(_TRAINING_SET, part) for part in sets for each in found}
  unfit = _unfitting(models, view)
  found = {each: splits for each, splits in found.items() if each not in unfit}
  models = {(part, each): path for (part, each), path in models.items() if each in found}
  partitioner = Partitioner(mesh, rules)
  multihost.barrier("no output folder yet")
  first = jax.process_index() == 0
  if first:
    folder.mkdir()
    (folder / "predictions").mkdir()
  runs: dict[str, list[Scored]] = {part: [] for part in sets}
  seen, submitted, loaded = {}, {}, None
  for (part, each), path in models.items():
    if loaded != path:
      say(f"loading {path}")
      (start, params), loaded, step = load_for_use(path, partitioner, dtype, tokenizer), path, None
    member = f"{name}.{each}"
    joint = view is None and member in tasks.names() and start.metadata.label_names == tasks.info(member).label_names
    for split in found[each]:
      for warning in warnings_of(path, each, split):
        say(f"warning: {warning}")
        seen[warning] = None
      loader = task_loader(
        member if joint else each, split, start, partitioner,
        max_length=length, batch_size=batch_size, buckets=buckets, data_dir=data_dir,
        view=_asked_of(each, view)[0], max_examples=max_examples,
      )  # fmt: skip
      step = step or compiled_eval_step(start, partitioner, loader.objective)
      answers = answer_split(loader, step, params, partitioner)
      published = answers.published(each)
      rows = [{**row, "submitted": label} for row, label in zip(answers.rows(), published)]
      if first:
        stem = "_".join(filter(None, (each, split, part)))
        write_new(folder / "predictions" / f"{stem}.jsonl", json_lines(rows))
      if answers.labelled:
        runs[part].append(scored(each, split, answers, published, _examples(each, split, data_dir)))
        if first:
          print(describe(runs[part][-1].report, part), flush=True)
      if (submit_labelled or not answers.labelled) and max_examples is None and each in SUBMISSIONS:
        submitted.setdefault(split, {})[each, part] = {row.get("id"): row["submitted"] for row in rows}
  settings = {
    "view": view or "as it is", "splits": ", ".join(splits),
    "partial": max_examples and f"{max_examples:,} examples of each split at most, evenly spread over it",
    "not scored": "; ".join(f"{what}: {why}" for what, why in (left_out | missing | unfit).items()),
    "seen in training": "; ".join(seen),
  }
  report = report_of_runs(name, model, runs, {key: value for key, value in settings.items() if value})
  if first:
    for split, files in submitted.items():
      _submit(folder, split, files, data_dir)
    for path in reports.write_report(report, folder):
      say(f"written {path}")
  return report


def _tasks(task: str | Sequence[str], view: str | None) -> tuple[str, list[str], dict[str, str]]:
  """The benchmark's name, its tasks that can be scored, and why others cannot."""
  if view not in _HEADS:
    raise UserError(f"unknown VIEW {view!r}; known: {VIEW!r}, or None for classifiers")
  every = (task,) if isinstance(task, str) else tuple(task)
  name = task if isinstance(task, str) else ", ".join(every)
  every = tuple(itertools.chain.from_iterable(tasks.MIXTURES.get(each, (each,)) for each in every))
  unknown = [each for each in every if each not in known_tasks()]
  if unknown or not every:
    raise UserError(f"There is no task {', '.join(unknown)!r}; `fsb tasks` lists the tasks and their groups.")
  infos = {each: tasks.info(each) for each in every}
  left_out = {
    each: f"{info.kind or info.head} is not asked in this view" for each, info in infos.items()
    if info.head not in _HEADS[view]
  }  # fmt: skip
  asked = [each for each in infos if each not in left_out]
  if not asked:
    raise UserError(f"none of {', '.join(every)} can be scored with VIEW {view!r}")
  return name, asked, left_out


def _asked_of(task: str, view: str | None) -> tuple[str | None, tuple[str, ...]]:
  """The view that a task is asked in, and the heads that answer."""
  head = tasks.info(task).head
  if head == READING.head:
    return None, SPAN_HEADS
  return view, ("masked_lm",) if view else (head,)


def _unfitting(models: Mapping[tuple[str, str], str], view: str | None) -> dict[str, str]:
  """The tasks whose models have other heads, and which; UserError where there is no other task."""
  heads = {path: pretrained.find_head(path) for path in dict.fromkeys(models.values())}
  unfit = {}
  for (_, each), path in models.items():
    asked = _asked_of(each, view)[1]
    if heads[path] not in asked:
      unfit[each] = f"{path} has a {heads[path]} head, not {' or '.join(asked)}"
  if unfit.keys() == {each for _, each in models}:
    whys = "; ".join(f"{each}: {why}" for each, why in unfit.items())
    raise UserError(f"no task has a model that answers it; {whys}")
  for each, why in unfit.items():
    say(f"skipped: {each}: {why}")
  return unfit


def _training_sets(model: str, training_sets: Sequence[str]) -> tuple[str, ...]:
  """The training sets whose models are scored; the empty one where there is one model."""
  if _TRAINING_SET not in model:
    return ("",)
  wrong = [each for each in training_sets if each not in PARTS]
  if wrong or len(set(training_sets)) < 2:
    raise UserError(f"TRAINING_SETS must be two or more of {', '.join(PARTS)}, as texts, not {training_sets!r}")
  return tuple(training_sets)


def _read(
  asked: Sequence[str], splits: Sequence[str], data_dir: str | None
) -> tuple[dict[str, list[str]], dict[str, str]]:
  """Reads all splits, before any model: the splits that are there by task, and what is missing."""
  found, missing = {}, {}
  if isinstance(splits, str) or not splits:
    raise UserError(f"SPLITS must be a list of splits, such as ('test_public', 'test'), not {splits!r}")
  for each, split in itertools.product(asked, splits):
    try:
      _examples(each, split, data_dir)
      found.setdefault(each, []).append(split)
    except MissingDataError as error:
      say(f"skipped: {error}")
      missing[f"{each} {split}"] = "no file"
  if not found:
    raise UserError(f"the data directory has no file of {', '.join(asked)} for {', '.join(splits)}; see fsb data list")
  return found, missing


def _examples(task: str, split: str, data_dir: str | None) -> Split:
  return load_split(known_tasks()[task], split, data_directory(data_dir))


def _submit(
  folder: Path, split: str, files: Mapping[tuple[str, str], Mapping[int | str, int | str]], data_dir: str | None
) -> None:
  """Writes the files of a split, zips them, and checks the zip as a leaderboard would."""
  ids = {task: [row.get("id") for row in _examples(task, split, data_dir).fields] for task, _ in files}
  for task in [task for task, found in ids.items() if None in found or len(set(found)) < len(found)]:
    say(f"nothing to hand in for {task} {split}: its rows have no ids of their own")
    files = {key: answers for key, answers in files.items() if key[0] != task}
  if not files:
    return
  place = folder / f"submission_{split}"
  place.mkdir()
  written = [write_submission(place, task, answers, part) for (task, part), answers in files.items()]
  archive = zip_submissions(folder / f"submission_{split}.zip", written)
  for task, part in files:
    # The names of csldcp's labels are the published ones.
    labels = SUBMISSIONS[task].labels or tasks.info(task).label_names or None
    check_submission(archive, task, ids[task], labels=labels, part=part)
  say(f"written {archive}: {', '.join(path.name for path in written)}; checked")
