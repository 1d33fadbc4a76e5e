"""What `fsb convert` calls: import, export, verify and inspect, from folders to folders."""

import dataclasses
from pathlib import Path

import numpy as np

from convert_torch import change, diffusion_run, hub
from convert_torch.diffusers_folder import load_diffusers_folder, save_diffusers_folder
from convert_torch.single_file import load_single_file, save_single_file
from convert_torch.sources import beside, is_gguf, tokenizer_folder
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError


def import_checkpoint(
  source: Path | str,
  target: Path | str,
  *,
  head: str | None = None,
  num_labels: int | None = None,
  param_dtype: str = "float32",
  scan_layers: bool = True,
  vocab_multiple: int = 1,
) -> hub.HubModel:
  """Turns a Hub folder into a folder of ours.

  Args:
    source: the Hub folder, or a GGUF file, whose tokenizer is that of the files beside it, else its own.
    target: where; must not exist, or be empty.
    head: see `load_hub_folder`.
    num_labels: see `load_hub_folder`.
    param_dtype: of the parameters.
    scan_layers: whether layers are stacked.
    vocab_multiple: vocabulary rows are padded to a multiple of this.

  Returns:
    What was read, with the lists of newly initialised parameters and unused tensors.

  Raises:
    UserError: see `load_hub_folder`; or the target is not empty.
  """
  checkpoints.require_empty(target)
  if checkpoints.is_checkpoint(source):
    raise UserError(f"{source} is a folder of ours already; fsb convert export makes a Hub folder of it")
  run = models.Run(param_dtype=param_dtype, scan_layers=scan_layers, vocab_multiple=vocab_multiple)
  with tokenizer_folder(Path(source)) as tokenizer_from:
    model = hub.load_hub_folder(source, head=head, num_labels=num_labels, run=run)
    checkpoints.save_folder(target, model.params, model.metadata(), model.hf_config, tokenizer_from=tokenizer_from)
  return model


def is_single_file(source: Path | str) -> bool:
  """Whether a path is called as a file that holds a whole Stable Diffusion."""
  return Path(source).suffix in (".ckpt", ".safetensors")


def import_single_file(source: Path | str, target: Path | str, config_from: Path | str | None) -> list[str]:
  """Turns a single file of Stable Diffusion into a folder of diffusers, which is what draws and is trained.

  Args:
    source: see `load_single_file`.
    target: where; must not exist, or be empty.
    config_from: see `load_single_file`; its tokenizers and scheduler are copied.

  Returns:
    The parts that drawing needs and that neither had: "tokenizer", "scheduler".

  Raises:
    UserError: see `load_single_file`; or the target is not empty.
  """
  checkpoints.require_empty(target)
  model = load_single_file(source, config_from=config_from)
  save_diffusers_folder(target, model)
  lacking = len(model.tokenizer_folders) < len(model.text_encoders)
  return ["tokenizer"] * lacking + ["scheduler"] * (model.scheduler_config is None)


