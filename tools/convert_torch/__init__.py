"""Conversion between PyTorch Hub folders and our parameters, in both directions."""

from convert_torch.diffusers_folder import DiffusersModel, TextEncoder, load_diffusers_folder, save_diffusers_folder
from convert_torch.hub import HubModel, hub_head, load_hub_folder, save_hub_folder
from convert_torch.single_file import load_single_file, save_single_file
from convert_torch.sources import load_gguf_tokenizer

__all__ = [
  "DiffusersModel",
  "HubModel",
  "TextEncoder",
  "hub_head",
  "load_diffusers_folder",
  "load_gguf_tokenizer",
  "load_hub_folder",
  "load_single_file",
  "save_diffusers_folder",
  "save_hub_folder",
  "save_single_file",
]
