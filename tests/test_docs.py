"""What the documentation says of the families is what the registry says."""

import importlib.util
from pathlib import Path

from fsb_jax import models

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_families_is_up_to_date():
  spec = importlib.util.spec_from_file_location("families", DOCS / "families.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert (DOCS / "families.md").read_text(encoding="utf-8") == module.text(), "run python docs/families.py"
  assert all(f"| `{name}` |" in module.text() for name in models.all_families())
