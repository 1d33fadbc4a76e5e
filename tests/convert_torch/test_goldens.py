"""Folders that older versions of transformers wrote, against what PyTorch computed from them then."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from convert_torch import load_hub_folder
from tiny_hub import FAMILIES, assert_close, our_outputs

from fsb_jax import models

HERE = Path(__file__).resolve().parents[1] / "goldens"
ALL = Path(os.environ.get("FSB_GOLDENS_DIR", HERE.parents[2] / "shared" / "goldens"))
NAMES = {family: sorted(ALL.glob(f"hf_{family}_*")) for family in FAMILIES}
# hf_bert_* are BERT's alone: the other families' names do not begin so.
# transformers 4.30 gave padding in DeBERTa an output of zero.
FILLS = {"deberta_v2": "zeroed"}


def check(folder, scan_layers):
  hub = load_hub_folder(folder, run=models.Run(scan_layers=scan_layers))
  assert hub.newly_initialised == [] and hub.unused == []
  fill = FILLS.get(hub.family, hub.config.mask_fill)
  hub = dataclasses.replace(hub, config=dataclasses.replace(hub.config, mask_fill=fill))
  arrays, expected = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
  names = models.input_names(models.build(hub.family, hub.config, hub.head, hub.num_labels))
  ours = our_outputs(hub, {name: arrays[name] for name in names if name in arrays})
  compared = 0
  for name in expected.files:
    field, _, layer = name.partition(".")
    if field in ours:
      assert_close(np.asarray(ours[field][int(layer)] if layer else ours[field]), expected[name])
      compared += 1
  assert compared > 0


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", ["hf_bert_mlm", "hf_megatron_bert_base"])
def test_goldens_kept_here(name, scan_layers):
  check(HERE / name, scan_layers)


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize("folder", [f for folders in NAMES.values() for f in folders], ids=lambda folder: folder.name)
def test_all_goldens(folder):
  check(folder, scan_layers=True)
