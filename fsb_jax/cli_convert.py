"""`fsb convert`: to and from PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from fsb_jax.cli_shared import quiet

convert_app = typer.Typer(no_args_is_help=True, help="Convert checkpoints to and from PyTorch, with proof.")


@convert_app.command("import")
def convert_import(
  source: Annotated[
    str, typer.Argument(help="Hub folder or id; or a single file of Stable Diffusion, .safetensors or .ckpt.")
  ],
  target: Annotated[Path, typer.Argument(help="New folder.")],
  head: Annotated[str | None, typer.Option(help="Head to load; what the config says if not given.")] = None,
  param_dtype: Annotated[str, typer.Option(help="Of the parameters.")] = "float32",
  scan_layers: Annotated[bool, typer.Option(help="Stack the layers.")] = True,
  config_from: Annotated[
    Path | None, typer.Option(help="Single files: a folder of diffusers with their configs, scheduler and tokenizers.")
  ] = None,
) -> None:
  """Turn a PyTorch checkpoint into one of ours, or a single file of Stable Diffusion into a folder of diffusers.

  Example: fsb convert import IDEA-CCNL/Erlangshen-Roberta-110M-Sentiment erlangshen
  fsb convert import taiyi.ckpt taiyi --config-from Taiyi-Stable-Diffusion-1B-Chinese-v0.1
  """
  quiet()
  from convert_torch import cli

  from fsb_jax.errors import UserError
  from fsb_jax.pretrained import find_folder

  if cli.is_single_file(source):
    lacking = cli.import_single_file(source, target, config_from)
    hint = f"; to draw, it lacks {' and '.join(lacking)}, which --config-from takes from a folder" if lacking else ""
    print(f"written to {target}{hint}")
    return
  if config_from is not None:
    raise UserError("--config-from is for a single file, .safetensors or .ckpt; leave it out")
  model = cli.import_checkpoint(
    find_folder(source), target, head=head, param_dtype=param_dtype, scan_layers=scan_layers
  )
  print(f"{model.family} {model.head} written to {target}")
  for what, names in (("newly initialised", model.newly_initialised), ("unused", model.unused)):
    if names:
      print(f"{what}: {', '.join(names)}")


@convert_app.command("export")
def convert_export(
  source: Annotated[Path, typer.Argument(help="A folder of ours, or a training run's; or one of diffusers.")],
  target: Annotated[Path, typer.Argument(help="New Hub folder; of models that draw also NAME.safetensors.")],
  dtype: Annotated[str, typer.Option(help="Of the tensors: float32, float16 or bfloat16.")] = "float32",
  family: Annotated[str | None, typer.Option(help="Write this layout: llama, fengshen_llama; kohya (LoRA).")] = None,
  vocab_size: Annotated[int | None, typer.Option(help="Tokens to write; the model's if not given.")] = None,
  tensor_parallel: Annotated[int | None, typer.Option(help="Cut into part_0, part_1, ... for so many devices.")] = None,
) -> None:
  """Turn one of ours into a folder that transformers loads, or the original code.

  Example: fsb convert export runs/tnews tnews-hub
  """
  quiet()
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
  quiet()
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
  quiet()
  from convert_torch import cli

  from fsb_jax.pretrained import find_folder

  cli.inspect(find_folder(path))
