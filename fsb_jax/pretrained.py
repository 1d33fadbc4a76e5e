"""`from_pretrained`: a model, its parameters and what belongs to them, from a Hub folder, a Hub id or one of ours."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What config.json says of generation where there is no generation_config.json.
_GENERATION_FIELDS = (
  "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "max_length",
  "min_length", "do_sample", "num_beams", "temperature", "top_k", "top_p", "repetition_penalty", "length_penalty",
  "no_repeat_ngram_size", "bad_words_ids", "early_stopping",
)  # fmt: skip
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """A loaded model; unpacks as `model, params = loaded`.

  Attributes:
    model: the flax module.
    params: nested dict of arrays, unboxed.
    config: its `TransformerConfig`.
    tokenizer: a fast `transformers` tokenizer, None where the folder has none.
    generation_config: the folder's `generation_config.json` as a dict; where it has none, what its config.json says of
      generation, as old folders do, or None.
    metadata: family, head, labels, source.
    hf_config: the Hub's `config.json` as a dict.
    folder: where everything was read from.
    newly_initialised: paths of parameters the folder lacks; they hold random values.
  """

  model: nn.Module
  params: Any
  config: models.TransformerConfig
  tokenizer: Any
  generation_config: dict | None
  metadata: checkpoints.Metadata
  hf_config: dict
  folder: Path
  newly_initialised: tuple[str, ...] = ()

  def __iter__(self):
    return iter((self.model, self.params))


def from_pretrained(
  path: str | Path,
  *,
  head: str | None = None,
  num_labels: int | None = None,
  vocab_size: int | None = None,
  dtype: str = "float32",
  param_dtype: str = "float32",
  scan_layers: bool = True,
  remat: str = "none",
  attention: str = "auto",
  mesh: Any = None,
  load_tokenizer: bool = True,
) -> Loaded:
  """Loads a model.

  Args:
    path: a Hub folder, a folder of ours (also a training run's, or `RUN/checkpoints/best`), a GGUF file of a LLaMA (its
      tokenizer is that of the files beside it, else its own), or a Hub id such as
      "IDEA-CCNL/Erlangshen-Roberta-110M-Sentiment".
    head: "base", "masked_lm", "sequence_classification", ...; what the folder says if not given. A head the folder
      lacks is freshly initialised and listed.
    num_labels: classes of the head, where they are not the folder's.
    vocab_size: tokens to know, where they are not as many as the folder's: those at the end are added, each as the mean
      of the others, or dropped.
    dtype: of activations.
    param_dtype: of parameters.
    scan_layers: stacked layers (compiled once) or unrolled ones.
    remat: what to recompute in the backward pass, see `models.Run`.
    attention: implementation, see `models.Run`.
    mesh: a mesh, its sizes as a dict, or a `Partitioner`; parameters are placed on it. None leaves them on the
      default device.
    load_tokenizer: also load the tokenizer, which imports `transformers`.

  Raises:
    UserError: no model there, or one we cannot read.
  """
  if vocab_size is not None and vocab_size < 1:
    raise UserError(f"vocab_size={vocab_size} leaves no token; give how many the model is to know")
  source = find_folder(path)
  # First, for it takes the least time to fail.
  tokenizer = read_tokenizer(source) if load_tokenizer else None
  folder = source if source.is_dir() else source.parent
  partitioner = mesh if mesh is None or isinstance(mesh, Partitioner) else Partitioner(mesh)
  run = models.Run(
    dtype=dtype,
    param_dtype=param_dtype,
    scan_layers=scan_layers,
    remat=remat,
    attention=attention,
    vocab_multiple=partitioner.vocab_multiple if partitioner else 1,
  )
  params, config, metadata, hf_config, fresh = read_folder(source, head, num_labels, run)
  old_size, config = config.vocab_size, dataclasses.replace(config, vocab_size=vocab_size or config.vocab_size)
  model = models.build(metadata.family, config, metadata.head, metadata.num_labels)
  if config.vocab_size != old_size:
    params = models.resize_vocabulary(params, models.abstract_params(model), old_size)
    hf_config = {**hf_config, "vocab_size": config.vocab_size}
  if partitioner:
    boxed = models.abstract_params(model)
    partitioner.validate(boxed)
    params = jax.tree.map(jax.device_put, params, partitioner.shardings(boxed))
  else:
    params = jax.tree.map(jnp.asarray, params)
  return Loaded(
    model=model,
    params=params,
    config=config,
    tokenizer=tokenizer,
    generation_config=_generation_config(folder, hf_config if hasattr(model, "new_cache") else {}),
    metadata=metadata,
    hf_config=hf_config,
    folder=folder,
    newly_initialised=tuple(fresh),
  )


def find_folder(path: str | Path) -> Path:
  """The local folder or GGUF file of `path`, from the Hub where it is an id; UserError where it is neither."""
  folder = Path(path).expanduser()
  if checkpoints.home(folder) != folder and checkpoints.is_checkpoint(folder):
    return checkpoints.step_folder(folder)
  if folder.is_dir() or (folder.is_file() and folder.suffix.lower() == ".gguf"):
    return folder
  if folder.exists():
    raise UserError(f"{path} is a file and no .gguf; give the folder that holds config.json and the weights")
  if not _HUB_ID.fullmatch(str(path)):
    raise UserError(f"{path} is neither a folder nor a Hub id (ORGANISATION/NAME)")
  import huggingface_hub

  try:
    # Pickles only where there is nothing better: many repositories hold every tensor twice.
    files = huggingface_hub.list_repo_files(str(path))
    pickles = [] if any(name.endswith(".safetensors") for name in files) else ["*.bin"]
    return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=[*_HUB_FILES, *pickles]))
  except Exception as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f"{path} is no folder here, and the Hub did not give it: {reason}") from error


def find_head(path: str | Path) -> str:
  """The head of the model at `path`, see `find_folder`, without reading its weights."""
  folder = find_folder(path)
  if checkpoints.is_checkpoint(folder):
    return checkpoints.read_metadata(checkpoints.home(folder))[0].head
  import convert_torch

  return convert_torch.hub_head(folder)


def read_folder(
  folder: Path, head: str | None, num_labels: int | None, run: models.Run
) -> tuple[Any, models.TransformerConfig, checkpoints.Metadata, dict, list[str]]:
  """Reads a folder of either kind onto the host.

  Returns:
    Parameters (nested dict of numpy arrays), config, metadata, Hub config, and the paths that were freshly drawn.
  """
  read = _read_ours if checkpoints.is_checkpoint(folder) else _read_hub
  return read(folder, head, num_labels, run)


def read_tokenizer(source: Path) -> Any:
  """The tokenizer of what `find_folder` found; None where it has none."""
  from fsb_jax.encodings import load_tokenizer

  if source.is_dir():
    return load_tokenizer(checkpoints.home(source))
  import convert_torch

  return convert_torch.load_gguf_tokenizer(source)


def require_readable(tokenizer: Any, model: nn.Module) -> None:
  """UserError where the tokenizer's ids are not all that the model reads, more than it knows, or others."""
  config = model.config
  if config.ngrams is not None:
    raise UserError(
      "the model reads n-grams beside its tokens, which tasks and pipelines do not make yet; call the model itself "
      "with what fsb_jax.encodings.encode_ngrams gives"
    )
  if len(tokenizer) > config.vocab_size:
    raise UserError(
      f"the tokenizer has {len(tokenizer)} tokens but the model's vocabulary only {config.vocab_size}: they do not "
      "belong together"
    )
  if getattr(model.head, "global_tokens", "none") in ("question", "answer") and config.window is not None:
    separator, own = config.window.separator, tokenizer.sep_token_id
    if separator != own:
      raise UserError(
        f"config.json says sep_token_id={separator}, and the tokenizer's is {own}: the model would not find where "
        f"questions end; set sep_token_id={own} in config.json"
      )


