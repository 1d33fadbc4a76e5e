"""CLIP: a tower for texts and one for images, whose vectors are compared.

Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020. Stable Diffusion reads texts with the text tower alone.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsb_jax.models import outputs
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.decoder import EmbeddedStack, token_table
from fsb_jax.models.encoder import EncoderModel
from fsb_jax.models.heads import Attend, Head, with_head
from fsb_jax.models.layers import at_least_float32, dense
from fsb_jax.models.readouts import unit_vectors
from fsb_jax.models.vision import VisionConfig, VisionModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TransformerConfig):
  """A stack that reads texts.

  Attributes:
    end_token_id: id that ends a text, and at whose first place it is read; None for the highest id of every text, as
      config.json's 2 says, which is a mistake of old files that is kept.
    projection_dim: width of what texts and images are compared by.
  """

  end_token_id: int | None = None
  projection_dim: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig(ClipTextConfig):
  """Both towers: the fields of the text tower, and the image tower's in one of them.

  Attributes:
    vision: of the image tower; its `run` is not used.
    logit_scale: what the logarithm of the scale begins with.
  """

  vision: VisionConfig
  logit_scale: float = 2.6592

  @property
  def vision_config(self) -> VisionConfig:
    """Of the image tower, with the run's choices."""
    return dataclasses.replace(self.vision, run=self.run)


class ClipTextModel(nn.Module):
  """CLIP's own text tower with its head: tokens see no later ones, and a text is read at its end.

  Attributes:
    config: a `ClipTextConfig`.
    head: an unbound head module, or None for the bare tower.
  """

  config: Any
  head: Head | None = None

  @nn.compact
  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    **head_inputs: jax.Array | None,
  ):
    """Reads a batch of texts.

    Args:
      input_ids: int `[batch, length]`.
      attention_mask: `[batch, length]`, 1 for real tokens; Stable Diffusion gives none.
      position_ids: int `[batch, length]`, counted from the start if not given.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state. The final norm is not in them, not even in the last.
      output_attentions: also return every layer's probabilities, before dropout.
      **head_inputs: what the head takes, by its parameters' names.

    Returns:
      The head's struct, or `BaseOutput`: normalised, and in `pooler_output` at the texts' ends.
    """
    config = self.config
    table = token_table(config, "token_embed")
    hidden, beside = EmbeddedStack(config, name="encoder")(
      table(input_ids), attention_mask, position_ids,
      deterministic=deterministic, output_hidden_states=output_hidden_states, output_attentions=output_attentions,
    )  # fmt: skip
    hidden = config.norm("final_norm", config.run)(hidden)
    encoded = outputs.BaseOutput(
      last_hidden_state=hidden,
      pooler_output=hidden[jnp.arange(len(hidden)), text_ends(input_ids, config.end_token_id)],
      hidden_states=beside.hidden_states,
      attentions=beside.attentions,
    )
    return with_head(self.head, encoded, table.attend, deterministic, None, head_inputs)


def text_ends(input_ids: jax.Array, end_token_id: int | None) -> jax.Array:
  """Where every text is read, `[batch]`: at its first `end_token_id`, or at its highest id where that is None.

  A text without an end is read at its first token, as in transformers.
  """
  return jnp.argmax(input_ids if end_token_id is None else input_ids == end_token_id, axis=-1)


class TextProjection(Head):
  """Vectors that images' are compared with, of class `CLIPTextModelWithProjection`."""

  uses_pooler = True

  @nn.compact
  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.ClipTextOutput:
    """See the module's docstring."""
    config = self.config
    project = dense(config, (config.projection_dim,), ("embed", "mlp"), "text_projection", bias=False)
    return outputs.ClipTextOutput(
      text_embeds=project(encoded.pooler_output), last_hidden_state=encoded.last_hidden_state
    )


class Features(Head):
  """Says that a `ClipModel` compares what its feature getters return, as training and published use do.

  Without it the model compares what the original class's `forward` does. It has no parameters.
  """

  def __call__(self, encoded: outputs.BaseOutput, attend: Attend, deterministic: bool) -> outputs.BaseOutput:
    """Returns what it is given."""
    return encoded


