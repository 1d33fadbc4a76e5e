"""Training of models that draw, from a gin file: fine-tuning, DreamBooth, and LoRA factors alone."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import convert_torch
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from convert_torch import diffusion_run

from fsb_jax import checkpoints, models, pretrained
from fsb_jax.encodings import load_tokenizer
from fsb_jax.errors import UserError
from fsb_jax.models import diffusion, lora
from fsb_jax.models.diffusion.schedulers import schedule_from_config
from fsb_jax.partitioning import Partitioner, multihost
from fsb_jax.tasks.image_captions import image_caption_task
from fsb_jax.training.denoising_loss import denoising
from fsb_jax.training.drawing import Drawing, DrawingLoop
from fsb_jax.training.images import ImageLoader, Preparation, cached_latents
from fsb_jax.training.levers import Levers, require_number
from fsb_jax.training.loop import Periods, require_count
from fsb_jax.training.reporting import MetricWriter, TrainProgress, say
from fsb_jax.training.run_folder import (
  only_run_in,
  require_room,
  require_same_order,
  run_to_the_end,
  step_to_go_on_from,
  wait_for,
  write_config,
)
from fsb_jax.training.scores import Scores, read_metrics
from fsb_jax.training.start import Start, place, require_positions, restore
from fsb_jax.training.step import Update, abstract_state, global_norm

_MOST_PROMPTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
  """Training of low-rank factors in place of the kernels.

  Attributes:
    rank: of every kernel's change.
    alpha: the change is multiplied by alpha / rank; None for 1.
    pattern: regular expression for the kernels' paths, see `models.lora.adapted_paths`.
  """

  rank: int = 4
  alpha: float | None = None
  pattern: str = lora.ATTENTION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
  """What the loss does beyond a plain mean of squares.

  Attributes:
    offset: see `Denoiser.offset_noise`.
    min_snr_gamma: see `models.diffusion.signal_weights`.
  """

  offset: float = 0.0
  min_snr_gamma: float | None = None

  def __post_init__(self):
    require_number("OFFSET_NOISE", self.offset, "at least 0", lambda x: x >= 0)
    if self.min_snr_gamma is not None:
      require_number("MIN_SNR_GAMMA", self.min_snr_gamma, "None, or above 0", lambda x: x > 0)


def train(
  *,
  model_dir: str,
  initial_checkpoint_path: str,
  data: str,
  train_steps: int,
  batch_size: int,
  optimizer: optax.GradientTransformation,
  learning_rate: Callable[[int], float] | None = None,
  caption: str | None = None,
  class_data: str | None = None,
  class_caption: str | None = None,
  prior_weight: float = 1.0,
  image_column: str = "image",
  caption_column: str = "caption",
  caption_length: int | None = None,
  resolution: int | None = None,
  random_crop: bool = False,
  flip: bool = False,
  noise: Noise | None = None,
  factors: Factors | None = None,
  dropout_rate: float | None = None,
  validation_prompts: Sequence[str] | str | None = None,
  validation_guidance: float = 7.5,
  microbatches: int = 1,
  periods: Periods | None = None,
  keep_checkpoints: int | None = 2,
  keep_every: int | None = None,
  levers: Levers | None = None,
  run: models.Run | None = None,
  mesh: Mapping[str, int] | None = None,
  rules: Mapping[str, Any] | None = None,
  seed: int = 0,
  explain_partitioning: bool = False,
  profile: bool = False,
  config_text: str | None = None,
) -> dict[str, float]:
  """Trains UNet and text encoder on images with captions; an interrupted run goes on from its newest checkpoint.

  The autoencoder is frozen. Where an image is the same every time, its latents' means and deviations are made once and
  kept in the run's folder; what a step sees is drawn from them anew every time, as it is without.

  Args:
    model_dir: where checkpoints, metrics, pictures and all other parts of the model go; `fsb draw` and `fsb convert
      export` take it. Processes that train together share it.
    initial_checkpoint_path: a folder in the layout of diffusers, a run's folder, or a Hub id.
    data: images with captions, see `tasks.image_captions.image_caption_task`.
    train_steps: updates in all.
    batch_size: images per update, over all devices.
    optimizer: an optax transformation.
    learning_rate: its schedule, for the log.
    caption: that of every image of a folder, such as "一只sks狗" for DreamBooth.
    class_data: images of the class of what is learned, drawn by the model before; then half of a batch is of them.
    class_caption: that of every one of them, such as "一只狗".
    prior_weight: what their loss is multiplied by.
    image_column: see `image_caption_task`.
    caption_column: see `image_caption_task`.
    caption_length: tokens of captions, padding included; what drawing reads if not given.
    resolution: side of the square images, in pixels; what the model was trained with if not given.
    random_crop: see `images.Preparation`.
    flip: see `images.Preparation`.
    noise: what the loss does beyond a plain mean of squares.
    factors: train low-rank factors alone; None for the kernels.
    dropout_rate: replaces the text encoder's and the UNet's.
    validation_prompts: one or several to draw for the pictures of progress; the first captions if not given.
    validation_guidance: how closely the pictures follow them.
    microbatches: parts a batch is cut into to save memory.
    periods: how often to report, draw (`evaluate`) and save.
    keep_checkpoints: how many of the newest stay.
    keep_every: also save and keep every so many steps.
    levers: what differs from a plain update; `parameter_rates` freeze a part.
    run: dtypes, scan, remat, attention.
    mesh: sizes of the mesh axes.
    rules: changes to the partitioning rules.
    seed: of data order, noise, dropout and fresh factors.
    explain_partitioning: print what is split over what.
    profile: write a trace of a few steps for TensorBoard.
    config_text: the gin configuration, kept as `config.gin` in the folder.

  Returns:
    The metrics of the last report.

  Raises:
    UserError: a mistake, told before the work starts; or a run that cannot go on.
    Stopped: SIGTERM or Ctrl-C; everything done is saved.
  """
  for macro, value in (("TRAIN_STEPS", train_steps), ("BATCH_SIZE", batch_size), ("MICROBATCHES", microbatches)):
    require_count(macro, value)
  require_count("RESOLUTION", resolution, or_none=True)
  require_count("CAPTION_LENGTH", caption_length, or_none=True)
  require_number("PRIOR_WEIGHT", prior_weight, "at least 0", lambda x: x >= 0)
  periods, levers, noise = periods or Periods(), levers or Levers(), noise or Noise()
  if periods.early_stop is not None:
    raise UserError("EARLY_STOP needs scores, and drawings have none; leave it out")
  run = run or models.Run()
  if run.dtype == "float16":
    raise UserError("DTYPE float16 loses small gradients in training; use bfloat16")
  partitioner = Partitioner(mesh, rules)
  run = dataclasses.replace(run, vocab_multiple=partitioner.vocab_multiple)
  images = image_caption_task("images", {"train": data}, image_column, caption_column, caption).examples("train")
  class_images = ()
  if class_data is not None:
    task = image_caption_task("class_images", {"train": class_data}, image_column, caption_column, class_caption)
    class_images = task.examples("train")
  folder = Path(str(model_dir)).expanduser()
  store = checkpoints.CheckpointStore(folder, keep_checkpoints, keep_every)
  first_step = step_to_go_on_from(store)
  source = folder if first_step else pretrained.find_folder(initial_checkpoint_path)
  say(f"reading {source}")
  parts = diffusion_run.read_run(source, run) if first_step else convert_torch.load_diffusers_folder(source, run=run)
  tokenizer, start, denoiser = _start(parts, run, noise, factors, dropout_rate, seed)
  autoencoder = diffusion.Autoencoder(parts.autoencoder_config)
  preparation = _preparation(parts, resolution, random_crop, flip)
  length = caption_length or _drawn_length(tokenizer, denoiser)
  require_positions(denoiser.text_encoder.config, length)
  partitioner.validate_batch(batch_size, (length,))
  if batch_size % (microbatches * partitioner.batch_multiple):
    raise UserError(
      f"BATCH_SIZE {batch_size} cannot be cut into {microbatches} microbatches over {partitioner.batch_multiple} parts "
      f"(mesh {partitioner.describe()}); make it a multiple of {microbatches * partitioner.batch_multiple}"
    )
  loader = ImageLoader(
    images, tokenizer, preparation, length, batch_size, seed=seed, rows=partitioner.host_rows(batch_size),
    class_images=class_images,
  )  # fmt: skip
  levers = dataclasses.replace(levers, parameter_rates=_rates(start.model, levers.parameter_rates))
  update = Update(start.model, denoising(prior_weight), optimizer, microbatches=microbatches, levers=levers)
  boxed = abstract_state(update)
  partitioner.validate(boxed.params)
  autoencoder_params = _on_mesh(autoencoder, parts.autoencoder_params, partitioner)
  # What decides which examples a step sees; a run that goes on must have the same.
  order = {"seed": seed, "batch_size": batch_size, "training examples (sha256)": loader.digest}
  multihost.require_equal("settings", repr((config_text, order, train_steps, partitioner.describe(), periods, levers)))
  with only_run_in(folder):
    if first_step:
      _require_same_factors(folder, factors)
      require_same_order(store, first_step, order)
      write_config(folder, config_text, first_step)
    else:
      _describe(folder, source, run, parts, factors, config_text)
    wait_for(folder)
    require_room(folder, boxed)
    encode = _encoder(autoencoder)
    if not preparation.draws:
      _cache(loader, autoencoder, parts, folder)
    rows = read_metrics(folder / "metrics.jsonl", first_step)
    multihost.barrier("metrics read")
    store.clean()
    state = restore(store, first_step, update, partitioner) if first_step else place(start, update, partitioner, seed)
    start = dataclasses.replace(start, params=None)
    progress, writer = TrainProgress(first_step, train_steps), MetricWriter(folder, first_step, rows)
    compiled = partitioner.jit(
      update, out_shardings=(partitioner.shardings(boxed), partitioner.replicated), donate_argnums=0
    )
    encode = partitioner.jit(encode)

    def step(state, batch):
      if "pixel_values" in batch:
        mean, deviation = encode(autoencoder_params, batch.pop("pixel_values"))
        batch |= {"latent_mean": mean, "latent_deviation": deviation}
      return compiled(state, batch)

    loop = DrawingLoop(
      train_steps=train_steps, periods=periods, loader=loader, scored={}, partitioner=partitioner, store=store,
      writer=writer, progress=progress, scores=Scores("loss"), order=order, learning_rate=learning_rate, update=step,
      score=None, norm=partitioner.jit(global_norm, out_shardings=partitioner.replicated),
      skip_bad_batches=levers.skip_bad_batches, profile=folder / "tensorboard" if profile else None,
      draw=Drawing(
        denoiser, autoencoder, autoencoder_params, partitioner, tokenizer, length, preparation.size, factors,
        validation_prompts or loader.captions[:_MOST_PROMPTS], validation_guidance, seed,
      ),
    )  # fmt: skip
    return run_to_the_end(loop, state, start, boxed, first_step, explain_partitioning)


def _start(
  parts: convert_torch.DiffusersModel, run: models.Run, noise: Noise, factors: Factors | None,
  dropout_rate: float | None, seed: int,
) -> tuple[Any, Start, diffusion.Denoiser]:  # fmt: skip
  """The tokenizer, what is trained, and the denoiser within it."""
  if len(parts.text_encoders) != 1 or parts.autoencoder_config is None or parts.scheduler_config is None:
    raise UserError("training needs a UNet, an autoencoder, a scheduler and one text encoder; the folder has others")
  (encoder,), (tokenizer_folder,) = parts.text_encoders, parts.tokenizer_folders
  tokenizer = load_tokenizer(tokenizer_folder)
  if tokenizer is None:
    raise UserError(f"{tokenizer_folder} holds no tokenizer; copy vocab.txt or tokenizer.json into it")
  text_config, unet_config = encoder.config, parts.unet_config
  if dropout_rate is not None:
    text_config = dataclasses.replace(text_config, dropout=models.Dropout(hidden=dropout_rate, attention=dropout_rate))
    unet_config = dataclasses.replace(unet_config, dropout=dropout_rate)
  unet = diffusion.UNet(unet_config)
  diffusion.require_trainable(unet, parts.autoencoder_config.latent_channels)
  reader = models.build(encoder.family, text_config, encoder.head, None)
  pretrained.require_readable(tokenizer, reader)
  denoiser = diffusion.Denoiser(
    unet, reader, schedule_from_config(parts.scheduler_config),
    scaling_factor=parts.autoencoder_config.scaling_factor, shift_factor=parts.autoencoder_config.shift_factor,
    offset_noise=noise.offset, min_snr_gamma=noise.min_snr_gamma,
  )  # fmt: skip
  params = None if parts.unet_params is None else {"unet": parts.unet_params, "text_encoder": encoder.params}
  model = denoiser
  if factors is not None:
    model = lora.Adapted(denoiser, rank=factors.rank, alpha=factors.alpha, pattern=factors.pattern)
    fresh = lora.fresh_factors(jax.random.key(seed), models.abstract_params(denoiser), factors.pattern, factors.rank)
    params = params and {"model": params, "lora": jax.tree.map(np.asarray, nn.meta.unbox(fresh))}
  metadata = checkpoints.Metadata(family=diffusion_run.FAMILY, head="denoising")
  start = Start(
    model=model, config=denoiser.config, metadata=metadata, hf_config={}, tokenizer=tokenizer, params=params
  )
  return tokenizer, start, denoiser


def _preparation(parts, resolution: int | None, random_crop: bool, flip: bool) -> Preparation:
  reduction = parts.autoencoder_config.reduction
  size = resolution or parts.unet_config.sample_size * reduction
  # The UNet halves latents at every level but the last.
  multiple = reduction * 2 ** (len(parts.unet_config.channels) - 1)
  if size % multiple:
    raise UserError(f"RESOLUTION {size} must be a multiple of {multiple}")
  return Preparation(size, random_crop, flip)


def _drawn_length(tokenizer: Any, denoiser: diffusion.Denoiser) -> int:
  """How many tokens of a prompt are read where the model draws."""
  usable = getattr(denoiser.text_encoder.config.positions, "usable_length", None)
  return min(tokenizer.model_max_length, usable or tokenizer.model_max_length)


def _rates(model: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
  """The rates asked for, with what the loss never reaches frozen: weight decay alone would move it."""
  paths = models.flatten(models.abstract_params(model))
  frozen = {"^model/": 0.0} if isinstance(model, lora.Adapted) else {}
  if not frozen and any(path.startswith("text_encoder/pooler/") for path in paths):
    frozen = {"^text_encoder/pooler/": 0.0}
  return {**frozen, **rates}


def _on_mesh(model: nn.Module, params: Any, partitioner: Partitioner) -> Any:
  boxed = diffusion.abstract_params(model)
  partitioner.validate(boxed)
  return partitioner.put(params, partitioner.shardings(boxed))


def _encoder(autoencoder: diffusion.Autoencoder) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
  """(parameters, images) -> means and standard deviations of their latents."""

  def encode(params, pixels):
    mean, log_variance = autoencoder.apply({"params": params}, pixels, method="encode")
    return mean, jnp.exp(log_variance / 2)

  return encode


def _cache(loader: ImageLoader, autoencoder: diffusion.Autoencoder, parts: Any, folder: Path) -> None:
  """Gives the loader the latents of all its images; the first process makes them, on a device of its own."""
  if jax.process_index() == 0:
    encode, params = jax.jit(_encoder(autoencoder)), jax.tree.map(jnp.asarray, parts.autoencoder_params)

    def both(pixels):
      return np.concatenate(encode(params, pixels), axis=-1, dtype=np.float32)

    sha256 = {name: value for name, value in parts.source["sha256"].items() if name.startswith("vae/")}
    cached_latents(loader, both, repr(sorted(sha256.values())), folder, batch_size=min(8, loader.num_examples))
  multihost.barrier("latents ready")
  loader.latents = np.load(folder / "latents.npy", mmap_mode="r")


def _describe(folder: Path, source: Path, run: models.Run, parts: Any, factors: Any, config_text: str | None) -> None:
  """Makes the run's folder, whole or not at all; one without a checkpoint yet is kept as it is."""
  if jax.process_index() != 0:
    return
  if checkpoints.is_checkpoint(folder):
    _require_same_factors(folder, factors)
    metadata, _ = checkpoints.read_metadata(folder)
    if metadata.source.get("sha256") != parts.source["sha256"]:
      raise UserError(f"MODEL_DIR {folder} was begun from another model; choose another or remove it")
    write_config(folder, config_text, 0)
    return
  with checkpoints.new_folder(folder) as unfinished:
    diffusion_run.copy_parts(checkpoints.home(source), unfinished)
    write_config(unfinished, config_text, None)
    diffusion_run.describe_run(unfinished, run, parts.source, factors and dataclasses.asdict(factors))


def _require_same_factors(folder: Path, factors: Factors | None) -> None:
  metadata, said = checkpoints.read_metadata(folder)
  if metadata.family != diffusion_run.FAMILY or said.get("lora") != (factors and dataclasses.asdict(factors)):
    raise UserError(f"MODEL_DIR {folder} holds a run that trains other parameters (LORA); choose another folder")
