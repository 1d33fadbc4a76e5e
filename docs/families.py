"""Writes families.md, the table of model families, from the registry and the weight tables: python docs/families.py."""

import importlib
from pathlib import Path

from convert_torch.weights import table

from fsb_jax import models

TARGET = Path(__file__).with_name("families.md")
HEADER = """# Model families

Made by `python docs/families.py`. Every family is read from and written to Hub folders (`fsb convert import` and
`export`), runs with its layers stacked (`scan_layers`) or one by one, and trains on any mesh. Every head is compared
with the reference named here: outputs, hidden states, loss and the gradient of every parameter. Heads that
`transformers` lacks (`crf`, `span`, `span_hard`, `biaffine`) are compared with the original's outputs, on BERT.

| family | checkpoints | heads besides `base` | sizes | reference |
|---|---|---|---|---|
"""


def rows():
  """A line for every family."""
  for name, family in sorted(models.all_families().items()):
    about = importlib.import_module(f"fsb_jax.models.families.{name}").__doc__.splitlines()[0].rstrip(".")
    heads = ", ".join(f"`{head}`" for head in family.heads)
    sizes = ", ".join(f"`{size}`" for size in family.sizes)
    reference = "`transformers`" if table(name).in_transformers else "the original's outputs"
    yield f"| `{name}` | {about} | {heads} | {sizes} | {reference} |\n"


def text():
  """The whole file."""
  return HEADER + "".join(rows())


if __name__ == "__main__":
  TARGET.write_text(text(), encoding="utf-8")
