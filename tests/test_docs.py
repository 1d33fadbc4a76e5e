"""What the documentation says of the families is what the registry says, and what it shows of them runs."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import transformers

from fsb_jax import encodings, models

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_families_is_up_to_date():
  spec = importlib.util.spec_from_file_location("families", DOCS / "families.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert (DOCS / "families.md").read_text(encoding="utf-8") == module.text(), "run python docs/families.py"
  assert all(f"| `{name}` |" in module.text() for name in models.all_families())


@pytest.mark.slow
def test_what_the_page_of_families_shows_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "families.md").read_text(encoding="utf-8"), re.S)
  (name,) = re.findall(r'from_pretrained\("([^"]+)"', block)
  config = transformers.BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
  )
  transformers.BertForMaskedLM(config).save_pretrained(name)
  encodings.bert_tokenizer_from_characters("今天气不错很好", name)
  names = {}
  exec(block, names)
  assert names["vectors"].shape == (2, 8) and np.isfinite(names["vectors"]).all()
  assert [x.shape for x in names["output"].attentions] == [(2, 2, *[names["ids"].shape[1]] * 2)]
