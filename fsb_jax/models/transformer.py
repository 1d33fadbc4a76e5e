"""The block and the stack: scanned or unrolled, rematerialised by policy name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.models.attention import CrossAttention
from fsb_jax.models.cache import LayerCache
from fsb_jax.models.layers import Mlp
from fsb_jax.models.masks import Mask
from fsb_jax.models.positions import Span
from fsb_jax.models.sliding_window import block_mask

HIDDEN_AXES = ("activation_batch", "activation_length", "activation_embed")


@struct.dataclass
class Context:
  """What every layer of a stack reads; built once, never written.

  Attributes:
    shared: the position scheme's, see `Positions.shared`.
    span: where the call's tokens stand among all that are seen; None where they are all.
    encoded: what the encoder made, `[batch, length, embed]`; None without one.
    encoded_mask: which of it is seen.
    block_mask: what a window lets through, see `sliding_window.block_mask`; None without one, and where rows are too
      short for blocks to be of use.
    joined: what joins the layers' outputs, by its method `join(hidden, per_layer)`; None where nothing does.
  """

  mask: Mask
  shared: Any = None
  span: Span | None = None
  encoded: jax.Array | None = None
  encoded_mask: Mask | None = None
  block_mask: jax.Array | None = None
  joined: Any = None
  deterministic: bool = struct.field(pytree_node=False, default=True)
  output_hidden_states: bool = struct.field(pytree_node=False, default=False)
  output_attentions: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class LayerOutput:
  """What a layer, or in tuples a stack, puts out beside its result; None where nobody asked for it.

  Attributes:
    hidden_states: the result once more; of a stack the input, then each layer's, the last one after the final norm.
    attentions: probabilities, `[batch, heads, query, key]`.
    cross_attentions: the same of the cross-attention.
    cache: with the call's tokens in it.
  """

  hidden_states: Any = None
  attentions: Any = None
  cross_attentions: Any = None
  cache: Any = None


class Block(nn.Module):
  """The config's sub-layers, such as self-attention and feed-forward, each with its residual and norm."""

  config: Any

  @nn.compact
  def __call__(self, hidden: jax.Array, per_layer: Any, context: Context) -> tuple[jax.Array, LayerOutput]:
    """One layer.

    Args:
      hidden: `[batch, length, embed]`.
      per_layer: this layer's slice of what differs by layer: its `LayerCache`, or what `context.joined` reads; None
        where nothing differs. With windows, a pair of it and how far tokens see, None where layers agree on that.
      context: what all layers share.

    Returns:
      The new hidden state as the carry, and what else is asked for.
    """
    config = self.config
    drop = nn.Dropout(config.dropout.hidden, deterministic=context.deterministic)
    if config.window is not None:
      per_layer, reach = per_layer
      context = context.replace(mask=context.mask.replace(reach=reach))
    cached = per_layer if isinstance(per_layer, LayerCache) else None
    hidden = nn.with_logical_constraint(hidden, HIDDEN_AXES)
    probabilities, kept = {}, {}

    def sublayer(name, x):
      if name.endswith("mlp"):
        return Mlp(config, name=name)(x, context.deterministic)
      attention = CrossAttention if name == "cross_attention" else config.attention
      x, probabilities[name], kept[name] = attention(config, name=name)(x, context, cached and getattr(cached, name))
      return x

    for name in config.sublayers:
      norm = config.norm(f"{name}_norm", config.run)
      if config.norm_placement == "pre":
        hidden = hidden + drop(sublayer(name, norm(hidden)))
      else:
        hidden = norm(hidden + drop(sublayer(name, hidden)))
    if context.joined is not None:
      hidden = context.joined.join(hidden, per_layer)
    hidden = nn.with_logical_constraint(hidden, HIDDEN_AXES)
    return hidden, LayerOutput(
      hidden if context.output_hidden_states else None,
      probabilities.get("attention"),
      probabilities.get("cross_attention"),
      None if cached is None else LayerCache(**kept),
    )


