"""What a run starts from: a checkpoint, or a size with fresh weights; and how it is placed on the mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fsb_jax import checkpoints, models, pretrained
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training.step import TrainState, Update, abstract_state


@dataclasses.dataclass(frozen=True)
class SizedModel:
  """A named size of a family, for training from scratch.

  Attributes:
    family: e.g. "bert".
    size: e.g. "tiny"; see `fsb_jax/models/families/`.
  """

  family: str
  size: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """A model about to be trained or used.

  Attributes:
    params: host arrays, None where they are to be drawn.
    newly_initialised: paths drawn because the checkpoint lacks them.
  """

  model: nn.Module
  config: models.TransformerConfig
  metadata: checkpoints.Metadata
  hf_config: dict
  tokenizer: Any
  params: Any = None
  newly_initialised: tuple[str, ...] = ()


def find_tokenizer(path: str | Path | Any | None, fallback: str | Path | None) -> Any:
  """The tokenizer at `path` (or `path` itself, if it is one), else the checkpoint's own."""
  where = path or fallback
  if where is None:
    raise UserError("training from scratch needs TOKENIZER, the folder of a tokenizer")
  if not isinstance(where, str | Path):
    return where
  tokenizer = pretrained.read_tokenizer(pretrained.find_folder(where))
  if tokenizer is None:
    raise UserError(f"{where} holds no tokenizer; name the folder of one as TOKENIZER")
  return tokenizer


def start_from(
  *,
  checkpoint: str | Path | None,
  model: SizedModel | None,
  tokenizer: Any,
  head: str | None,
  label_names: tuple[str, ...] | None,
  run: models.Run,
  dropout_rate: float | None = None,
) -> Start:
  """Reads a checkpoint, or describes a model to be drawn.

  Args:
    checkpoint: Hub folder, Hub id or folder of ours.
    model: a size, where there is no checkpoint.
    tokenizer: the tokenizer the data is encoded with.
    head: head to train; None takes the checkpoint's.
    label_names: classes of that head; None takes the checkpoint's.
    run: run choices.
    dropout_rate: replaces the config's dropout.

  Returns:
    The start. A checkpoint's classes that have other names than `label_names` are not those of this task: the head is
    then drawn afresh.
  """
  if (checkpoint is None) == (model is None):
    raise UserError("give either INITIAL_CHECKPOINT_PATH or a MODEL from gin/models, and set the other to None")
  if checkpoint is not None:
    folder = pretrained.find_folder(checkpoint)
    num_labels = None if label_names is None else len(label_names)
    params, config, metadata, hf_config, fresh = pretrained.read_folder(folder, head, num_labels, run)
  else:
    family = models.family(model.family)
    config = _sized_for(model, tokenizer, run)
    metadata = checkpoints.Metadata(
      family=model.family,
      head=head or "base",
      num_labels=len(label_names or ()),
      scan_layers=run.scan_layers,
      param_dtype=run.param_dtype,
      source={"size": model.size},
      versions=checkpoints.installed_versions(),
    )
    params, fresh = None, ()
    hf_config = {"model_type": family.model_type}
  if dropout_rate is not None:
    config = dataclasses.replace(config, dropout=models.Dropout(hidden=dropout_rate, attention=dropout_rate))
  family = models.family(metadata.family)
  hf_config = models.updated(hf_config, family.config_to_hf(config))
  hf_config["architectures"] = [family.architecture(metadata.head)]
  built = models.build(metadata.family, config, metadata.head, metadata.num_labels)
  pretrained.require_readable(tokenizer, built)
  if label_names is not None:
    if params is not None and metadata.label_names not in (None, tuple(label_names)):
      head_paths = [path for path in models.flatten(models.abstract_params(built)) if path.startswith("head/")]
      params = models.unflatten({**models.flatten(params), **models.fresh_values(built, head_paths)})
      fresh = sorted({*fresh, *head_paths})
    metadata = dataclasses.replace(metadata, label_names=tuple(label_names))
    hf_config["id2label"] = {str(i): name for i, name in enumerate(label_names)}
    hf_config["label2id"] = {name: i for i, name in enumerate(label_names)}
    # These exclude each other, whatever those of the checkpoint did.
    hf_config.pop("problem_type", None)
  return Start(
    model=built,
    config=config,
    metadata=metadata,
    hf_config=hf_config,
    tokenizer=tokenizer,
    params=params,
    newly_initialised=tuple(fresh),
  )


