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
  """`load` from PyTorch's form to ours and `save` back."""

  load: Callable[[np.ndarray, object], np.ndarray]
  save: Callable[[np.ndarray, object], np.ndarray]


same = Op(lambda x, config: x, lambda x, config: x)

# PyTorch's Linear keeps [o, e], our kernels [e, o].
linear = Op(lambda x, config: x.T, lambda x, config: x.T)

# A projection to heads: [h*d, e] <-> [e, h, d]; its bias: [h*d] <-> [h, d].
heads_out = Op(
  lambda x, config: x.T.reshape(x.shape[1], config.num_heads, -1),
  lambda x, config: x.reshape(x.shape[0], -1).T,
)
heads_bias = Op(lambda x, config: x.reshape(config.num_heads, -1), lambda x, config: x.reshape(-1))

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