def require_tokenizer(loaded: Loaded, path: str | Path) -> Any:
  """The tokenizer of what was loaded from `path`; UserError where there is none, or the model does not read its ids."""
  if loaded.tokenizer is None:
    raise UserError(f"{path} holds no tokenizer; copy vocab.txt or tokenizer.json into it")
  require_readable(loaded.tokenizer, loaded.model)
  return loaded.tokenizer


def _generation_config(folder: Path, hf_config: Mapping[str, Any]) -> dict | None:
  """What a folder says of generation; its config.json where `generation_config.json` does not."""
  said = {name: hf_config[name] for name in _GENERATION_FIELDS if hf_config.get(name) is not None}
  path = checkpoints.home(folder) / "generation_config.json"
  if not path.is_file():
    return said or None
  ids = {name: value for name, value in said.items() if name.endswith("_id")}
  try:
    return {**ids, **json.loads(path.read_text("utf-8"))}
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} is no JSON object: {error}") from error


def _read_hub(folder: Path, head: str | None, num_labels: int | None, run: models.Run):
  import convert_torch

  hub = convert_torch.load_hub_folder(folder, head=head, num_labels=num_labels, run=run)
  return hub.params, hub.config, hub.metadata(), hub.hf_config, hub.newly_initialised


def _read_ours(folder: Path, head: str | None, num_labels: int | None, run: models.Run):
  params, metadata, hf_config = checkpoints.load_folder(folder)
  wanted_head = head or metadata.head
  wanted_labels = metadata.num_labels if num_labels is None else num_labels
  config = dataclasses.replace(models.family(metadata.family).config_from_hf(hf_config), run=run)
  model = models.build(metadata.family, config, wanted_head, wanted_labels)
  saved = models.flatten(checkpoints.to_layout(params, run.scan_layers))
  fitted, fresh, problems = checkpoints.fit(saved, models.flatten(models.abstract_params(model)), models.may_be_fresh)
  if problems:
    raise UserError(f"{folder} does not hold the model its config.json describes:\n" + "\n".join(problems))
  params = models.unflatten({**fitted, **models.fresh_values(model, fresh)})
  same_labels = wanted_labels == metadata.num_labels
  metadata = dataclasses.replace(
    metadata,
    head=wanted_head,
    num_labels=wanted_labels,
    label_names=metadata.label_names if same_labels else None,
    scan_layers=run.scan_layers,
    param_dtype=run.param_dtype,
  )
  return params, config, metadata, hf_config, fresh
