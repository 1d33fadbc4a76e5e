"""The block and the stack: scanned or unrolled, rematerialised by policy name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from fsb_jax.models.layers import Mlp
from fsb_jax.models.masks import Mask

HIDDEN_AXES = ("activation_batch", "activation_length", "activation_embed")


@struct.dataclass
class Context:
  """What every layer of a stack reads; built once, never written.

  Attributes:
    shared: the position scheme's, see `Positions.shared`.
    joined: what joins the layers' outputs, by its method `join(hidden, per_layer)`; None where nothing does.
  """

  mask: Mask
  shared: Any = None
  joined: Any = None
  deterministic: bool = struct.field(pytree_node=False, default=True)
  output_hidden_states: bool = struct.field(pytree_node=False, default=False)
  output_attentions: bool = struct.field(pytree_node=False, default=False)


class Block(nn.Module):
  """Self-attention and feed-forward, each with its residual and norm."""

  config: Any

  @nn.compact
  def __call__(
    self, hidden: jax.Array, per_layer: Any, context: Context
  ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
    """One layer.

    Args:
      hidden: `[batch, length, embed]`.
      per_layer: this layer's slice of what differs by layer, for `context.joined`; None where nothing does. With
        windows, a pair of it and how far tokens see.
      context: what all layers share.

    Returns:
      The new hidden state as the carry; and as the layer's output the hidden state and the attention's probabilities,
      each where the context asks for it.
    """
    config = self.config
    drop = nn.Dropout(config.dropout.hidden, deterministic=context.deterministic)
    if config.window is not None:
      per_layer, reach = per_layer
      context = context.replace(mask=context.mask.replace(reach=reach))

    def residual(x, sublayer, norm_name):
      norm = config.norm(norm_name, config.run)
      return x + drop(sublayer(norm(x))) if config.norm_placement == "pre" else norm(x + drop(sublayer(x)))

    hidden = nn.with_logical_constraint(hidden, HIDDEN_AXES)
    probabilities = None

    def attention(x):
      nonlocal probabilities
      x, probabilities = config.attention(config, name="attention")(x, context)
      return x

    hidden = residual(hidden, attention, "attention_norm")
    hidden = residual(hidden, lambda x: Mlp(config, name="mlp")(x, context.deterministic), "mlp_norm")
    if context.joined is not None:
      hidden = context.joined.join(hidden, per_layer)
    hidden = nn.with_logical_constraint(hidden, HIDDEN_AXES)
    return hidden, (hidden if context.output_hidden_states else None, probabilities)


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
  ) -> tuple[jax.Array, tuple[jax.Array, ...] | None, tuple[jax.Array, ...] | None]:
    """Runs the stack.

    Args:
      hidden: `[batch, length, embed]`, or whatever tree of arrays the block carries on.
      context: what all layers share.
      per_layer: a pytree with a leading axis of `num_layers`, or None.

    Returns:
      The result, of the form of `hidden`; where the context asks for hidden states, a tuple of `num_layers + 1` of
      them, the input, then each layer's output, the last one after the final norm; and where it asks for attentions, a
      tuple of each layer's.
    """
    config, run = self.config, self.config.run
    block = self.block
    if run.remat != "none":
      # "full" is no policy's name: it keeps nothing.
      policy = getattr(jax.checkpoint_policies, run.remat, None)
      block = nn.remat(block, prevent_cse=not run.scan_layers, policy=policy)
    context = context.replace(shared=config.positions.shared(config, jax.tree.leaves(hidden)[0].shape[1]))
    if config.convolution is not None:
      convolution = config.convolution(config, "convolution")
      context = context.replace(joined=convolution(hidden, context.mask.real(), context.deterministic))
      per_layer = jnp.arange(config.num_layers) == 0
    if config.window is not None:
      per_layer = per_layer, jnp.array(config.window.reach)
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
        slice_ = jax.tree.map(lambda x, i=i: x[i], per_layer)
        hidden, outputs = block(config, name=f"layers_{i}")(hidden, slice_, context)
        layers.append(outputs)
    if config.final_norm:
      hidden = config.norm("final_norm", run)(hidden)
    states, attentions = zip(*layers)
    return (
      hidden,
      (first, *states[:-1], hidden) if context.output_hidden_states else None,
      attentions if context.output_attentions else None,
    )

  def _grouped(self, block, hidden: jax.Array, per_layer: Any, context: Context) -> tuple[jax.Array, list]:
    """Runs the layers where groups of them share their parameters."""
    config, outputs = self.config, []
    times = config.num_layers // config.layer_groups
    for group in range(config.layer_groups):
      module = block(config, name=f"group_{group}")
      slices = jax.tree.map(lambda x, first=group * times: x[first : first + times], per_layer)
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
          hidden, output = module(hidden, jax.tree.map(lambda x, i=i: x[i], slices), context)
          outputs.append(output)
    return hidden, outputs


def _unstacked(stacked: Any, count: int) -> list:
  """What each of `count` layers put out."""
  return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