class ClipModel(nn.Module):
  """Two towers, a projection of each without a bias, and a scale.

  Attributes:
    config: a `ClipConfig`.
    head: an unbound `Features`, or None.
  """

  config: Any
  head: Head | None = None

  text_tower = ClipTextModel

  def setup(self):
    """Makes the towers."""
    config, vision = self.config, self.config.vision_config
    self.text, self.vision = self.text_tower(config), VisionModel(vision)
    axes = ("embed", "mlp")
    self.text_projection = dense(config, (config.projection_dim,), axes, bias=False)
    self.visual_projection = dense(vision, (config.projection_dim,), axes, bias=False)
    initializer = nn.with_logical_partitioning(nn.initializers.constant(config.logit_scale), ())
    self.logit_scale = self.param("logit_scale", initializer, (), config.run.param_dtype)

  def text_vector(self, encoded: outputs.BaseOutput) -> jax.Array:
    """What of the text tower's result is projected to a text's features, `[batch, embed]`."""
    return encoded.pooler_output

  def get_text_features(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Vectors of texts, `[batch, projection]`, not of length one: `model.apply(..., method="get_text_features")`."""
    encoded = self._encoded_texts(
      input_ids, attention_mask=attention_mask, position_ids=position_ids, token_type_ids=token_type_ids,
      deterministic=deterministic,
    )  # fmt: skip
    return self.text_projection(self.text_vector(encoded))

  def get_image_features(self, pixel_values: jax.Array, deterministic: bool = True) -> jax.Array:
    """Vectors of images, `[batch, projection]`, not of length one; see `get_text_features`."""
    return self.visual_projection(self.vision(pixel_values, deterministic=deterministic).pooler_output)

  def __call__(
    self,
    input_ids: jax.Array,
    pixel_values: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    deterministic: bool = True,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
  ) -> outputs.ClipOutput:
    """Compares all texts with all images.

    Args:
      input_ids: int `[texts, length]`.
      pixel_values: `[images, height, width, channels]`, see `encodings.encode_images`.
      attention_mask: `[texts, length]`, 1 for real tokens.
      position_ids: int `[texts, length]`, counted from the start if not given.
      token_type_ids: int `[texts, length]`, where the text tower has token types.
      deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
      output_hidden_states: also return every layer's hidden state, in the towers' outputs.
      output_attentions: also return every layer's probabilities, before dropout.

    Raises:
      ValueError: there are no images; texts alone have `get_text_features`.
    """
    if pixel_values is None:
      if not self.is_initializing():
        raise ValueError("pixel_values are missing; of texts alone method='get_text_features' makes vectors")
      pixel_values = self.vision.dummy_input()
    options = dict(
      deterministic=deterministic, output_hidden_states=output_hidden_states, output_attentions=output_attentions
    )
    texts = self._encoded_texts(
      input_ids, attention_mask=attention_mask, position_ids=position_ids, token_type_ids=token_type_ids, **options
    )
    images = self.vision(pixel_values, **options)
    vector = texts.pooler_output if self.head is None else self.text_vector(texts)
    dtype = at_least_float32(self.config.run.dtype)
    text_embeds = unit_vectors(self.text_projection(vector).astype(dtype))
    image_embeds = unit_vectors(self.visual_projection(images.pooler_output).astype(dtype))
    # Split by texts alone, so that a loss's sums over texts or images are all that devices have to tell each other.
    logits = nn.with_logical_constraint(text_embeds @ image_embeds.T, ("activation_batch", None))
    logits = logits * jnp.exp(self.logit_scale.astype(dtype))
    return outputs.ClipOutput(
      logits_per_image=logits.T,
      logits_per_text=logits,
      text_embeds=text_embeds,
      image_embeds=image_embeds,
      text_model_output=texts,
      vision_model_output=images,
    )

  def _encoded_texts(self, input_ids: jax.Array, **inputs: Any) -> outputs.BaseOutput:
    return self.text(input_ids, **{name: x for name, x in inputs.items() if x is not None})


class TaiyiClipModel(ClipModel):
  """Taiyi-CLIP: BERT reads the texts.

  Its feature getters project the first token; its `forward`, and so the model without a head, projects BERT's pooler.
  https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/clip.
  """

  text_tower = EncoderModel

  def text_vector(self, encoded: outputs.BaseOutput) -> jax.Array:
    """See the base class."""
    return encoded.last_hidden_state[:, 0]