def export_checkpoint(
  source: Path | str,
  target: Path | str,
  *,
  dtype: str = "float32",
  family: str | None = None,
  vocab_size: int | None = None,
  tensor_parallel: int | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Turns a folder of ours into one that `transformers` (or the original code) loads.

  Args:
    source: a folder of ours, or one of diffusers to make a single file of.
    target: where; must not exist, or be empty. Of models that draw also NAME.safetensors.
    dtype: see `save_hub_folder`.
    family: in whose layout, where the model's own has another name: "llama", "fengshen_llama"; of LoRA factors that
      are written to a .safetensors file "diffusers" or "kohya".
    vocab_size: tokens to write, where they are not as many as the model's, see `models.resize_vocabulary`.
    tensor_parallel: see `save_hub_folder`.
    max_shard_bytes: see `save_hub_folder`.

  Raises:
    UserError: the source is none of ours, or see `save_hub_folder`.
  """
  checkpoints.require_empty(target)
  if (checkpoints.home(source) / "model_index.json").is_file():
    if vocab_size is not None or tensor_parallel is not None:
      raise UserError("vocab_size and tensor_parallel are not for models that draw; leave them out")
    if not checkpoints.is_checkpoint(source):
      if Path(target).suffix != ".safetensors" or family is not None:
        raise UserError(f"{source} is what diffusers reads already; name a single file to make: NAME.safetensors")
      save_single_file(target, load_diffusers_folder(source), dtype=dtype)
      return
    diffusion_run.export_run(source, target, dtype=dtype, layout=family, max_shard_bytes=max_shard_bytes)
    return
  model = load_ours(source)
  model = model if vocab_size is None else change.to_vocabulary(model, vocab_size)
  model = model if family is None else change.to_family(model, family)
  hub.save_hub_folder(
    target,
    model.params,
    family=model.family,
    config=model.config,
    head=model.head,
    num_labels=model.num_labels,
    label_names=model.label_names,
    hf_config=model.hf_config,
    tokenizer_from=source,
    dtype=dtype,
    max_shard_bytes=max_shard_bytes,
    tensor_parallel=tensor_parallel,
  )


def verify_checkpoint(source: Path | str, target: Path | str, *, write_to: Path | str | None = None) -> dict:
  """Runs a Hub folder in PyTorch and a converted folder in ours, on the same inputs.

  Args:
    source: the Hub folder.
    target: a folder of ours, or a Hub folder to be read by us.
    write_to: where the certificate goes; by default `verification.json` in `target`.

  Returns:
    The certificate, see `verify.verify`; its `passed` says whether all is equal.

  Raises:
    UserError: one of the two is no model, or PyTorch is not installed.
  """
  from convert_torch import verify

  model = load_ours(target) if checkpoints.is_checkpoint(target) else hub.load_hub_folder(target)
  return verify.verify(source, model, write_to=write_to or Path(target) / "verification.json")


def load_ours(folder: Path | str) -> hub.HubModel:
  """Reads a folder of ours in the layout it was saved in, its vocabulary cut back to what it was padded from."""
  if not checkpoints.is_checkpoint(folder):
    raise UserError(f"{folder} is no folder of ours (it has no metadata.json); a Hub folder is imported first")
  params, metadata, hf_config = checkpoints.load_folder(folder)
  config = _config(metadata, hf_config)
  boxed = models.abstract_params(models.build(metadata.family, config, metadata.head, metadata.num_labels))
  fitted, _, problems = checkpoints.fit(models.flatten(params), models.flatten(boxed), lambda path: False)
  if problems:
    raise UserError(f"{folder} does not hold the model its config.json describes:\n" + "\n".join(problems))
  return hub.HubModel(
    family=metadata.family,
    config=config,
    head=metadata.head,
    num_labels=metadata.num_labels,
    label_names=metadata.label_names,
    params=models.unflatten(fitted),
    hf_config=hf_config,
    newly_initialised=[],
    unused=[],
    source=metadata.source,
  )


def _config(metadata: checkpoints.Metadata, hf_config: dict) -> models.TransformerConfig:
  run = models.Run(param_dtype=metadata.param_dtype, scan_layers=metadata.scan_layers)
  return dataclasses.replace(models.family(metadata.family).config_from_hf(hf_config), run=run)


def inspect(path: Path | str, *, head: str | None = None, console=None) -> None:
  """Prints what a folder holds: one of ours, or a Hub folder and how it would map; no weights are read.

  Args:
    path: the folder.
    head: for a Hub folder, the head to map it to; by default its own.
    console: a `rich.console.Console`; by default standard output.

  Raises:
    UserError: the folder is no model.
  """
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  folder = Path(path)
  rows = _inspect_ours(folder) if checkpoints.is_checkpoint(folder) else _inspect_hub(folder, head)
  table = Table(title=str(folder), show_header=False)
  for name, value in rows:
    table.add_row(name, Text(value))  # as it is: square brackets are shapes here, not markup
  (console or Console()).print(table)


def _inspect_ours(folder: Path) -> list[tuple[str, str]]:
  metadata, hf_config = checkpoints.read_metadata(folder)
  config = _config(metadata, hf_config)
  shapes = hub.param_shapes(models.build(metadata.family, config, metadata.head, metadata.num_labels))
  files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  return [
    ("kind", f"fsb_jax folder, {'stacked' if metadata.scan_layers else 'unrolled'} layers"),
    *_describe(metadata.family, config, metadata.head, metadata.num_labels, metadata.label_names, shapes),
    ("dtype", metadata.param_dtype),
    ("files", f"{len(files)} files, {_megabytes(sum(path.stat().st_size for path in files))}"),
    ("source", metadata.source.get("path", "")),
  ]


def _inspect_hub(folder: Path, head: str | None) -> list[tuple[str, str]]:
  opened = hub.open_hub_folder(folder, head=head)
  match, files = opened.match, opened.files
  shapes = hub.param_shapes(opened.model)
  return [
    ("kind", "GGUF file" if is_gguf(folder) else "Hub folder"),
    *_describe(opened.family, opened.config, opened.head, opened.num_labels, opened.label_names, shapes),
    ("dtype", ", ".join(sorted({info.dtype for info in match.sources}))),
    ("files", "\n".join(f"{path.name} {_megabytes(path.stat().st_size)}" for path in files.paths)),
    ("other files", ", ".join(sorted(path.name for path in beside(folder).iterdir() if path not in files.paths))),
    ("would map", f"{len(match.sources)} of {len(files.tensors)} tensors"),
    ("newly initialised", "\n".join(match.missing) or "nothing"),
    ("unused", "\n".join(match.unused) or "nothing"),
    ("does not fit", "\n".join(line.strip() for line in match.problems) or "nothing"),
  ]


def _describe(family, config, head, num_labels, label_names, shapes) -> list[tuple[str, str]]:
  count = sum(int(np.prod(shape)) for shape in shapes.values())
  return [
    ("family", family),
    ("head", f"{head} ({models.family(family).architecture(head)})"),
    ("layers", f"{config.num_layers}, width {config.embed_dim}, {config.num_heads} heads, inner {config.mlp_dim}"),
    ("vocabulary", f"{config.vocab_size} ids"),
    ("parameters", f"{count:,}"),
    ("labels", ", ".join(label_names) if label_names else f"{num_labels}, unnamed"),
  ]


def _megabytes(size: int) -> str:
  return f"{size / 1e6:.1f} MB"
