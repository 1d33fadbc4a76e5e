"""`fsb`: parses, then calls one function. Each command imports what it needs when it runs."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fsb_jax.errors import Stopped, UserError
from fsb_jax.version import __version__

app = typer.Typer(
  name="fsb",
  no_args_is_help=True,
  add_completion=False,
  pretty_exceptions_enable=False,
  help="Chinese foundation models in JAX: convert, train, evaluate, use, and convert back.",
)
convert_app = typer.Typer(no_args_is_help=True, help="Convert checkpoints to and from PyTorch, with proof.")
app.add_typer(convert_app, name="convert")


class _ListsByDefault(TyperGroup):
  """`fsb tasks NAME` is `fsb tasks list NAME`."""

  def resolve_command(self, context, arguments):
    if arguments and arguments[0] not in self.commands:
      arguments = ["list", *arguments]
    return super().resolve_command(context, arguments)


tasks_app = typer.Typer(
  cls=_ListsByDefault, help="List the tasks, or show what a model reads of one. Example: fsb tasks tnews"
)
app.add_typer(tasks_app, name="tasks")
data_app = typer.Typer(
  no_args_is_help=True, help="Published sets: what is known, on disk, and where it comes from. Example: fsb data list"
)
app.add_typer(data_app, name="data")

GinFiles = Annotated[
  list[str], typer.Option("--gin_file", help="Gin file; may be given several times. Relative to here or the package.")
]
GinPaths = Annotated[list[str] | None, typer.Option("--gin_search_paths", help="More folders with gin files.")]
Coordinator = Annotated[
  str | None, typer.Option(help="HOST:PORT of process 0, where several processes work together (all three options).")
]
ProcessCount = Annotated[int | None, typer.Option(help="How many processes there are.")]
ProcessIndex = Annotated[int | None, typer.Option(help="Which one this is, from 0.")]
Distributed = Annotated[
  bool, typer.Option("--distributed", help="Find the other processes by itself: TPU pods, Slurm, MPI, Kubernetes.")
]
DataDirectory = Annotated[str | None, typer.Option("--data_dir", help="Where data lies; FSB_DATA_DIR if not given.")]
_GIN = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback(invoke_without_command=True)
def _options(
  version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
  debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
  if version:
    print(__version__)
    raise typer.Exit


@app.command(context_settings=_GIN)
def train(
  context: typer.Context,
  gin_file: GinFiles,
  gin_search_paths: GinPaths = None,
  coordinator: Coordinator = None,
  process_count: ProcessCount = None,
  process_index: ProcessIndex = None,
  distributed: Distributed = False,
  profile: Annotated[bool, typer.Option("--profile", help="Write a trace of a few steps for TensorBoard.")] = False,
) -> None:
  """Train from gin files; an interrupted run goes on where it was.

  Example: fsb train --gin_file=gin/runs/finetune.gin --gin.MIXTURE_OR_TASK_NAME=tnews
  --gin.INITIAL_CHECKPOINT_PATH=IDEA-CCNL/Erlangshen-Roberta-110M-NLI --gin.MODEL_DIR=runs/tnews --gin.TRAIN_STEPS=5000
  """
  _join(coordinator, process_count, process_index, distributed)
  # Left out where it is not asked for, so that the gin file's PROFILE counts.
  asked = {"profile": True} if profile else {}
  _run(
    "train", "train", context, gin_file, gin_search_paths, or_else=("train_diffusion", "train"), keep_config=True,
    **asked,
  )  # fmt: skip


@app.command("eval", context_settings=_GIN)
def evaluate(
  context: typer.Context,
  gin_file: GinFiles,
  gin_search_paths: GinPaths = None,
  coordinator: Coordinator = None,
  process_count: ProcessCount = None,
  process_index: ProcessIndex = None,
  distributed: Distributed = False,
) -> None:
  """Score a trained model on a task, or on a whole benchmark.

  Example: fsb eval --gin_file=gin/runs/eval.gin --gin.MODEL=runs/tnews --gin.MIXTURE_OR_TASK_NAME=tnews
  fsb eval --gin_file=gin/runs/zeroclue.gin --gin.MODEL=IDEA-CCNL/Erlangshen-UniMC-RoBERTa-110M-Chinese
  --gin.OUTPUT_DIR=zeroclue
  """
  _join(coordinator, process_count, process_index, distributed)
  _run("evaluate", "evaluate", context, gin_file, gin_search_paths, or_else=("benchmark", "benchmark"))


@app.command(context_settings=_GIN)
def infer(
  context: typer.Context,
  gin_file: GinFiles,
  gin_search_paths: GinPaths = None,
  coordinator: Coordinator = None,
  process_count: ProcessCount = None,
  process_index: ProcessIndex = None,
  distributed: Distributed = False,
) -> None:
  """Write a trained model's predictions to a file.

  Example: fsb infer --gin_file=gin/runs/infer.gin --gin.MODEL=runs/tnews --gin.MIXTURE_OR_TASK_NAME=tnews
  --gin.OUTPUT_FILE=predictions.jsonl
  """
  _join(coordinator, process_count, process_index, distributed)
  _run("infer", "infer", context, gin_file, gin_search_paths)


@app.command()
def predict(
  task: Annotated[
    str, typer.Argument(help="What to do: text_classification, zero_shot, zero_shot_image_classification.")
  ],
  model: Annotated[str, typer.Option(help="A training run's folder, a converted folder, or a Hub folder or id.")],
  text: Annotated[
    list[str] | None, typer.Option(help="A text, a pair 'one[SEP]two', or an image's path; repeatable."),
  ] = None,
  input_file: Annotated[Path | None, typer.Option("--input", help="A text per line; zero_shot: JSON items.")] = None,
  choice: Annotated[list[str] | None, typer.Option(help="zero_shot: an option to choose; repeatable.")] = None,
  question: Annotated[str, typer.Option(help="zero_shot: what is asked about the text.")] = "",
  output_file: Annotated[Path | None, typer.Option("--output", help="JSON lines go there instead.")] = None,
  option: Annotated[
    list[str] | None, typer.Option(help="Of the pipeline, as NAME=VALUE: labels=猫,狗, image_model=..., ...")
  ] = None,
) -> None:
  """Predict from the shell.

  Example: fsb predict text_classification --model runs/tnews --text 今天很开心
  fsb predict zero_shot --model IDEA-CCNL/Erlangshen-UniMC-RoBERTa-110M-Chinese --text 很开心 --choice 好 --choice 坏
  """
  _quiet()
  _cache_compilations()
  from fsb_jax.pipelines import predict_lines

  predict_lines(
    task, model, text or [], input_file, output_file, choices=choice or [], question=question,
    options=dict(map(_named_value, option or [])),
  )


@app.command()
def generate(
  model: Annotated[str, typer.Option(help="A converted folder, a Hub folder or id, or a GGUF file.")],
  prompt: Annotated[list[str] | None, typer.Option(help="A text to go on from, or to read; repeatable.")] = None,
  chat: Annotated[bool, typer.Option("--chat", help="The prompt is the user's message of a conversation.")] = False,
  system: Annotated[str | None, typer.Option(help="The system's message before it.")] = None,
  template: Annotated[str | None, typer.Option(help="Of the conversation; the tokenizer's own if not given.")] = None,
  draft: Annotated[str | None, typer.Option(help="A smaller model that proposes tokens.")] = None,
  max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to write.")] = None,
  sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
  option: Annotated[
    list[str] | None, typer.Option(help="Any other, as NAME=VALUE: num_beams=4, temperature=0.7, top_p=0.9, ...")
  ] = None,
  stream: Annotated[bool, typer.Option(help="Show the text while it is written.")] = True,
  input_file: Annotated[Path | None, typer.Option("--input", help="A prompt per line.")] = None,
  output_file: Annotated[Path | None, typer.Option("--output", help="JSON lines go there instead.")] = None,
) -> None:
  """Write texts with a decoder or an encoder-decoder.

  Example: fsb generate --model IDEA-CCNL/Ziya-LLaMA-13B-v1 --chat --template ziya --prompt 帮我写一份去西安的旅游计划
  """
  _quiet()
  _cache_compilations()
  from fsb_jax.pipelines.text_generation import write_out

  options = dict(map(_named_value, option or []))
  options |= {"max_new_tokens": max_new_tokens} if max_new_tokens is not None else {}
  options |= {"do_sample": True} if sample else {}
  write_out(
    model, prompt or [], input_file=input_file, output_file=output_file, template=template, conversation=chat,
    system=system, stream=stream, draft=draft, options=options,
  )  # fmt: skip


@app.command()
def draw(
  model: Annotated[str, typer.Option(help="A folder in the layout of diffusers, or a Hub id.")],
  prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeatable.")] = None,
  negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
  steps: Annotated[int, typer.Option(help="From noise to an image.")] = 50,
  guidance: Annotated[float, typer.Option(help="How closely to follow the prompt.")] = 7.5,
  size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; what the model was trained with.")] = None,
  seed: Annotated[int | None, typer.Option(help="Of the first image; a random one if not given.")] = None,
  count: Annotated[int, typer.Option(help="Images for every prompt.")] = 1,
  scheduler: Annotated[
    str | None, typer.Option(help="ddpm, ddim, pndm, euler, euler_ancestral or dpm++; the folder's own if not given.")
  ] = None,
  image: Annotated[Path | None, typer.Option(help="An image to begin with.")] = None,
  mask: Annotated[Path | None, typer.Option(help="White where that image is drawn anew.")] = None,
  strength: Annotated[float | None, typer.Option(help="How much of that image is lost, up to 1.")] = None,
  lora: Annotated[
    list[str] | None, typer.Option(help="A LoRA file, or FILE=STRENGTH where 1 is as it was trained; repeatable.")
  ] = None,
  ascii_punctuation: Annotated[
    bool, typer.Option("--ascii-punctuation", help="Write full-width punctuation as ASCII: fewer watermarks.")
  ] = False,
  tiled: Annotated[bool, typer.Option("--tiled", help="Decode large images in parts, in less memory.")] = False,
  dtype: Annotated[str, typer.Option(help="Of parameters and activations: float32, bfloat16 or float16.")] = "float32",
  output: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("drawings"),
) -> None:
  """Draw images that prompts describe, or change images.

  Example: fsb draw --model IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1 --prompt 飞流直下三千尺,油画 --seed 1
  """
  _quiet()
  _cache_compilations()
  from fsb_jax.pipelines.drawing_files import draw_to_folder

  paths = draw_to_folder(
    model, prompt or [], output, size=size, negative_prompt=negative, steps=steps, guidance=guidance, seed=seed,
    images_per_prompt=count, scheduler=scheduler, image=image, mask=mask, strength=strength,
    ascii_punctuation=ascii_punctuation, lora=dict(map(_file_and_strength, lora or [])), tiled=tiled, dtype=dtype,
  )  # fmt: skip
  print("\n".join(map(str, paths)))


def _file_and_strength(text: str) -> tuple[str, float]:
  """FILE, or FILE=STRENGTH."""
  path, equals, strength = text.rpartition("=")
  try:
    return (path, float(strength)) if equals else (text, 1.0)
  except ValueError:
    raise UserError(f"--lora {text} must be FILE or FILE=STRENGTH, such as style.safetensors=0.7") from None


def _named_value(text: str) -> tuple[str, Any]:
  """NAME=VALUE, where the value is a number, a list, True or a word."""
  import ast

  name, equals, value = text.partition("=")
  if not equals:
    raise UserError(f"--option {text} must be NAME=VALUE, such as num_beams=4")
  try:
    return name, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return name, value


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
  _quiet()
  with _silent_import():
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


@data_app.command("cache", context_settings=_GIN)
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
  bindings = _bindings([argument for argument in arguments or () if argument not in names])
  _quiet()
  with _silent_import():
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


@convert_app.command("import")
def convert_import(
  source: Annotated[str, typer.Argument(help="Hub folder or id.")],
  target: Annotated[Path, typer.Argument(help="New folder.")],
  head: Annotated[str | None, typer.Option(help="Head to load; what the config says if not given.")] = None,
  param_dtype: Annotated[str, typer.Option(help="Of the parameters.")] = "float32",
  scan_layers: Annotated[bool, typer.Option(help="Stack the layers.")] = True,
) -> None:
  """Turn a PyTorch checkpoint into one of ours.

  Example: fsb convert import IDEA-CCNL/Erlangshen-Roberta-110M-Sentiment erlangshen
  """
  _quiet()
  from convert_torch import cli

  from fsb_jax.pretrained import find_folder

  model = cli.import_checkpoint(
    find_folder(source), target, head=head, param_dtype=param_dtype, scan_layers=scan_layers
  )
  print(f"{model.family} {model.head} written to {target}")
  for what, names in (("newly initialised", model.newly_initialised), ("unused", model.unused)):
    if names:
      print(f"{what}: {', '.join(names)}")


@convert_app.command("export")
def convert_export(
  source: Annotated[Path, typer.Argument(help="A folder of ours, or a training run's.")],
  target: Annotated[Path, typer.Argument(help="New Hub folder; of a LoRA run also NAME.safetensors.")],
  dtype: Annotated[str, typer.Option(help="Of the tensors: float32, float16 or bfloat16.")] = "float32",
  family: Annotated[str | None, typer.Option(help="Write this layout: llama, fengshen_llama; kohya (LoRA).")] = None,
  vocab_size: Annotated[int | None, typer.Option(help="Tokens to write; the model's if not given.")] = None,
  tensor_parallel: Annotated[int | None, typer.Option(help="Cut into part_0, part_1, ... for so many devices.")] = None,
) -> None:
  """Turn one of ours into a folder that transformers loads, or the original code.

  Example: fsb convert export runs/tnews tnews-hub
  """
  _quiet()
  from convert_torch import cli

  cli.export_checkpoint(
    source, target, dtype=dtype, family=family, vocab_size=vocab_size, tensor_parallel=tensor_parallel
  )
  print(f"written to {target}")


@convert_app.command("verify")
def convert_verify(
  source: Annotated[str, typer.Argument(help="Hub folder or id.")],
  target: Annotated[Path, typer.Argument(help="The folder of ours made from it, or exported to it.")],
) -> None:
  """Run both models on the same inputs and write a certificate; needs torch.

  Example: fsb convert verify tnews-hub runs/tnews
  """
  _quiet()
  from convert_torch import cli

  from fsb_jax.pretrained import find_folder

  certificate = cli.verify_checkpoint(find_folder(source), target)
  for result in certificate["results"]:
    print(
      f"{result['dtype']}, {result['inputs']}, {result['output']}: largest difference {result['max_abs_diff']:.1e}, "
      f"allowed {result['tolerance']:.1e}: {'equal' if result['passed'] else 'DIFFERENT'}"
    )
  print(f"{'the same numbers' if certificate['passed'] else 'NOT the same'}; certificate in {target}/verification.json")
  if not certificate["passed"]:
    raise typer.Exit(1)


@convert_app.command("inspect")
def convert_inspect(path: Annotated[str, typer.Argument(help="A folder of either kind, or a Hub id.")]) -> None:
  """Say what a checkpoint holds and whether it would convert.

  Example: fsb convert inspect IDEA-CCNL/Erlangshen-MegatronBert-1.3B
  """
  _quiet()
  from convert_torch import cli

  from fsb_jax.pretrained import find_folder

  cli.inspect(find_folder(path))


def _join(coordinator, process_count, process_index, distributed) -> None:
  """Joins the other processes of the run, if there are any."""
  from fsb_jax.partitioning import multihost

  multihost.initialise(coordinator, process_count, process_index, automatic=distributed)


def _run(
  module: str, function: str, context, gin_files, search_paths, *, or_else: tuple[str, str] | None = None,
  keep_config: bool = False, **arguments,
) -> None:  # fmt: skip
  """Calls a function of `fsb_jax.training` with arguments from gin and `arguments`.

  Where the gin files configure `or_else`, another module and function, that one is called.
  """
  bindings = _bindings(context.args)
  _quiet()
  with _silent_import():
    import seqio  # noqa: F401 - brings TensorFlow
  import importlib

  import jax

  from fsb_jax.training import gin_utils, host_memory

  named = [(module, function), *([or_else] if or_else else [])]
  target, *others = [getattr(importlib.import_module(f"fsb_jax.training.{name}"), which) for name, which in named]
  # SeqIO warns once per task of a mixture that it counts rows as they are, which is what we ask of it; Orbax logs the
  # traceback of an error that it raises as well.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  configured, text = gin_utils.configured(target, gin_files, bindings, search_paths or (), others)
  _cache_compilations()
  if jax.default_backend() == "cpu":
    host_memory.keep_freed_memory()
  configured(**({"config_text": text} if keep_config else {}), **arguments)


def _bindings(arguments: list[str]) -> list[str]:
  """NAME=VALUE of every --gin.NAME=VALUE."""
  for argument in arguments:
    if not argument.startswith("--gin."):
      raise UserError(f"unknown option {argument}; configuration is given as --gin.NAME=VALUE")
  return [argument.removeprefix("--gin.") for argument in arguments]


def _quiet() -> None:
  """Keeps the libraries' start-up chatter from the terminal."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextlib.contextmanager
