"""The autoencoder against diffusers', whole and in tiles."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_diffusers
import torch

from fsb_jax import models
from fsb_jax.models import diffusion


def channels_last(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def channels_first(x):
  return torch.tensor(x).permute(0, 3, 1, 2)


def assert_close(ours, reference, tolerance=1e-9):
  assert ours.shape == reference.shape
  assert np.abs(ours - reference).max() <= tolerance * max(1, np.abs(reference).max())


def test_encoding_decoding_and_every_gradient_are_those_of_diffusers(tmp_path):
  model = tiny_diffusers.vae()
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    autoencoder, params = tiny_diffusers.read(model, tmp_path / "vae")
    images, noise = random.uniform(-1, 1, (2, 8, 12, 3)), random.normal(size=(2, 4, 6, 4))

    def run(params):
      mean, log_variance = autoencoder.apply({"params": params}, images, method="encode")
      # Some are beyond what the variance is clipped to.
      decoded = autoencoder.apply({"params": params}, mean + noise, method="decode")
      return (decoded * np.cos(np.arange(decoded.size).reshape(decoded.shape))).sum() + (log_variance**2).sum(), (
        mean, log_variance, decoded,
      )  # fmt: skip

    (_, outputs), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    posterior = model.encode(channels_first(images)).latent_dist
    decoded = model.decode(posterior.mean + channels_first(noise)).sample
    flat = decoded.permute(0, 2, 3, 1)
    product = (flat * torch.cos(torch.arange(flat.numel()).double().reshape(flat.shape))).sum()
    (product + (posterior.logvar**2).sum()).backward()
    for result, reference in zip(outputs, (posterior.mean, posterior.logvar, decoded), strict=True):
      assert_close(result, channels_last(reference))
    theirs = {name: x.grad.numpy() for name, x in model.named_parameters()}
    gradients = tiny_diffusers.in_their_names(autoencoder, gradients)
    assert set(theirs) == set(gradients)
    for name, gradient in theirs.items():
      if not name.endswith("to_k.bias"):  # zero in theory: softmax does not see what is added to all scores
        assert np.abs(gradient).max() > 1e-6, name
      assert_close(np.asarray(gradients[name]), gradient)


def test_the_log_variance_is_clipped(tmp_path):
  model = tiny_diffusers.vae(torch.float32)
  with torch.no_grad():
    model.quant_conv.bias[4:] = torch.tensor([-100.0, 100.0, 0.0, 0.0])
  autoencoder, params = tiny_diffusers.read(model, tmp_path / "vae", "float32")
  _, log_variance = autoencoder.apply({"params": params}, np.zeros((1, 4, 4, 3), np.float32), method="encode")
  assert log_variance[..., 0].max() == -30
  assert log_variance[..., 1].min() == 20


def test_tiles_are_those_of_diffusers(tmp_path):
  model = tiny_diffusers.vae()
  model.enable_tiling()
  latents = np.random.default_rng(0).normal(size=(2, 13, 10, 4))
  with jax.enable_x64(True), torch.no_grad():
    autoencoder, params = tiny_diffusers.read(model, tmp_path / "vae")
    reference = channels_last(model.decode(channels_first(latents)).sample)
    assert_close(np.asarray(diffusion.decode_tiled(autoencoder, params, latents)), reference)
    whole = autoencoder.apply({"params": params}, latents, method="decode")
    assert np.abs(whole - reference).max() > 1e-3
    sliced = diffusion.decode_sliced(autoencoder, params, latents)
    assert_close(np.asarray(sliced), np.asarray(whole))
    small = latents[:, :8, :8]
    whole = autoencoder.apply({"params": params}, small, method="decode")
    assert_close(np.asarray(diffusion.decode_tiled(autoencoder, params, small)), np.asarray(whole))


@pytest.mark.parametrize(("force_upcast", "expected"), [(True, "float32"), (False, "float16")])
def test_half_precision_is_upcast_where_the_config_says_so(force_upcast, expected):
  run = models.Run(dtype="float16", param_dtype="float16")
  autoencoder = diffusion.Autoencoder(
    diffusion.AutoencoderConfig(channels=(8, 8), norm_groups=4, force_upcast=force_upcast, run=run)
  )
  params = nn.meta.unbox(diffusion.abstract_params(autoencoder))
  latents = jax.ShapeDtypeStruct((1, 2, 2, 4), "float16")
  decoded = jax.eval_shape(lambda params, x: autoencoder.apply({"params": params}, x, method="decode"), params, latents)
  assert decoded.dtype == expected
  bfloat16 = dataclasses.replace(autoencoder.config, run=models.Run(dtype="bfloat16"))
  assert bfloat16.computing.run.dtype == "bfloat16"


def test_published_size():
  params = nn.meta.unbox(diffusion.abstract_params(diffusion.Autoencoder(diffusion.AutoencoderConfig())))
  assert sum(x.size for x in jax.tree.leaves(params)) == 83_653_863
