"""What UNet and autoencoder are built from. Images are `[batch, height, width, channels]` throughout."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32, dense

IMAGE_AXES = ("activation_batch", "activation_height", None, "activation_channels")
INNER_AXES = ("activation_batch", "activation_height", None, "activation_inner_channels")

# Names of a kernel's last two axes. Every projection widens to what the tensor axis splits, but for the last one of a
# residual branch, which brings the parts together again.
WIDENS = ("channels", "inner_channels")
NARROWS = ("inner_channels", "channels")


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(3, 4, 5))
def group_normalise(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, silu: bool
) -> jax.Array:
  """Subtracts mean and divides by standard deviation of every group of channels, over the whole image.

  In the backward pass it is made again from `x`: cheap beside the convolution that follows, where autodiff would keep
  several arrays of the image's size.

  Args:
    x: `[batch, height, width, channels]`.
    scale: `[channels]`.
    bias: `[channels]`.
    groups: of neighbouring channels, all of one size.
    epsilon: added to the variance.
    silu: the activation follows.
  """
  grouped = x.reshape(*x.shape[:-1], groups, -1)
  mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
  centred = grouped - mean
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True) + epsilon)
  y = (centred * inverse).reshape(x.shape) * scale + bias
  return nn.silu(y) if silu else y


class GroupNorm(nn.Module):
  """Group normalisation (Wu and He 2018, https://arxiv.org/abs/1803.08494), and SiLU where asked for.

  Attributes:
    config: gives `norm_groups` and `run`.
    epsilon: added to the variance.
    silu: the activation follows.
  """

  config: Any
  epsilon: float
  silu: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape; statistics are taken in at least float32."""
    run = self.config.run
    wide = at_least_float32(jnp.promote_types(x.dtype, run.param_dtype))

    def parameter(name, initializer):
      boxed = nn.with_logical_partitioning(initializer, ("norm",))
      return self.param(name, boxed, x.shape[-1:], run.param_dtype).astype(wide)

    scale = parameter("scale", nn.initializers.ones_init())
    bias = parameter("bias", nn.initializers.zeros_init())
    y = group_normalise(x.astype(wide), scale, bias, self.config.norm_groups, self.epsilon, self.silu)
    return y.astype(run.dtype)


class Convolution(nn.Module):
  """A 3x3 convolution.

  Attributes:
    config: gives `run` and `initializer_range`.
    features: channels of the result.
    axes: logical names of the kernel's channels, those of the argument first.
    stride: of the window.
    padding: rows and columns of zeros before and after.
  """

  config: Any
  features: int
  axes: tuple[str | None, str | None] = WIDENS
  stride: int = 1
  padding: tuple[int, int] = (1, 1)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, height / stride, width / stride, features]`."""
    config, run = self.config, self.config.run
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), (None, None, *self.axes)),
      (3, 3, x.shape[-1], self.features),
      run.param_dtype,
    )
    bias = self.param(
      "bias",
      nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[1:]),
      (self.features,),
      run.param_dtype,
    )
    y = jax.lax.conv_general_dilated(
      x.astype(run.dtype),
      kernel.astype(run.dtype),
      window_strides=(self.stride, self.stride),
      padding=(self.padding, self.padding),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + bias.astype(run.dtype)


class Resnet(nn.Module):
  """Two convolutions with a residual around them; between them the time is added.

  Attributes:
    config: a `UNetConfig` or `AutoencoderConfig`.
    features: channels of the result.
    deterministic: no dropout.
  """

  config: Any
  features: int
  deterministic: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
    """Maps an image to one with `features` channels.

    Args:
      x: `[batch, height, width, channels]`.
      time: the embedded time after its activation, `[batch or 1, time_dim]`; None where there is none.
    """
    config, features = self.config, self.features
    hidden = GroupNorm(config, config.norm_epsilon, silu=True, name="norm_1")(x)
    hidden = Convolution(config, features, name="convolution_1")(hidden)
    if time is not None:
      hidden = hidden + dense(config, (features,), ("embed", "inner_channels"), "time")(time)[:, None, None]
    hidden = nn.with_logical_constraint(hidden, INNER_AXES)
    hidden = GroupNorm(config, config.norm_epsilon, silu=True, name="norm_2")(hidden)
    hidden = nn.Dropout(config.dropout, deterministic=self.deterministic)(hidden)
    hidden = Convolution(config, features, axes=NARROWS, name="convolution_2")(hidden)
    if x.shape[-1] != features:
      x = dense(config, (features,), WIDENS, "shortcut")(x)
    return nn.with_logical_constraint(x + hidden, IMAGE_AXES)


def resnet(config: Any, features: int, name: str, deterministic: bool = True) -> Resnet:
  """A `Resnet`, rematerialised where the run asks for it."""
  run, module = config.run, Resnet
  if run.remat != "none":
    # "full" is no policy's name: it keeps nothing.
    module = nn.remat(module, policy=getattr(jax.checkpoint_policies, run.remat, None))
  return module(config, features, deterministic, name=name)


def downsample(config: Any, x: jax.Array, padding: tuple[int, int], name: str) -> jax.Array:
  """Halves an image by a convolution."""
  x = Convolution(config, x.shape[-1], stride=2, padding=padding, name=name)(x)
  return nn.with_logical_constraint(x, IMAGE_AXES)


def upsample(config: Any, x: jax.Array, size: tuple[int, int] | None, name: str) -> jax.Array:
  """Doubles an image by repeating pixels, then convolves.

  Args:
    config: a `UNetConfig` or `AutoencoderConfig`.
    x: `[batch, height, width, channels]`.
    size: height and width of the result, at most one less than twice those of `x`; None for twice.
    name: of the convolution.
  """
  batch, height, width, channels = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
  x = x.reshape(batch, 2 * height, 2 * width, channels)
  if size is not None:
    x = x[:, : size[0], : size[1]]
  x = Convolution(config, channels, name=name)(x)
  return nn.with_logical_constraint(x, IMAGE_AXES)