def _silent_import():
  """TensorFlow writes to the terminal while it is imported, before it can be told not to."""
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def _cache_compilations() -> None:
  """JAX's persistent compilation cache, unless the environment says otherwise."""
  import jax

  if not jax.config.jax_compilation_cache_dir:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "fsb_jax" / "compilations"))


def main() -> None:
  """Runs the command line."""
  # --debug may stand anywhere; the parser knows it in front only.
  arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
  ended_well(lambda: app(args=arguments), debug="--debug" in sys.argv[1:])


def ended_well(command: Callable[[], Any], debug: bool = False) -> None:
  """Calls a command; a user's mistake is one sentence and exit status 2, a signal ends it in its own way.

  Args:
    command: what to call.
    debug: show tracebacks instead.
  """
  try:
    command()
  except UserError as error:
    if debug:
      raise
    print(f"fsb: {error}", file=sys.stderr)
    _exit(2)
  except Stopped as stopped:
    print(f"fsb: {stopped}, saved; the same command goes on from there", file=sys.stderr)
    sys.exit(0 if stopped.signal == signal.SIGTERM else 128 + stopped.signal)
  except KeyboardInterrupt:
    if debug:
      raise
    print("fsb: stopped; a training run goes on from its newest checkpoint with the same command", file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    if debug or not _is_one_of_several() or type(error).__name__ != "JaxRuntimeError":
      raise
    reason = " ".join(str(error).split())[:300]
    print(f"fsb: another process of the run has ended, and says why; this one ends too ({reason})", file=sys.stderr)
    _exit(1)


def _is_one_of_several() -> bool:
  return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _exit(status: int) -> None:
  """Exits, without waiting for other processes of the run, which may be gone."""
  if _is_one_of_several():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


if __name__ == "__main__":
  main()
