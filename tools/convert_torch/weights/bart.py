"""BART: see `_bart_form`."""

from convert_torch.weights import Table
from convert_torch.weights._bart_form import COPIES, rows

TABLE = Table(prefix="model.", rows=rows(), copies=COPIES)
