"""`fsb tasks` and `fsb data`: what can be trained on and scored, and where it lies."""

import logging
from typing import Annotated

import typer
from typer.core import TyperGroup

from fsb_jax.cli_shared import GIN, DataDirectory, GinPaths, bindings_of, quiet, silent_import
from fsb_jax.errors import UserError


class _ListsByDefault(TyperGroup):
  """`fsb tasks NAME` is `fsb tasks list NAME`."""

  def resolve_command(self, context, arguments):
    if arguments and arguments[0] not in self.commands:
      arguments = ["list", *arguments]
    return super().resolve_command(context, arguments)


tasks_app = typer.Typer(
  cls=_ListsByDefault, help="List the tasks, or show what a model reads of one. Example: fsb tasks tnews"
)
data_app = typer.Typer(
  no_args_is_help=True, help="Published sets: what is known, on disk, and where it comes from. Example: fsb data list"
)


@tasks_app.callback(invoke_without_command=True)
def _tasks(context: typer.Context) -> None:
  if context.invoked_subcommand is None:
    tasks_list()


@tasks_app.command("list")
def tasks_list(name: Annotated[str | None, typer.Argument(help="A task; all of them if not given.")] = None) -> None:
  """List the tasks, or describe one.

  Example: fsb tasks list tnews
  """
  from fsb_jax import tasks as known

  for each in [name] if name else known.names():
    print(known.info(each).describe())


@tasks_app.command("show")
def tasks_show(
  name: Annotated[str, typer.Argument(help="A task.")],
  model: Annotated[str, typer.Option(help="Whose tokenizer: a training run's folder, a Hub folder or id.")],
  split: Annotated[str | None, typer.Option(help="The first one on disk if not given.")] = None,
  count: Annotated[int, typer.Option(help="How many examples.")] = 3,
  max_length: Annotated[int, typer.Option(help="Longest row in tokens.")] = 128,
  data_dir: DataDirectory = None,
) -> None:
  """Show a few examples: as published, in tokens, and what a model is given.

  Example: fsb tasks show tnews --model IDEA-CCNL/Erlangshen-Roberta-110M-NLI
  """
  quiet()
  with silent_import():
    import seqio  # noqa: F401 - brings TensorFlow
  from fsb_jax.tasks import catalogue
  from fsb_jax.training.start import find_tokenizer

  for line in catalogue.show_task(name, find_tokenizer(None, model), split, count, max_length, data_dir):
    print(line)


@data_app.command("list")
def data_list(data_dir: DataDirectory = None) -> None:
  """List the known sets: where each comes from and what of it is on disk.

  Example: fsb data list
  """
  from fsb_jax.tasks import catalogue

  for line in catalogue.list_data(data_dir):
    print(line)


@data_app.command("check")
def data_check(
  names: Annotated[list[str] | None, typer.Argument(help="Tasks or mixtures; all on disk if not given.")] = None,
  data_dir: DataDirectory = None,
) -> None:
  """Read what is on disk: rows, labels, checksums, and whether they are the published ones.

  Example: fsb data check clue
  """
  from fsb_jax.tasks import catalogue

  well = True
  for fine, line in catalogue.check_data(names or [], data_dir):
    print(line if fine else f"NOT WELL: {line}", flush=True)
    well &= fine
  if not well:
    raise typer.Exit(1)


@data_app.command("cache", context_settings=GIN)
def data_cache(
  model: Annotated[str, typer.Option(help="Whose tokenizer: a training run's folder, a Hub folder or id.")],
  output: Annotated[str, typer.Option(help="Folder for the tokens, or a bucket's address.")],
  arguments: Annotated[
    list[str] | None, typer.Argument(metavar="[TASK] [--gin.NAME=VALUE]...", help="A task or mixture, or a gin file's.")
  ] = None,
  split: Annotated[list[str] | None, typer.Option(help="Repeatable; those on disk if not given.")] = None,
  runner: Annotated[str, typer.Option(help="Beam's: DirectRunner, DataflowRunner, FlinkRunner, ...")] = "DirectRunner",
  option: Annotated[
    list[str] | None, typer.Option(help="Of the runner, as NAME=VALUE: direct_num_workers=0, project=...; repeatable.")
  ] = None,
  gin_file: Annotated[
    list[str] | None, typer.Option("--gin_file", help="One of gin/tasks, with --gin.NAME=VALUE: your own files.")
  ] = None,
  gin_search_paths: GinPaths = None,
  data_dir: DataDirectory = None,
) -> None:
  """Tokenise a task once, with Apache Beam; --gin.CACHE_DIR of a run reads the tokens.

  Example: fsb data cache tnews --model IDEA-CCNL/Erlangshen-Roberta-110M-NLI --output cache
  fsb data cache --gin_file=gin/tasks/text.gin "--gin.TRAIN_FILES=corpus/*.txt" --model runs/mlm --output cache
  """
  from fsb_jax.tasks import caching

  names = [argument for argument in arguments or () if not argument.startswith("-")]
  if len(names) + bool(gin_file) > 1:
    raise UserError("fsb data cache takes one task or mixture, or one that a --gin_file names.")
  bindings = bindings_of([argument for argument in arguments or () if argument not in names])
  quiet()
  with silent_import():
    caching.require_beam()
    import seqio  # noqa: F401 - brings TensorFlow
  from fsb_jax.training import gin_utils
  from fsb_jax.training.start import find_tokenizer

  for chatter in ("apache_beam", "absl"):
    logging.getLogger(chatter).setLevel(logging.ERROR)
  files = ["runs/cache.gin", *(gin_file or [])]
  configured, _ = gin_utils.configured(caching.cache_task, files, bindings, gin_search_paths or ())
  named = {"task": names[0]} if names else {}
  lines = configured(
    tokenizer=find_tokenizer(None, model), output=output, splits=split or (), data_dir=data_dir, runner=runner,
    options=[f"--{each}" for each in option or ()], **named,
  )  # fmt: skip
  for line in lines:
    print(line, flush=True)


@data_app.command("download")
def data_download(
  names: Annotated[list[str], typer.Argument(help="Tasks or mixtures.")], data_dir: DataDirectory = None
) -> None:
  """Fetch published files that are not on disk yet.

  Example: fsb data download tnews fewclue
  """
  from fsb_jax.tasks import catalogue

  for line in catalogue.download_data(names, data_dir):
    print(line, flush=True)
