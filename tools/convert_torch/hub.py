"""A Hub folder as a model of ours, and a model of ours as a Hub folder."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from convert_torch import engine, io, parts
from convert_torch.sources import open_source
from convert_torch.weights import Table, table
from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError

# transformers takes these from `num_labels`; our heads always have two.
_FIXED_LABELS = {"question_answering": 2, "question_answering_simple": 2, "sentence_order": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubModel:
  """What a Hub folder holds, in our terms.

  Attributes:
    family: name of the model family.
    config: its `TransformerConfig`.
    head: name of the head, "base" for none.
    num_labels: classes of the head.
    label_names: their names in order, None where they have none of their own.
    params: all parameters, nested dict of numpy arrays.
    hf_config: `config.json` as it was.
    newly_initialised: paths of parameters the folder lacks; they hold freshly drawn values.
    unused: tensors of the folder that the chosen head has no place for.
    source: `path` and `sha256` (by file name) of the weight files.
  """

  family: str
  config: models.TransformerConfig
  head: str
  num_labels: int
  label_names: tuple[str, ...] | None
  params: dict[str, Any]
  hf_config: dict
  newly_initialised: list[str]
  unused: list[str]
  source: dict

  def metadata(self) -> checkpoints.Metadata:
    """What a folder of ours records of it."""
    run = self.config.run
    return checkpoints.Metadata(
      family=self.family,
      head=self.head,
      num_labels=self.num_labels,
      label_names=self.label_names,
      scan_layers=run.scan_layers,
      param_dtype=run.param_dtype,
      source=self.source,
      versions=checkpoints.installed_versions(),
    )


def load_hub_folder(
  folder: Path | str,
  *,
  head: str | None = None,
  num_labels: int | None = None,
  run: models.Run | None = None,
  seed: int = 0,
  variant: str | None = None,
) -> HubModel:
  """Reads a folder that `transformers` wrote.

  Args:
    folder: holds config.json and weights (safetensors, or PyTorch pickles of tensors alone; one file or shards); or
      part_0, part_1, ... of those, see `parts.py`; or a GGUF file of a LLaMA, whatever lies beside it.
    head: "base", "masked_lm", ...; by default the first of the config's `architectures`.
    num_labels: classes of the head; by default the config's.
    run: dtypes, scan layout and vocabulary padding; `params` are in `run.param_dtype`.
    seed: for parameters the folder lacks.
    variant: of the weight files, such as "fp16"; None for the files without one, see `io.WeightFiles`.

  Returns:
    The model. Where `head` or `num_labels` were asked for and are not the folder's, head parameters of another shape
    are drawn afresh and listed in `newly_initialised`.

  Raises:
    UserError: no model there, one we do not know, or weights that do not fit it.
  """
  opened = open_hub_folder(folder, head=head, num_labels=num_labels, run=run, variant=variant)
  return read_opened(opened, folder, seed)


def read_opened(opened: "OpenedHub", source: Path | str, seed: int = 0) -> HubModel:
  """The second half of `load_hub_folder`; `source` is what was opened."""
  match, config = opened.match, opened.config
  if match.problems:
    raise UserError(
      f"{source} does not fit {opened.family} with head {opened.head} and {opened.num_labels} labels "
      "(+ in the file but not in our table, - needed but not in the file, ! otherwise wrong):\n"
      + "\n".join(match.problems)
    )
  dtype = jnp.dtype(config.run.param_dtype)
  read = engine.read(match, opened.files, config, param_shapes(opened.model), dtype)
  # JAX draws float64 only where it is switched on; the parameters are all of one dtype.
  fresh = {path: x.astype(dtype) for path, x in models.fresh_values(opened.model, match.missing, seed).items()}
  return HubModel(
    family=opened.family,
    config=config,
    head=opened.head,
    num_labels=opened.num_labels,
    label_names=opened.label_names,
    params=models.unflatten({**read, **fresh}),
    hf_config=opened.hf_config,
    newly_initialised=match.missing,
    unused=match.unused,
    source={"path": str(source), "sha256": opened.files.sha256()},
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedHub:
  """A Hub folder matched to a model of ours, its weights not read; see `HubModel` for the shared attributes.

  Attributes:
    model: the flax module.
    files: the opened weight files.
    match: how their tensors fit the model.
  """

  family: str
  config: models.TransformerConfig
  head: str
  num_labels: int
  label_names: tuple[str, ...] | None
  hf_config: dict
  model: Any
  files: io.WeightFiles
  match: engine.Match


def open_hub_folder(
  folder: Path | str,
  *,
  head: str | None = None,
  num_labels: int | None = None,
  run: models.Run | None = None,
  variant: str | None = None,
) -> OpenedHub:
  """The first half of `load_hub_folder`: everything but reading the weights; misfits are listed, not raised."""
  hf_config, open_weights = open_source(Path(folder), variant)
  return open_hub(hf_config, open_weights, head=head, num_labels=num_labels, run=run)


def open_hub(
  hf_config: dict,
  open_weights: Callable[[Table], Any],
  *,
  head: str | None = None,
  num_labels: int | None = None,
  run: models.Run | None = None,
) -> OpenedHub:
  """`open_hub_folder` of this config.json and whatever `open_weights` opens, given the family's table."""
  family = models.family_of_hub_config(hf_config)
  config = dataclasses.replace(family.config_from_hf(hf_config), run=run or models.Run())
  weights = table(family.name)
  files = open_weights(weights)
  if weights.keeps_apart and config.tie_embeddings and engine.ties_what_differs(weights, files):
    config = dataclasses.replace(config, tie_embeddings=False)
    hf_config = models.updated(hf_config, family.config_to_hf(config))
  own_head = _own_head(family, hf_config, required=head is None)
  own_labels, label_names = read_labels(hf_config)
  head = head or own_head
  asked_labels = _FIXED_LABELS.get(head, own_labels if num_labels is None else num_labels)
  model = models.build(family.name, config, head, asked_labels)
  differs = head != own_head or asked_labels != own_labels
  return OpenedHub(
    family=family.name,
    config=config,
    head=head,
    num_labels=asked_labels,
    label_names=label_names if asked_labels == own_labels else None,
    hf_config=hf_config,
    model=model,
    files=files,
    match=engine.match(
      weights, files, config, param_shapes(model), replace_heads=differs,
      config_fields={
        **{name: value for name, value in family.config_to_hf(config).items() if name in hf_config},
        **{name: hf_config[name] for row in weights.rows for name in row.fields if name in hf_config},
        "num_labels": asked_labels,
      },
    ),
  )


