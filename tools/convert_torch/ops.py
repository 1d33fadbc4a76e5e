"""Invertible changes of form between one PyTorch tensor and one of our parameters.

Each op is a pair: `load` maps their tensor to our array, `save` maps it back, and `save(load(x)) == x` bit for bit.
Both take `(array, config)` with the model's `TransformerConfig` and return a view where numpy can make one.
Letters: e embed, h heads, d head_dim, o outputs, v vocabulary.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Op:
  """`load` from PyTorch's form to ours and `save` back.

  Attributes:
    load: their tensor, or the whole that it is a part of, to our array.
    save: our array to their tensor, or to the part of it.
    part: which part of their tensor it is.
    parts: how many it has; each is a parameter of ours.
    axis: of their tensor, along which the parts make it longer.
    join: all the parts, in order, and the config to their tensor; None where it is one.
  """

  load: Callable[[np.ndarray, object], np.ndarray]
  save: Callable[[np.ndarray, object], np.ndarray]
  part: int = 0
  parts: int = 1
  axis: int = 0
  join: Callable[[list[np.ndarray], object], np.ndarray] | None = None

  def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of their tensor, of which `save` gives `shape`."""
    return tuple(size * self.parts if i == self.axis else size for i, size in enumerate(shape))


same = Op(lambda x, config: x, lambda x, config: x)

# PyTorch's Linear keeps [o, e], our kernels [e, o].
linear = Op(lambda x, config: x.T, lambda x, config: x.T)


def _to_heads(count: Callable[[object], int]) -> tuple[Op, Op]:
  """A projection to `count(config)` heads, [h*d, e] <-> [e, h, d], and its bias, [h*d] <-> [h, d]."""
  kernel = Op(
    lambda x, config: x.T.reshape(x.shape[1], count(config), -1),
    lambda x, config: x.reshape(x.shape[0], -1).T,
  )
  return kernel, Op(lambda x, config: x.reshape(count(config), -1), lambda x, config: x.reshape(-1))


heads_out, heads_bias = _to_heads(lambda config: config.num_heads)
kv_heads_out, kv_heads_bias = _to_heads(lambda config: config.kv_heads)

# A projection from heads: [e, h*d] <-> [h, d, e].
heads_in = Op(
  lambda x, config: x.T.reshape(config.num_heads, -1, x.shape[0]),
  lambda x, config: x.reshape(-1, x.shape[-1]).T,
)


def _pad_rows(x: np.ndarray, config) -> np.ndarray:
  missing = config.vocab_rows - x.shape[0]
  return np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else x


# Vocabulary on the first axis: zero rows up to `config.vocab_rows`, cut back to `config.vocab_size`.
pad_vocab = Op(_pad_rows, lambda x, config: x[: config.vocab_size])


def then(first: Op, second: Op) -> Op:
  """`first`, then `second`, as seen from PyTorch's side."""
  return Op(
    lambda x, config: second.load(first.load(x, config), config),
    lambda x, config: first.save(second.save(x, config), config),
  )


def decoder(op: Op) -> Op:
  """`op` with the config of an encoder-decoder's decoder."""
  return Op(lambda x, config: op.load(x, config.decoder_config), lambda x, config: op.save(x, config.decoder_config))


def fused(op: Op, part: int, parts: int, axis: int = 0) -> Op:
  """`op` on one of `parts` equal parts that lie one after the other along `axis` of their tensor."""
  return Op(
    lambda x, config: op.load(np.split(x, parts, axis)[part], config),
    op.save,
    part,
    parts,
    axis,
    lambda pieces, config: np.concatenate(pieces, axis),
  )


def fused_by_head(op: Op, part: int, parts: int) -> Op:
  """`op` on one of `parts` that take turns along the first axis of their tensor, head by head, [h*parts*d, ...]."""

  def load(x, config):
    heads = x.reshape(config.num_heads, parts, -1, *x.shape[1:])
    return op.load(heads[:, part].reshape(-1, *x.shape[1:]), config)

  def join(pieces, config):
    heads = [piece.reshape(config.num_heads, -1, *piece.shape[1:]) for piece in pieces]
    return np.stack(heads, axis=1).reshape(-1, *pieces[0].shape[1:])

  return Op(load, op.save, part, parts, join=join)


# Convolutions over images: [o, i, height, width] <-> [height, width, i, o].
convolution = Op(lambda x, config: x.transpose(2, 3, 1, 0), lambda x, config: x.transpose(3, 2, 0, 1))
# Those that see one pixel are linear maps: [o, i, 1, 1] <-> [i, o].
pixelwise = Op(lambda x, config: x[:, :, 0, 0].T, lambda x, config: x.T[:, :, None, None])


def of_config(op: Op, config) -> Op:
  """`op` with this config, whatever config the model has."""
  return Op(lambda x, _: op.load(x, config), lambda x, _: op.save(x, config))
