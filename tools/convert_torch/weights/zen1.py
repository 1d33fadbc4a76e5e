"""ZEN 1: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/zen1/modeling.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, OLD_NORMS
from convert_torch.weights._zen_form import zen

TABLE = Table(prefix="bert.", rows=zen(), ignore=BUFFERS, rename=OLD_NORMS, in_transformers=False)
