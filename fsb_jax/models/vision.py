"""A tower that reads images: patches, a class token, learned positions and the core's blocks.

Source: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929, in CLIP's form (Radford et al. 2021,
https://arxiv.org/abs/2103.00020, section 2.4): normalised before the first block, and the class token after the last.
"""

import contextlib
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.heads import Attend, Head, with_head
from fsb_jax.models.layers import dense
from fsb_jax.models.masks import Mask
from fsb_jax.models.transformer import HIDDEN_AXES, Context, Stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
  """A stack that reads images; the first of its positions is the class token's, the others the patches' row by row.

  Attributes:
    vocab_size: none.
    image_size: height and width of an image, in pixels.
    patch_size: of a patch; what of an image makes no whole patch is not read.
    channels: of a pixel.
    projection_dim: width of what the tower is compared by.
  """

  vocab_size: int = 0
  image_size: int
  patch_size: int
  channels: int = 3
  projection_dim: int = 512

  @property
  def vision_config(self) -> "VisionConfig":
    """Of the tower that reads images: the config itself."""
    return self


class Patches(nn.Module):
  """One vector for every patch, by a convolution whose steps are as long as its kernel."""

  config: Any

  @nn.compact
  def __call__(self, pixel_values: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, patches, embed]`; the kernel is HWIO."""
    config, run, size = self.config, self.config.run, self.config.patch_size
    kernel = self.param(
      "kernel",
      nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), (None, None, None, "embed")),
      (size, size, config.channels, config.embed_dim),
      run.param_dtype,
    )
    patches = jax.lax.conv_general_dilated(
      pixel_values.astype(run.dtype), kernel.astype(run.dtype), (size, size), "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return patches.reshape(len(patches), -1, config.embed_dim)


class VisionModel(nn.Module):
  """A tower with its head.

  Attributes:
    config: a `VisionConfig`.
    head: an unbound head module, or None for the bare tower.
  """

  config: Any
  head: Head | None = None

  def dummy_input(self) -> jax.Array:
    """The smallest `pixel_values` the model takes."""
    config = self.config
    return jnp.zeros((1, config.image_size, config.image_size, config.channels))

  @nn.compact
  def __call__(
    self,
    pixel_values: jax.Array,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Reads a batch of images.

    Args:
      pixel_values: `[batch, height, width, channels]`, see `encodings.encode_images`.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state.
      output_attentions: also return every layer's probabilities, before dropout.
      **head_inputs: what the head takes, by its parameters' names.

    Returns:
      The head's struct, or `BaseOutput`, whose `last_hidden_state` is not normalised and whose `pooler_output` is the
      normalised class token.

    Raises:
      ValueError: the images are not of the config's size.
    """
    config = self.config
    expected = (config.image_size, config.image_size, config.channels)
    if pixel_values.shape[1:] != expected:
      raise ValueError(f"pixel_values have shape {pixel_values.shape}; the model takes [batch, {str(expected)[1:-1]}]")
    with _whole_rows():
      patches = Patches(config, name="patch_embed")(pixel_values)
      initializer = nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), ("table_embed",))
      token = self.param("class_token", initializer, (config.embed_dim,), config.run.param_dtype)
      first = jnp.broadcast_to(token.astype(patches.dtype), (len(patches), 1, config.embed_dim))
      hidden = jnp.concatenate([first, patches], axis=1)
      hidden = hidden + config.positions.embed(config, config.positions.ids(hidden[..., 0]))
      hidden = nn.with_logical_constraint(config.norm("embedding_norm", config.run)(hidden), HIDDEN_AXES)
      context = Context(
        mask=Mask(), deterministic=deterministic, output_hidden_states=output_hidden_states,
        output_attentions=output_attentions,
      )  # fmt: skip
      hidden, beside = Stack(config, name="encoder")(hidden, context)
    encoded = outputs.BaseOutput(
      last_hidden_state=hidden,
      pooler_output=config.norm("final_norm", config.run)(hidden[:, 0]),
      hidden_states=beside.hidden_states,
      attentions=beside.attentions,
    )
    return with_head(self.head, encoded, None, deterministic, None, head_inputs)


@contextlib.contextmanager
def _whole_rows():
  """A mesh splits no row of patches: with the class token they are a number that few meshes divide."""
  rules = [(name, None if name == "activation_length" else axes) for name, axes in nn.get_logical_axis_rules()]
  with nn.logical_axis_rules(rules):
    yield


class ImageProjection(Head):
  """Vectors that texts' are compared with, of class `CLIPVisionModelWithProjection`."""

  uses_pooler = True

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.ClipVisionOutput:
    """See the module's docstring."""
    config = self.config
    project = dense(config, (config.projection_dim,), ("embed", "mlp"), "visual_projection", bias=False)
    return outputs.ClipVisionOutput(
      image_embeds=project(encoded.pooler_output), last_hidden_state=encoded.last_hidden_state
    )
