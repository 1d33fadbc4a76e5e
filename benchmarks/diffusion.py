"""Our diffusion models against `diffusers` on PyTorch, on the CPU.

Stable Diffusion 1 of about a quarter of its width, float32: levels of 96, 160, 320 and 320 channels, latents of
64 x 64 (images of 512 x 512), texts of 77 tokens, and an autoencoder of 32 to 128 channels. Measured are the UNet's
forward pass on the pair that guidance needs, a train step on one image (mean squared error, gradients, SGD), and
drawing from noise to an image by DDIM, the autoencoder included, the text encoder not. Random weights, the same on both
sides by way of our conversion; the UNet's output, loss, every gradient and the drawn image are asserted to agree before
a number is printed. PyTorch runs in both of its memory formats, and ours is held against the faster one.

  python benchmarks/diffusion.py [--part forward] [--rounds 10] [--steps 20] [--json FILE]
"""

import argparse
import copy
import tempfile
from pathlib import Path

from side_by_side import compare, prepare, quartiles, write_json

SIDE, TOKENS, TEXT_DIM, GUIDANCE, LEARNING_RATE = 64, 77, 192, 7.5, 1e-2
UNET_CONFIG = dict(block_out_channels=(96, 160, 320, 320), cross_attention_dim=TEXT_DIM, sample_size=SIDE)
VAE_CONFIG = dict(
  block_out_channels=(32, 64, 128, 128), layers_per_block=2, latent_channels=4, sample_size=8 * SIDE,
  down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
SCHEDULE = dict(
  beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
  steps_offset=1,
)  # fmt: skip


def make_inputs():
  """Arrays by name, images channels last: a noisy pair, what noise it holds, and two texts."""
  import numpy as np

  random = np.random.default_rng(0)

  def draw(*shape):
    return random.normal(size=shape).astype(np.float32)

  return {
    "sample": draw(2, SIDE, SIDE, 4), "noise": draw(2, SIDE, SIDE, 4), "texts": draw(2, TOKENS, TEXT_DIM),
    "timesteps": np.array([481, 481]),
  }  # fmt: skip


class Theirs:
  """UNet, autoencoder and pipeline of diffusers."""

  def __init__(self, inputs, channels_last):
    import diffusers
    import torch

    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    self.unet = diffusers.UNet2DConditionModel(**UNET_CONFIG).eval().to(memory_format=layout)
    vae = diffusers.AutoencoderKL(**VAE_CONFIG).eval().to(memory_format=layout)
    self.pipeline = diffusers.StableDiffusionPipeline(
      vae=vae, text_encoder=None, tokenizer=None, unet=self.unet, scheduler=diffusers.DDIMScheduler(**SCHEDULE),
      safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    self.pipeline.set_progress_bar_config(disable=True)
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    self.inputs = {
      name: x.permute(0, 3, 1, 2).contiguous(memory_format=layout) if x.ndim == 4 else x for name, x in tensors.items()
    }
    # A copy is trained, so that what is drawn stays.
    self.trained = copy.deepcopy(self.unet)
    self.optimizer = torch.optim.SGD(self.trained.parameters(), lr=LEARNING_RATE)

  def forward(self):
    import torch

    with torch.inference_mode():
      output = self.unet(self.inputs["sample"], self.inputs["timesteps"], self.inputs["texts"]).sample
      return output.permute(0, 2, 3, 1).numpy()

  def step(self):
    import torch

    self.optimizer.zero_grad()
    first = {name: x[:1] for name, x in self.inputs.items()}
    output = self.trained(first["sample"], first["timesteps"], first["texts"]).sample
    loss = torch.nn.functional.mse_loss(output, first["noise"])
    loss.backward()
    self.optimizer.step()
    return loss.item()

  def draw(self, steps):
    negative, positive = self.inputs["texts"].split(1)
    return self.pipeline(
      prompt_embeds=positive, negative_prompt_embeds=negative, latents=self.inputs["noise"][:1].clone(),
      num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="np",
    ).images  # fmt: skip

  def read(self, component, model, tensors=None):
    """Config and parameters of ours from a model of theirs, or from tensors by the names of its parameters."""
    import dataclasses

    from convert_torch import io
    from safetensors.torch import save_file

    from fsb_jax import models

    with tempfile.TemporaryDirectory() as name:
      folder = Path(name)
      model.save_pretrained(folder)
      if tensors is not None:
        save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "diffusion_pytorch_model.safetensors")
      config = dataclasses.replace(component.from_hf(io.read_config(folder)), run=models.Run(scan_layers=False))
      return config, component.read(folder, io.WeightFiles(folder, io.DIFFUSERS_NAMES), config)


class Ours:
  """Our modules with the weights of `theirs`."""

  def __init__(self, inputs, theirs):
    import jax
    import jax.numpy as jnp
    from convert_torch.diffusers_folder import AUTOENCODER, UNET

    from fsb_jax.generation.images import ImageModel
    from fsb_jax.models import diffusion
    from fsb_jax.models.diffusion.schedulers import schedule_from_config

    config, params = theirs.read(UNET, theirs.unet)
    vae_config, vae_params = theirs.read(AUTOENCODER, theirs.pipeline.vae)
    unet = diffusion.UNet(config)
    self.model = ImageModel(
      unet=unet, unet_params=jax.tree.map(jnp.asarray, params), autoencoder=diffusion.Autoencoder(vae_config),
      autoencoder_params=jax.tree.map(jnp.asarray, vae_params),
    )  # fmt: skip
    self.schedule = schedule_from_config({"_class_name": "DDIMScheduler", **SCHEDULE}, None)
    self.host, self.inputs = inputs, jax.tree.map(jnp.asarray, inputs)
    # The step gives its parameters' memory away.
    self.params = jax.tree.map(jnp.copy, self.model.unet_params)

    def forward(params, inputs):
      return unet.apply({"params": params}, inputs["sample"], inputs["timesteps"], inputs["texts"])

    def loss(params, inputs):
      return jnp.mean(jnp.square(forward(params, inputs) - inputs["noise"]))

    def step(params, inputs):
      value, gradients = jax.value_and_grad(loss)(params, jax.tree.map(lambda x: x[:1], inputs))
      return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients), value

    self.jit_forward, self.jit_step = jax.jit(forward), jax.jit(step, donate_argnums=0)

  def forward(self):
    return self.jit_forward(self.model.unet_params, self.inputs).block_until_ready()

  def step(self):
    import jax

    self.params, loss = self.jit_step(self.params, self.inputs)
    jax.block_until_ready(self.params)
    return float(loss)

  def draw(self, steps):
    from fsb_jax.generation.images import Conditioning, generate_images

    negative, positive = (Conditioning(hidden_states=x[None]) for x in self.host["texts"])
    return generate_images(
      self.model, self.schedule, positive, negative, height=8 * SIDE, width=8 * SIDE, seeds=[0], steps=steps,
      guidance=GUIDANCE, noise=self.host["noise"][:1],
    )  # fmt: skip


