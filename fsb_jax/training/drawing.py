"""Pictures of what a model draws while it is trained."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fsb_jax.generation.images import Conditioning, ImageModel, generate_images
from fsb_jax.models import lora
from fsb_jax.training.loop import Loop

_STEPS = 25


@dataclasses.dataclass(kw_only=True)
class DrawingLoop(Loop):
  """A training loop that draws where others score.

  Attributes:
    draw: parameters -> images `[prompts, height, width, 3]` in [0, 1].
  """

  draw: Callable[[Any], np.ndarray]

  def _evaluate(self) -> None:
    """Writes a picture of what the model draws now: `images/step-N.png` in the run's folder, and to TensorBoard."""
    from PIL import Image

    sheet = Image.fromarray((side_by_side(self.draw(self._state.model_params)) * 255).round().astype(np.uint8))
    if jax.process_index() != 0:
      return
    path = self.store.folder / "images" / f"step-{self._step}.png"
    path.parent.mkdir(exist_ok=True)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    path.write_bytes(file.getvalue())
    self.writer.write_image(self._step, "drawings", file.getvalue(), *sheet.size)
    self.progress.say(f"step {self._step}: drawn to {path}")


def side_by_side(images: np.ndarray) -> np.ndarray:
  """Images `[count, height, width, 3]` as one, as many rows as columns or fewer."""
  columns = int(np.ceil(len(images) ** 0.5))
  blank = np.ones((-len(images) % columns, *images.shape[1:]), images.dtype)
  lines = np.split(np.concatenate([images, blank]), -(-len(images) // columns))
  return np.concatenate([np.concatenate(list(line), axis=1) for line in lines])


class Drawing:
  """Draws the same prompts, from the same noise, with other parameters."""

  def __init__(
    self, denoiser, autoencoder, autoencoder_params, partitioner, tokenizer, length, size, factors, prompts, guidance,
    seed,
  ):  # fmt: skip
    self._denoiser, self._autoencoder, self._autoencoder_params = denoiser, autoencoder, autoencoder_params
    self._partitioner, self._size, self._seed = partitioner, size, seed
    # A list of one character each is not what a single prompt means.
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    self._count, self._guidance = len(prompts), guidance
    # The last one is what guidance leads away from; rows are as many as the mesh divides.
    texts = [*prompts, ""] + [""] * (-(len(prompts) + 1) % partitioner.batch_multiple)
    encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True)
    self._ids = np.array(encoded["input_ids"], np.int32)
    jit = partitioner.jit
    self._merge = None if factors is None else jit(lambda params: lora.with_changes(params, factors.alpha))
    self._read = jit(
      lambda params, ids: denoiser.text_encoder.apply({"params": params}, ids).last_hidden_state,
      out_shardings=partitioner.replicated,
    )

  def __call__(self, params: Any) -> np.ndarray:
    """See `DrawingLoop.draw`."""
    params = params if self._merge is None else self._merge(params)
    states = np.asarray(self._read(params["text_encoder"], self._ids), np.float32)
    count = self._count
    model = ImageModel(
      unet=self._denoiser.unet, unet_params=params["unet"], autoencoder=self._autoencoder,
      autoencoder_params=self._autoencoder_params, partitioner=self._partitioner,
    )  # fmt: skip
    return generate_images(
      model, self._denoiser.schedule.of_latents(), Conditioning(hidden_states=states[:count]),
      Conditioning(hidden_states=np.repeat(states[count : count + 1], count, axis=0)), height=self._size,
      width=self._size, seeds=[self._seed + i for i in range(count)], steps=_STEPS, guidance=self._guidance,
    )  # fmt: skip
