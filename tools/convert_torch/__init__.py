"""Conversion between PyTorch Hub folders and our parameters, in both directions."""

from convert_torch.hub import HubModel, load_hub_folder, save_hub_folder
from convert_torch.sources import load_gguf_tokenizer

__all__ = ["HubModel", "load_gguf_tokenizer", "load_hub_folder", "save_hub_folder"]