def require(what, got, want):
  """SystemExit where they differ by more than float32's rounding, which is relative to the largest of the summands."""
  import numpy as np

  got, want = np.asarray(got), np.asarray(want)
  error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-8)
  if not error < 1e-3:
    raise SystemExit(f"{what} differs by {error:.1e} of its largest number: nothing measured")
  return error


def check_step(ours, theirs):
  """The worst of the loss' difference and every gradient's, taken out of what one step changed on our side."""
  import jax
  import numpy as np
  from convert_torch.diffusers_folder import UNET

  before = jax.tree.map(np.array, ours.params)
  errors = [require("the loss", ours.step(), theirs.step())]
  changed = jax.tree.map(lambda old, new: (old - np.asarray(new)) / LEARNING_RATE, before, ours.params)
  ours.params = jax.tree.map(jax.numpy.asarray, before)
  _, wanted = theirs.read(UNET, theirs.unet, {name: p.grad for name, p in theirs.trained.named_parameters()})
  theirs.trained.load_state_dict(theirs.unet.state_dict())
  largest = max(np.abs(x).max() for x in jax.tree.leaves(wanted))
  for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(changed), jax.tree.leaves(wanted), strict=True):
    # Of the largest of all gradients: ours is what a step took from a parameter, which has the parameter's rounding.
    errors.append(np.abs(got - want).max() / largest)
    if not errors[-1] < 1e-3:
      raise SystemExit(f"the gradient of {jax.tree_util.keystr(path)} differs by {errors[-1]:.1e}: nothing measured")
  return max(errors)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--part", choices=("forward", "train", "draw"), action="append", help="all of them if not given")
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--steps", type=int, default=20, help="from noise to an image")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--json", help="write every second measured to this file")
  arguments = parser.parse_args()
  prepare(arguments.threads)
  inputs = make_inputs()
  theirs = {"torch": Theirs(inputs, False), "torch channels_last": Theirs(inputs, True)}
  ours = Ours(inputs, theirs["torch"])
  checks = {
    "forward": lambda rival: require("the output", ours.forward(), rival.forward()),
    "train": lambda rival: check_step(ours, rival),
    # As many steps of a program that is the same for any number.
    "draw": lambda rival: require("the image", ours.draw(2), rival.draw(2)),
  }
  calls = {
    "forward": lambda side: side.forward, "train": lambda side: side.step,
    "draw": lambda side: lambda: side.draw(arguments.steps),
  }  # fmt: skip
  titles = {"forward": "forward, guided pair", "train": "train step", "draw": f"drawing, {arguments.steps} steps"}
  results = []
  for part in arguments.part or calls:
    worst = max(checks[part](rival) for rival in theirs.values())
    print(f"{titles[part]}: both sides agree; worst {worst:.1e}", flush=True)
    short = {
      name: (lambda side=side: side.draw(1)) if part == "draw" else calls[part](side) for name, side in theirs.items()
    }
    trial = compare(titles[part], short, baseline="torch", rounds=2, warmup=0)
    fastest = min(theirs, key=lambda name: quartiles(trial.seconds[name])[1])
    sides = {"fsb_jax": calls[part](ours), fastest: calls[part](theirs[fastest])}
    result = compare(titles[part], sides, baseline=fastest, rounds=arguments.rounds, warmup=int(part != "draw"))
    print(result.table() + "\n", flush=True)
    results.append(result)
  if arguments.json:
    write_json(arguments.json, results, steps=arguments.steps)


if __name__ == "__main__":
  main()
