"""mT5: see `_t5_form`."""

from convert_torch.weights._t5_form import TABLE

__all__ = ["TABLE"]
