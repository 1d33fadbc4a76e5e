"""The pieces of the usual PyTorch training script that several benchmarks hold ours against."""


def adamw(model, learning_rate, weight_decay):
  """AdamW that decays neither biases nor norms."""
  import torch

  plain = ("bias", "LayerNorm.weight")
  named = list(model.named_parameters())
  groups = [
    {"params": [p for name, p in named if not name.endswith(plain)], "weight_decay": weight_decay},
    {"params": [p for name, p in named if name.endswith(plain)], "weight_decay": 0.0},
  ]
  return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def batches(examples, tokenizer, max_length, batch_size, **options):
  """A DataLoader of `text` and `label`, tokenised once, each batch padded to its longest row."""
  import transformers
  from torch.utils.data import DataLoader

  encoded = tokenizer([each["text"] for each in examples], truncation=True, max_length=max_length)
  rows = [{**{name: encoded[name][i] for name in encoded}, "labels": each["label"]} for i, each in enumerate(examples)]
  return DataLoader(rows, batch_size, collate_fn=transformers.DataCollatorWithPadding(tokenizer), **options)
