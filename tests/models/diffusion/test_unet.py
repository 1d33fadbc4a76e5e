"""The UNet against diffusers', and its two ways not to compute the same thing twice."""

import dataclasses
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_diffusers
import torch
from tiny_hub import QUICK

from fsb_jax import models
from fsb_jax.models import diffusion
from fsb_jax.partitioning import Partitioner, make_mesh


def inputs_for(config, batch=2, size=8):
  random = np.random.default_rng(0)
  inputs = {
    "sample": random.normal(size=(batch, size, size, config.in_channels)),
    "timesteps": np.array([981, 7] * (batch // 2)),
    "encoder_hidden_states": random.normal(size=(batch, 5, config.text_dim)),
  }
  if config.added_dim is not None:
    numbers = 6
    text = config.added_dim - numbers * config.added_number_dim
    inputs["added_text_embeds"] = random.normal(size=(batch, text))
    inputs["added_time_ids"] = random.integers(0, 512, (batch, numbers)).astype(np.float64)
  return inputs


def theirs(model, inputs):
  """Their output and the gradient of its product with fixed numbers, with sinusoids in float64 as ours."""

  def wide(projection):
    def forward(numbers):
      half = projection.num_channels // 2
      exponents = torch.arange(half, dtype=torch.float64) / (half - projection.downscale_freq_shift)
      angles = numbers[:, None].double() * torch.exp(-math.log(10000) * exponents)
      waves = [torch.sin(angles), torch.cos(angles)]
      return torch.cat(waves[::-1] if projection.flip_sin_to_cos else waves, dim=-1)

    projection.forward = forward

  wide(model.time_proj)
  if getattr(model, "add_time_proj", None) is not None:
    wide(model.add_time_proj)
  sample = torch.tensor(inputs["sample"]).permute(0, 3, 1, 2).requires_grad_()
  encoded = torch.tensor(inputs["encoder_hidden_states"]).requires_grad_()
  added = None
  if "added_time_ids" in inputs:
    added = {
      "text_embeds": torch.tensor(inputs["added_text_embeds"]),
      "time_ids": torch.tensor(inputs["added_time_ids"]),
    }
  output = model(sample, torch.tensor(inputs["timesteps"]), encoded, added_cond_kwargs=added).sample
  output = output.permute(0, 2, 3, 1)
  (output * torch.cos(torch.arange(output.numel()).double().reshape(output.shape))).sum().backward()
  gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
  gradients |= {"sample": sample.grad.permute(0, 2, 3, 1).numpy(), "encoder_hidden_states": encoded.grad.numpy()}
  return output.detach().numpy(), gradients


def ours(unet, params, inputs):
  """The same of ours."""
  given = {name: inputs[name] for name in ("sample", "encoder_hidden_states")}

  def product(params, given):
    output = unet.apply({"params": params}, **{**inputs, **given})
    return (output * np.cos(np.arange(output.size).reshape(output.shape))).sum(), output

  run = jax.jit(jax.value_and_grad(product, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
  (_, output), (gradients, of_inputs) = run(params, given)
  return output, {**tiny_diffusers.in_their_names(unet, gradients), **of_inputs}


def assert_close(ours, reference, tolerance=1e-9):
  assert ours.shape == reference.shape
  assert np.abs(ours - reference).max() <= tolerance * max(1, np.abs(reference).max())


@pytest.mark.parametrize(
  ("name", "size", "run"),
  [
    ("sd1", 8, {}),
    pytest.param("sdxl", 8, {"scan_layers": False}, marks=pytest.mark.slow),
    pytest.param("sdxl", 8, {"remat": "full"}, marks=pytest.mark.slow),
    # An odd size: rounded up on the way down.
    pytest.param("sd2", 7, {}, marks=pytest.mark.slow),
    pytest.param("inpainting", 8, {}, marks=pytest.mark.slow),
    pytest.param("text_only", 7, {"scan_layers": False, "remat": "dots_saveable"}, marks=pytest.mark.slow),
  ],
)
def test_outputs_and_every_gradient_are_those_of_diffusers(name, size, run, tmp_path):
  model = tiny_diffusers.unet(name)
  with jax.enable_x64(True):
    unet, params = tiny_diffusers.read(model, tmp_path / "unet", **run)
    inputs = inputs_for(unet.config, size=size)
    output, gradients = ours(unet, params, inputs)
    reference, their_gradients = theirs(model, inputs)
    assert_close(output, reference)
    assert set(gradients) == set(their_gradients)
    for path, gradient in their_gradients.items():
      assert np.abs(gradient).max() > 1e-6, path
      assert_close(np.asarray(gradients[path]), gradient)


@pytest.mark.parametrize("scan_layers", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_is_made_once_gives_the_same_numbers(scan_layers, tmp_path):
  model = tiny_diffusers.unet("sdxl" if scan_layers else "text_only")
  with jax.enable_x64(True):
    unet, params = tiny_diffusers.read(model, tmp_path / "unet", scan_layers=scan_layers)
    inputs = inputs_for(unet.config)
    added = {name: x for name, x in inputs.items() if name.startswith("added")}

    def both(params):
      variables = {"params": params}
      steps = np.array([[7], [981]])
      times = unet.apply(variables, steps, **added, method="time_embeddings")
      made = unet.apply(variables, inputs["encoder_hidden_states"], method="text_keys_values")
      given = {"text_keys_values": made, "time_embedding": times[1]}
      at_step = {**inputs, "timesteps": np.array([981, 981])}
      # Neither is read where what is made of it is given.
      instead = {**at_step, "timesteps": np.zeros(2), "encoder_hidden_states": 0 * inputs["encoder_hidden_states"]}
      return unet.apply(variables, **at_step), unet.apply(variables, **instead, **given)

    plain, quick = jax.jit(both, compiler_options=QUICK)(params)
    np.testing.assert_allclose(quick, plain, rtol=0, atol=1e-12)


def test_embedded_numbers_are_those_of_diffusers():
  numbers = np.array([0.0, 1.0, 500.5, 999.0])
  for cosine_first, shift in ((True, 0), (False, 1)):
    reference = diffusers_embedding(numbers, cosine_first, shift)
    result = diffusion.embed_numbers(numbers, 32, cosine_first, shift, np.float32)
    np.testing.assert_allclose(result, reference, atol=1e-4)


def diffusers_embedding(numbers, cosine_first, shift):
  from diffusers.models.embeddings import get_timestep_embedding

  return get_timestep_embedding(torch.tensor(numbers), 32, cosine_first, shift).numpy()


PUBLISHED = {"stable_diffusion_1": 859_520_964, "stable_diffusion_2": 865_910_724, "stable_diffusion_xl": 2_567_463_684}


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=[] if name == "stable_diffusion_1" else pytest.mark.slow) for name in PUBLISHED]
)
def test_published_sizes(name):
  params = nn.meta.unbox(diffusion.abstract_params(diffusion.UNet(diffusion.UNET_SIZES[name])))
  assert sum(x.size for x in jax.tree.leaves(params)) == PUBLISHED[name]


def test_a_missing_addition_to_time_is_told():
  config = dataclasses.replace(
    diffusion.UNET_SIZES["stable_diffusion_xl"], channels=(8, 8, 8), heads=(2, 2, 2), norm_groups=2
  )
  inputs = diffusion.dummy_inputs(diffusion.UNet(config))
  del inputs["added_time_ids"]
  with pytest.raises(ValueError, match="added_time_ids"):
    jax.eval_shape(lambda key: diffusion.UNet(config).init(key, **inputs), jax.random.key(0))


@pytest.mark.parametrize(
  ("mesh", "levels"),
  [
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 1, marks=pytest.mark.slow),
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 2, marks=pytest.mark.slow),
    pytest.param({"data": 8}, 2, marks=pytest.mark.slow),
    pytest.param({"tensor": 8}, 2, marks=pytest.mark.slow),
    pytest.param({"fsdp": 4, "sequence": 2}, 2, marks=pytest.mark.slow),
  ],
)
def test_gradients_on_a_mesh_are_those_of_one_device(mesh, levels):
  config = diffusion.UNetConfig(
    channels=(16, 32)[:levels], resnets=(1,) * levels, heads=(8,) * levels, depths=(1, 0)[:levels], text_dim=16,
    text_only=(False,) * levels, norm_groups=4, initializer_range=0.2,
    run=models.Run(dtype="float64", param_dtype="float64"),
  )  # fmt: skip
  unet = diffusion.UNet(config)
  with jax.enable_x64(True):
    boxed = diffusion.abstract_params(unet)
    partitioner = Partitioner(make_mesh(**mesh))
    partitioner.validate(boxed)
    inputs = inputs_for(config, batch=8)
    params = nn.meta.unbox(jax.jit(lambda key: unet.init(key, **inputs))(jax.random.key(0))["params"])

    def gradient(params):
      def loss(params):
        return (unet.apply({"params": params}, **inputs) ** 2).mean()

      return jax.value_and_grad(loss)(params)

    reference = jax.device_get(jax.jit(gradient, compiler_options=QUICK)(params))
    shardings = partitioner.shardings(boxed)
    placed = jax.device_put(params, shardings)
    loss, gradients = partitioner.jit(
      gradient, out_shardings=(partitioner.replicated, shardings), compiler_options=QUICK
    )(placed)
    np.testing.assert_allclose(loss, reference[0], rtol=1e-9)
    for path, x in models.flatten(reference[1]).items():
      assert_close(np.asarray(models.flatten(gradients)[path]), x, 1e-8)
    split = {path: x for path, x in models.flatten(gradients).items() if not x.sharding.is_fully_replicated}
    assert ("data" in mesh and len(mesh) == 1) or "down_0/resnets_0/convolution_1/kernel" in split