class Stack(nn.Module):
  """`num_layers` blocks, then the final norm where the config has one.

  Blocks are `layers` (stacked), or `layers_{i}`; with `config.layer_groups` they are `group_{i}`, each of which serves
  a run of layers.
  """

  config: Any
  block: type[nn.Module] = Block

  @nn.compact
  def __call__(
    self, hidden: jax.Array, context: Context, per_layer: Any = None
  ) -> tuple[jax.Array, LayerOutput]:
    """Runs the stack.

    Args:
      hidden: `[batch, length, embed]`, or whatever tree of arrays the block carries on.
      context: what all layers share.
      per_layer: a pytree with a leading axis of `num_layers`, a tuple of as many `LayerCache`, or None.

    Returns:
      The result, of the form of `hidden`, and what else the context asks for.
    """
    config, run = self.config, self.config.run
    block = self.block
    if run.remat != "none":
      # "full" is no policy's name: it keeps nothing.
      policy = getattr(jax.checkpoint_policies, run.remat, None)
      block = nn.remat(block, prevent_cse=not run.scan_layers, policy=policy)
    length = jax.tree.leaves(hidden)[0].shape[1]
    span = context.span or Span(queries=length, keys=length)
    context = context.replace(shared=config.positions.shared(config, span))
    if config.convolution is not None:
      convolution = config.convolution(config, "convolution")
      context = context.replace(joined=convolution(hidden, context.mask.real(), context.deterministic))
      per_layer = jnp.arange(config.num_layers) == 0
    if config.window is not None:
      per_layer = per_layer, config.window.reach_by_layer
      # Of a row that is not much longer than what a block sees, blocks would be no less work.
      if length > 3 * context.mask.window and not context.output_attentions:
        context = context.replace(block_mask=block_mask(context.mask, length))
    first, layers = hidden, []
    if config.layer_groups is not None:
      hidden, layers = self._grouped(block, hidden, per_layer, context)
    elif run.scan_layers:
      scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      hidden, stacked = scanned(config, name="layers")(hidden, per_layer, context)
      layers = _unstacked(stacked, config.num_layers)
    else:
      for i in range(config.num_layers):
        slice_ = _slice(per_layer, i)
        hidden, outputs = block(config, name=f"layers_{i}")(hidden, slice_, context)
        layers.append(outputs)
    if config.final_norm:
      hidden = config.norm("final_norm", run)(hidden)

    def collected(name):
      values = tuple(getattr(layer, name) for layer in layers)
      return None if values[0] is None else values

    states = collected("hidden_states")
    return hidden, LayerOutput(
      hidden_states=states and (first, *states[:-1], hidden),
      attentions=collected("attentions"),
      cross_attentions=collected("cross_attentions"),
      # That of scanned layers stays stacked.
      cache=stacked.cache if run.scan_layers and config.layer_groups is None else collected("cache"),
    )

  def _grouped(self, block, hidden: jax.Array, per_layer: Any, context: Context) -> tuple[jax.Array, list]:
    """Runs the layers where groups of them share their parameters."""
    config, outputs = self.config, []
    times = config.num_layers // config.layer_groups
    for group in range(config.layer_groups):
      module = block(config, name=f"group_{group}")
      slices = _slice(per_layer, slice(group * times, (group + 1) * times))
      if config.run.scan_layers:
        repeated = nn.scan(
          lambda module, hidden, slice_: module(hidden, slice_, context),
          variable_broadcast="params",
          split_rngs={"params": False, "dropout": True},
          length=times,
        )
        hidden, stacked = repeated(module, hidden, slices)
        outputs.extend(_unstacked(stacked, times))
      else:
        for i in range(times):
          hidden, output = module(hidden, _slice(slices, i), context)
          outputs.append(output)
    return hidden, outputs


def _slice(per_layer: Any, which: int | slice) -> Any:
  """One layer's, or some layers', part of what differs by layer."""
  if isinstance(per_layer, tuple) and isinstance(per_layer[0], LayerCache):
    return per_layer[which]
  return jax.tree.map(lambda x: x[which], per_layer)


def _unstacked(stacked: Any, count: int) -> list:
  """What each of `count` layers put out."""
  return [_slice(stacked, i) for i in range(count)]
