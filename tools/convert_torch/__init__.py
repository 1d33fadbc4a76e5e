"""Conversion between PyTorch Hub folders and our parameters, in both directions."""

from convert_torch.hub import HubModel, load_hub_folder, save_hub_folder

__all__ = ["HubModel", "load_hub_folder", "save_hub_folder"]