def save_hub_folder(
  folder: Path | str,
  params: Mapping[str, Any],
  *,
  family: str,
  config: models.TransformerConfig,
  head: str,
  num_labels: int,
  label_names: tuple[str, ...] | None,
  hf_config: Mapping[str, Any],
  tokenizer_from: Path | str | None = None,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
  tensor_parallel: int | None = None,
) -> None:
  """Writes a folder that `transformers` loads as its own: the tensors its class saves, and nothing else.

  Args:
    folder: where; must not exist, or be empty.
    params: all parameters of the model, nested dict of arrays, in the layout of `config.run`.
    family: name of the model family.
    config: its `TransformerConfig`; padded vocabularies are cut back to `vocab_size`.
    head: name of the head.
    num_labels: classes of the head.
    label_names: their names, or None.
    hf_config: the Hub config the model came from; what `config` says replaces what it said.
    tokenizer_from: a folder whose tokenizer files are copied as they are.
    dtype: of the file's tensors: "float32", "float16" or "bfloat16" (or "float64").
    max_shard_bytes: size above which the weights are split.
    tensor_parallel: how many parts to cut the tensors into, see `parts.py`; None for whole ones.

  Raises:
    UserError: the folder is not empty, the parameters are not this model's, they cannot be cut into as many parts, or
      a value does not fit `dtype`.
  """
  if dtype not in engine.FLOATS:
    raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(engine.FLOATS)}")
  checkpoints.require_empty(folder)
  chosen = models.family(family)
  model = models.build(family, config, head, num_labels)
  flat = models.flatten(params)
  shapes, weights, prefixed = param_shapes(model), table(family), head != "base"
  require_shapes({path: tuple(x.shape) for path, x in flat.items()}, shapes, f"{family} with head {head}")
  if tensor_parallel is not None:
    parts.require_divisible(weights, config, engine.slots(weights, config, shapes, prefixed), tensor_parallel)
  if _FIXED_LABELS.get(head, num_labels) != num_labels:
    num_labels, label_names = _FIXED_LABELS[head], None
  new_config = {
    **models.updated(hf_config, chosen.config_to_hf(config)),
    "model_type": chosen.model_type,
    "architectures": [chosen.architecture(head)],
    "dtype": dtype,
    **{name: getattr(config.head_sizes, name) for name in getattr(model.head, "sizes", ())},
    **_labels_to_hf(num_labels, label_names, hf_config),
  }
  if "torch_dtype" in hf_config:
    new_config["torch_dtype"] = dtype

  def cast(part: int, count: int):
    # Cut before it is cast, so that no more than one part's tensor is copied.
    tensors = engine.save(weights, flat, config, prefixed=prefixed)
    for name, array in parts.piece(weights, tensors, part, count):
      yield name, cast_to(name, array, dtype)

  if tensor_parallel is None:
    io.write_folder(folder, cast(0, 1), new_config, tokenizer_from, max_shard_bytes)
  else:
    every = (cast(part, tensor_parallel) for part in range(tensor_parallel))
    io.write_parts(folder, every, new_config, tokenizer_from, max_shard_bytes)


