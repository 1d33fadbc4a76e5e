"""`fsb`: parses, then calls one function. Each command imports what it needs when it runs."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fsb_jax.cli_convert import convert_app
from fsb_jax.cli_data import data_app, tasks_app
from fsb_jax.cli_shared import GIN, GinPaths, bindings_of, quiet, silent_import
from fsb_jax.errors import Stopped, UserError
from fsb_jax.version import __version__

app = typer.Typer(
  name="fsb",
  no_args_is_help=True,
  add_completion=False,
  pretty_exceptions_enable=False,
  help="Chinese foundation models in JAX: convert, train, evaluate, use, and convert back.",
)
app.add_typer(convert_app, name="convert")
app.add_typer(tasks_app, name="tasks")
app.add_typer(data_app, name="data")

GinFiles = Annotated[
  list[str], typer.Option("--gin_file", help="Gin file; may be given several times. Relative to here or the package.")
]
Coordinator = Annotated[
  str | None, typer.Option(help="HOST:PORT of process 0, where several processes work together (all three options).")
]
ProcessCount = Annotated[int | None, typer.Option(help="How many processes there are.")]
ProcessIndex = Annotated[int | None, typer.Option(help="Which one this is, from 0.")]
Distributed = Annotated[
  bool, typer.Option("--distributed", help="Find the other processes by itself: TPU pods, Slurm, MPI, Kubernetes.")
]


@app.callback(invoke_without_command=True)
def _options(
  version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
  debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
  if version:
    print(__version__)
    raise typer.Exit


@app.command(context_settings=GIN)
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


@app.command("eval", context_settings=GIN)
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


@app.command(context_settings=GIN)
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
    str,
    typer.Argument(
      help="text_classification, token_classification, question_answering, zero_shot or zero_shot_image_classification."
    ),
  ],
  model: Annotated[str, typer.Option(help="A training run's folder, a converted folder, or a Hub folder or id.")],
  text: Annotated[
    list[str] | None, typer.Option(help="A text, a pair 'one[SEP]two', or an image's path; repeatable."),
  ] = None,
  input_file: Annotated[
    Path | None, typer.Option("--input", help="A text per line; zero_shot, question_answering: JSON items.")
  ] = None,
  choice: Annotated[list[str] | None, typer.Option(help="zero_shot: an option to choose; repeatable.")] = None,
  question: Annotated[str, typer.Option(help="zero_shot, question_answering: what is asked about the text.")] = "",
  output_file: Annotated[Path | None, typer.Option("--output", help="JSON lines go there instead.")] = None,
  option: Annotated[
    list[str] | None, typer.Option(help="Of the pipeline, as NAME=VALUE: labels=猫,狗, image_model=..., ...")
  ] = None,
) -> None:
  """Predict from the shell.

  Example: fsb predict text_classification --model runs/tnews --text 今天很开心
  fsb predict zero_shot --model IDEA-CCNL/Erlangshen-UniMC-RoBERTa-110M-Chinese --text 很开心 --choice 好 --choice 坏
  fsb predict question_answering --model runs/cmrc2018 --text 猫今年三岁。 --question 猫几岁？
  """
  quiet()
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
  quiet()
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
  guidance_rescale: Annotated[
    float, typer.Option(help="Up to 1: takes back the contrast that guidance adds, for models that predict velocity.")
  ] = 0.0,
  size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; what the model was trained with.")] = None,
  seed: Annotated[int | None, typer.Option(help="Of the first image; a random one if not given.")] = None,
  count: Annotated[int, typer.Option(help="Images for every prompt.")] = 1,
  batch_size: Annotated[int, typer.Option(help="Images drawn at a time.")] = 4,
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
  variant: Annotated[str | None, typer.Option(help="Which weight files of a folder to read, such as fp16.")] = None,
  output: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("drawings"),
) -> None:
  """Draw images that prompts describe, or change images.

  Example: fsb draw --model IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1 --prompt 飞流直下三千尺,油画 --seed 1
  """
  quiet()
  _cache_compilations()
  _keep_freed_memory()
  from fsb_jax.pipelines.drawing_files import draw_to_folder

  paths = draw_to_folder(
    model, prompt or [], output, size=size, negative_prompt=negative, steps=steps, guidance=guidance,
    guidance_rescale=guidance_rescale, seed=seed, images_per_prompt=count, batch_size=batch_size,
    scheduler=scheduler, image=image, mask=mask, strength=strength, ascii_punctuation=ascii_punctuation,
    lora=dict(map(_file_and_strength, lora or [])), tiled=tiled, dtype=dtype, variant=variant,
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
  bindings = bindings_of(context.args)
  quiet()
  with silent_import():
    import seqio  # noqa: F401 - brings TensorFlow
  import importlib

  from fsb_jax.training import gin_utils

  named = [(module, function), *([or_else] if or_else else [])]
  target, *others = [getattr(importlib.import_module(f"fsb_jax.training.{name}"), which) for name, which in named]
  # SeqIO warns once per task of a mixture that it counts rows as they are, which is what we ask of it; Orbax logs the
  # traceback of an error that it raises as well.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  configured, text = gin_utils.configured(target, gin_files, bindings, search_paths or (), others)
  _cache_compilations()
  _keep_freed_memory()
  configured(**({"config_text": text} if keep_config else {}), **arguments)


def _cache_compilations() -> None:
  """JAX's persistent compilation cache, unless the environment says otherwise."""
  import jax

  if not jax.config.jax_compilation_cache_dir:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "fsb_jax" / "compilations"))


def _keep_freed_memory() -> None:
  """`keep_freed_memory` where memory of the host is what XLA computes in."""
  import jax

  from fsb_jax.training import host_memory

  if jax.default_backend() == "cpu":
    host_memory.keep_freed_memory()


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