def resume_from(
  folder: Path, model: SizedModel | None, tokenizer: Any, head: str, label_names: tuple[str, ...] | None,
  run: models.Run, dropout_rate: float | None,
) -> Start:
  """Describes the model of a run that has a checkpoint; UserError where it is not the one asked for."""
  metadata, hf_config = checkpoints.read_metadata(folder)
  wanted = {"scan_layers": run.scan_layers, "head": head, "label_names": label_names}
  if model is not None:
    wanted["family"] = model.family
  for name, value in wanted.items():
    if getattr(metadata, name) != value:
      raise UserError(
        f"MODEL_DIR {folder} holds a run with {name}={getattr(metadata, name)}, this one has {value}; choose another"
      )
  config = dataclasses.replace(models.family(metadata.family).config_from_hf(hf_config), run=run)
  if model is not None and _sized_for(model, tokenizer, run) != dataclasses.replace(config, dropout=models.Dropout()):
    raise UserError(f"MODEL_DIR {folder} holds a run of another model size; choose another folder")
  if dropout_rate is not None:
    config = dataclasses.replace(config, dropout=models.Dropout(hidden=dropout_rate, attention=dropout_rate))
  built = models.build(metadata.family, config, metadata.head, metadata.num_labels)
  pretrained.require_readable(tokenizer, built)
  return Start(model=built, config=config, metadata=metadata, hf_config=hf_config, tokenizer=tokenizer)


def _sized_for(model: SizedModel, tokenizer: Any, run: models.Run) -> models.TransformerConfig:
  """A size with the tokenizer's vocabulary, and with its separator where the model looks for one."""
  config = dataclasses.replace(models.sized(model.family, model.size), vocab_size=len(tokenizer), run=run)
  if config.window is None:
    return config
  return dataclasses.replace(config, window=dataclasses.replace(config.window, separator=tokenizer.sep_token_id))


def require_positions(config: models.TransformerConfig, length: int) -> None:
  """UserError where rows of `length` tokens are longer than the model can read."""
  usable = getattr(config.positions, "usable_length", None)
  if usable is not None and length > usable:
    raise UserError(f"TASK_FEATURE_LENGTHS lets rows have {length} tokens, but the model has positions for {usable}")


def place(start: Start, update: Update, partitioner: Partitioner, seed: int) -> TrainState:
  """The first state, split over the mesh; no device ever holds it whole.

  Args:
    start: the model, with parameters or without.
    update: makes the state of them.
    partitioner: splits them.
    seed: of dropout, and of the parameters where they are to be drawn.
  """
  shardings = partitioner.shardings(abstract_state(update))
  if start.params is not None:
    params = partitioner.put(start.params, shardings.params)
    return partitioner.jit(update.first_state, out_shardings=shardings, donate_argnums=0)(params, np.uint32(seed))

  def draw(seed):
    params = start.model.init(jax.random.key(seed), models.dummy_ids(start.model))["params"]
    return update.first_state(nn.meta.unbox(params), seed)

  return partitioner.jit(draw, out_shardings=shardings)(np.uint32(seed))


def restore(
  store: checkpoints.CheckpointStore, step: int, update: Update, partitioner: Partitioner
) -> TrainState:
  """The state saved at `step`, split over the mesh, whatever mesh and number of processes it was saved from."""
  boxed = abstract_state(update)
  shardings = partitioner.shardings(boxed)
  wanted, places = training_item(boxed), training_item(shardings)
  training = store.restore(step, "training", wanted, places)
  model_params = store.restore(step, "params", boxed.model_params, shardings.model_params)
  averaging = boxed.average is not None
  return TrainState(
    step=partitioner.put(np.int32(step), partitioner.replicated),
    params=training.pop("params") if averaging else model_params,
    average=model_params if averaging else None,
    **training,
  )


def training_item(state: TrainState) -> dict[str, Any]:
  """What a checkpoint holds of a state besides the model: all but `model_params` and the step.

  Where there is an average of the parameters, that is the model; a run goes on from what it is the average of.
  """
  item = {name: getattr(state, name) for name in ("seed", "optimizer", "typical_loss", "good_steps")}
  return item if state.average is None else {**item, "params": state.params}
