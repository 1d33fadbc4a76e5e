"""Writes families.md, the table of model families, from the registry and the weight tables: python docs/families.py."""

import importlib
from pathlib import Path

from convert_torch.weights import table

from fsb_jax import models

TARGET = Path(__file__).with_name("families.md")
HEADER = """# Model families

Made by `python docs/families.py`. Every family and every head is read from and written to Hub folders (`fsb convert
import` and `export`), runs with its layers stacked (`scan_layers`) or one by one, and trains on any mesh.

| family | checkpoints | sizes |
|---|---|---|
"""
HEADS = """
## What an encoder gives

```python
import fsb_jax
from fsb_jax import models

loaded = fsb_jax.from_pretrained("IDEA-CCNL/Erlangshen-SimCSE-110M-Chinese", head="base")
rows = loaded.tokenizer(["今天天气不错", "今天天气很好"], padding=True, return_tensors="np")
ids, mask = rows["input_ids"], rows["attention_mask"]
output = loaded.model.apply({"params": loaded.params}, ids, mask, output_hidden_states=True, output_attentions=True)
vectors = models.pool(output, mask, "first")  # as SimCSE does; also "mean" and "first_last_mean"
models.cosine_similarity(vectors, vectors)
```

`output.attentions` are every layer's probabilities before dropout, `[batch, heads, query, key]`. `from_pretrained(...,
vocab_size=21200)` adds tokens, each as the mean of the others, or drops those at the end. `[batch, query, key]` masks
say who sees whom, but for models with a window and XLNet, which has `perm_mask`. What the original computes in ways of
its own is listed in [quirks.md](quirks.md).

## Heads, and what each is compared with

**T**: `transformers`, in float64 on both sides: outputs, hidden states, attentions, loss and the gradient of every
parameter at 1e-9. **O**: what the original code computed: outputs, loss and gradients at 1e-4 (and its modules in
float64 where PyTorch has them). **N**: names and shapes of its tensors; the head itself is compared on `bert`. Empty:
the family has no such head.

UniMC needs no head of its own: it is a `masked_lm` with rows, loss and answers of its own (`fsb_jax.encodings`), and is
compared with the original on `bert`, `megatron_bert`, `deberta_v2` and `albert`.

"""
# Families on which the heads of the original code are compared with what it computed.
COMPARED = {"tcbert": ("bert", "megatron_bert"), "text_infill": ("bart",)}


def families():
  """A line for every family."""
  for name, family in sorted(models.all_families().items()):
    about = importlib.import_module(f"fsb_jax.models.families.{name}").__doc__.splitlines()[0].rstrip(".")
    sizes = ", ".join(f"`{size}`" for size in family.sizes)
    yield f"| `{name}` | {about} | {sizes} |\n"


def status(name, head):
  """What a head of a family is compared with."""
  family = models.family(name)
  if head != "base" and head not in family.heads:
    return ""
  if not family.in_transformers(head):
    return "O" if name in COMPARED.get(head, ("bert",)) else "N"
  # Of this one nothing was recorded; its layer is also that of `pretraining`.
  return "T" if table(name).in_transformers else "N" if head == "next_sentence" else "O"


def heads():
  """The table of heads, a row for each."""
  names = sorted(models.all_families())
  every = dict.fromkeys(["base", *(head for name in names for head in models.family(name).heads)])
  rows = [["", *names], *([f"`{head}`", *(status(name, head) for name in names)] for head in every)]
  rows.insert(1, ["---"] * len(rows[0]))
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def text():
  """The whole file."""
  return HEADER + "".join(families()) + HEADS + heads()


if __name__ == "__main__":
  TARGET.write_text(text(), encoding="utf-8")
