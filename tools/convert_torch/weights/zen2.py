"""ZEN 2: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/zen2/modeling.py.

Its files keep the codes of offsets in every layer, with a row of zeros for the farthest one, and a number that was
never set. The names of the two biases are Transformer-XL's the other way round.
"""

import numpy as np

from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS
from convert_torch.weights._zen_form import STACKS, zen

# Up to 600 characters either way.
OFFSETS = -601, 599


def codes(config) -> np.ndarray:
  """The table of codes, `[1201, head_dim]`."""
  table = config.positions.codes(*OFFSETS, config.head_dim)
  table[0] = 0
  return table


TABLE = Table(
  prefix="bert.",
  rows=(
    *zen(),
    *(
      Row(f"{ours}/layers_{{i}}/attention/{bias}", f"bert.encoder.{theirs}.{{i}}.attention.self.{name}")
      for ours, theirs in STACKS
      for bias, name in (("content_bias", "r_r_bias"), ("offset_bias", "r_w_bias"))
    ),
  ),
  ignore=BUFFERS,
  rename=OLD_NORMS,
  constants={
    f"bert.encoder.{theirs}.{{i}}.attention.self.position_embedding.{name}": make
    for _, theirs in STACKS
    for name, make in (("weights", codes), ("_float_tensor", lambda config: np.zeros(1, np.float32)))
  },
  in_transformers=False,
)
