"""Frozen descriptions of the UNet that takes noise away and of the autoencoder between images and latents."""

import dataclasses

from fsb_jax.models.attention import Attention, CrossAttention
from fsb_jax.models.config import Dropout, Run, TransformerConfig
from fsb_jax.models.layers import NormSpec
from fsb_jax.models.positions import Positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
  """A UNet that reads a text: levels of ResNets with transformers between them, halving the image at each.

  Tuples have an entry for every level, the largest image first; on the way up levels come in the opposite order.

  Attributes:
    in_channels: of the noisy latents, and whatever is laid beside them (inpainting's mask and masked image).
    out_channels: of the result.
    channels: of each level.
    resnets: of each level on the way down; there is one more on the way up.
    heads: of each level's attention.
    depths: layers of each transformer of a level; 0 for a level without.
    middle_depth: of the transformer in the middle.
    text_dim: width of the text.
    text_only: whether a level's self-attention is to the text, too.
    linear_projection: folders keep the projections around a transformer as linear maps, else as 1x1 convolutions.
    norm_groups: of every group norm.
    norm_epsilon: of those in ResNets and at the end.
    centre_input: the input is brought from [0, 1] to [-1, 1].
    cosine_first: embeddings of numbers have their cosines before their sines.
    frequency_shift: taken from the number of frequencies in those embeddings' exponents.
    added_number_dim: width of the embedding of every number in `added_time_ids`; None where nothing is added to time.
    added_dim: width of the pooled text and those embeddings together.
    sample_size: height and width of the latents it was trained on.
    dropout: in ResNets, and on the branches of transformers.
    initializer_range: standard deviation of freshly drawn kernels.
  """

  in_channels: int = 4
  out_channels: int = 4
  channels: tuple[int, ...] = (320, 640, 1280, 1280)
  resnets: tuple[int, ...] = (2, 2, 2, 2)
  heads: tuple[int, ...] = (8, 8, 8, 8)
  depths: tuple[int, ...] = (1, 1, 1, 0)
  middle_depth: int = 1
  text_dim: int = 768
  text_only: tuple[bool, ...] = (False, False, False, False)
  linear_projection: bool = False
  norm_groups: int = 32
  norm_epsilon: float = 1e-5
  centre_input: bool = False
  cosine_first: bool = True
  frequency_shift: float = 0.0
  added_number_dim: int | None = None
  added_dim: int | None = None
  sample_size: int = 64
  dropout: float = 0.0
  initializer_range: float = 0.02
  run: Run = Run()

  def __post_init__(self):
    for name in ("resnets", "heads", "depths", "text_only"):
      if len(getattr(self, name)) != len(self.channels):
        raise ValueError(f"{name} {getattr(self, name)} has not as many entries as channels {self.channels}")

  @property
  def time_dim(self) -> int:
    """Width of the embedded time."""
    return 4 * self.channels[0]

  def transformer(self, level: int) -> TransformerConfig | None:
    """The transformers of a level; None where it has none."""
    depth = self.depths[level]
    return self._stack(level, depth, CrossAttention if self.text_only[level] else Attention) if depth else None

  @property
  def middle(self) -> TransformerConfig:
    """The transformer in the middle."""
    return self._stack(len(self.channels) - 1, self.middle_depth, Attention)

  def transformers(self) -> dict[tuple[str, str], TransformerConfig]:
    """Every transformer by its place, such as ("down_0", "attentions_1")."""
    levels = range(len(self.channels))
    down = {("down", level): self.resnets[level] for level in levels}
    up = {("up", len(self.channels) - 1 - level): self.resnets[level] + 1 for level in levels}
    result = {}
    for (way, place), count in (*down.items(), *up.items()):
      config = self.transformer(place if way == "down" else len(self.channels) - 1 - place)
      if config is not None:
        result |= {(f"{way}_{place}", f"attentions_{i}"): config for i in range(count)}
    return {**result, ("middle", "attentions_0"): self.middle}

  def _stack(self, level: int, depth: int, attention: type[Attention]) -> TransformerConfig:
    channels = self.channels[level]
    return TransformerConfig(
      vocab_size=0, embed_dim=channels, num_layers=depth, num_heads=self.heads[level], mlp_dim=4 * channels,
      attention=attention, attention_bias=False, attention_out_bias=True, positions=Positions(),
      sublayers=("attention", "cross_attention", "mlp"), activations=("gelu", "linear"), norm=NormSpec(epsilon=1e-5),
      norm_placement="pre", initializer_range=self.initializer_range,
      dropout=Dropout(hidden=self.dropout, attention=0.0), run=self.run,
    )  # fmt: skip

  def with_run(self, **changes) -> "UNetConfig":
    """A copy with some run choices replaced."""
    return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
  """A variational autoencoder between images and latents.

  Attributes:
    in_channels: of the images it reads.
    out_channels: of the images it makes.
    latent_channels: of latents.
    channels: of each level, the largest image first; every level but the last halves the image.
    resnets: of a level on the way down; there is one more on the way up.
    norm_groups: of every group norm.
    quant_convolution: a 1x1 convolution follows the encoder.
    post_quant_convolution: one precedes the decoder.
    middle_attention: there is attention in the middle of encoder and decoder.
    scaling_factor: callers multiply latents by it before the UNet, after they took `shift_factor` away.
    shift_factor: see above.
    sample_size: height and width of a tile, see `tiling.decode_tiled`.
    force_upcast: in float16 it would overflow, and runs in float32.
    initializer_range: standard deviation of freshly drawn kernels.
  """

  in_channels: int = 3
  out_channels: int = 3
  latent_channels: int = 4
  channels: tuple[int, ...] = (128, 256, 512, 512)
  resnets: int = 2
  norm_groups: int = 32
  quant_convolution: bool = True
  post_quant_convolution: bool = True
  middle_attention: bool = True
  scaling_factor: float = 0.18215
  shift_factor: float = 0.0
  sample_size: int = 512
  force_upcast: bool = True
  initializer_range: float = 0.02
  run: Run = Run()

  norm_epsilon = 1e-6
  dropout = 0.0

  @property
  def reduction(self) -> int:
    """How many pixels of an image a latent's side stands for."""
    return 2 ** (len(self.channels) - 1)

  @property
  def computing(self) -> "AutoencoderConfig":
    """The config that modules compute by."""
    upcast = self.force_upcast and self.run.dtype == "float16"
    return self.with_run(dtype="float32") if upcast else self

  def with_run(self, **changes) -> "AutoencoderConfig":
    """A copy with some run choices replaced."""
    return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))