def param_shapes(model) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every parameter of a model."""
  import flax.linen as nn

  return {path: tuple(x.shape) for path, x in models.flatten(nn.meta.unbox(models.abstract_params(model))).items()}


def read_labels(hf_config: Mapping[str, Any]) -> tuple[int, tuple[str, ...] | None]:
  """Number of labels, and their names where they have any but LABEL_0, LABEL_1, ...; 2 where the config is silent."""
  names = hf_config.get("id2label")
  if not names:
    return hf_config.get("num_labels", 2), None
  by_id = {str(i): str(name) for i, name in names.items()}
  if set(by_id) != {str(i) for i in range(len(by_id))}:
    raise UserError(f"config.json's id2label has keys {sorted(by_id)}, not 0 to {len(by_id) - 1}")
  ordered = tuple(by_id[str(i)] for i in range(len(by_id)))
  return len(ordered), None if all(re.fullmatch(r"LABEL_\d+", name) for name in ordered) else ordered


def _labels_to_hf(num_labels: int, label_names: tuple[str, ...] | None, hf_config: Mapping[str, Any]) -> dict:
  if read_labels(hf_config) == (num_labels, label_names):
    return {}
  names = label_names or tuple(f"LABEL_{i}" for i in range(num_labels))
  if len(names) != num_labels:
    raise UserError(f"{len(names)} label names for {num_labels} labels")
  written = {
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
  }
  return written if "num_labels" not in hf_config else {**written, "num_labels": num_labels}


def _own_head(family: models.Family, hf_config: Mapping[str, Any], required: bool) -> str | None:
  architectures = hf_config.get("architectures") or []
  if required and not architectures:
    raise UserError(
      "config.json names no architecture; pass head= with one of " + ", ".join(["base", *family.heads])
    )
  if required:
    return family.head_of(architectures[0])
  return family.architectures.get(architectures[0]) if architectures else None


def hub_head(folder: Path | str) -> str:
  """The head that a Hub folder's config.json names; UserError where it names none that we know."""
  hf_config, _ = open_source(Path(folder))
  return _own_head(models.family_of_hub_config(hf_config), hf_config, required=True)


def require_shapes(have: Mapping[str, tuple], want: Mapping[str, tuple], what: str) -> None:
  """UserError listing what parameters of shapes `have` lack, or have too many, of those that `what` has, `want`."""
  problems = [f"  + {path} {shape}" for path, shape in have.items() if path not in want]
  problems += [f"  - {path} {shape}" for path, shape in want.items() if path not in have]
  problems += [f"  ! {p} has {have[p]}, needs {want[p]}" for p in want if p in have and have[p] != want[p]]
  if problems:
    raise UserError(
      f"the parameters are not those of {what} (+ unknown, - missing, ! another shape)\n" + "\n".join(problems)
    )


def cast_to(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
  """An array of numbers in `dtype`; UserError, naming the tensor, where they are too large for it."""
  if not np.issubdtype(array.dtype, np.floating) and array.dtype != jnp.bfloat16:
    return array
  with np.errstate(over="ignore"):
    cast = array.astype(jnp.dtype(dtype))
  if not np.isfinite(cast).all() and np.isfinite(array).all():
    raise UserError(f"{name} holds numbers too large for {dtype}; export it in float32 or bfloat16")
  return cast
