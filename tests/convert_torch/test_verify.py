import json

import pytest
from convert_torch import load_hub_folder
from convert_torch.verify import verify
from test_goldens import ALL, HERE
from tiny_hub import ENCODER_DECODERS, FAMILIES, LM, ORIGINALS, hub_folder

from fsb_jax import models
from fsb_jax.errors import UserError


def test_certificate_of_a_right_and_of_a_wrong_conversion(tmp_path):
  hub_folder(tmp_path / "hub", "roberta", "masked_lm")
  ours = load_hub_folder(tmp_path / "hub", run=models.Run(vocab_multiple=16))
  certificate = verify(tmp_path / "hub", ours, write_to=tmp_path / "certificate.json")
  assert certificate["passed"]
  assert json.loads((tmp_path / "certificate.json").read_text()) == certificate
  assert {(r["dtype"], r["inputs"], r["output"]) for r in certificate["results"]} == {
    (dtype, "random ids", output) for dtype in ("float64", "float32") for output in ("logits", "hidden_states")
  }
  for result in certificate["results"]:
    # Random models 0.3 wide answer with numbers well away from zero: agreement is not that of silence.
    assert 0 < result["max_abs_diff"] <= result["tolerance"] < 1e-3 and result["reference_magnitude"] > 1
  assert max(r["max_abs_diff"] for r in certificate["results"] if r["dtype"] == "float64") < 1e-9
  assert list(certificate["sha256"]) == ["model.safetensors"] and "torch" in certificate["versions"]

  ours.params["encoder"]["layers"]["attention"]["query"]["bias"][1, 2, 3] += 1e-4
  spoilt = verify(tmp_path / "hub", ours)
  failed = {(r["dtype"], r["output"]) for r in spoilt["results"] if not r["passed"]}
  assert not spoilt["passed"] and failed >= {("float64", "logits"), ("float64", "hidden_states")}


DAILY = ("bart", "deberta_v2", "gpt2", "xlnet")


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=[] if name in DAILY else pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_can_be_verified(tmp_path, family):
  hub_folder(tmp_path / "hub", family, LM[family])
  certificate = verify(tmp_path / "hub")
  assert certificate["passed"], certificate["results"]
  states = "decoder_hidden_states" if family in ENCODER_DECODERS else "hidden_states"
  assert {"logits", states} <= {result["output"] for result in certificate["results"]}


@pytest.mark.skipif(not ALL.is_dir(), reason=f"no goldens at {ALL}; set FSB_GOLDENS_DIR")
@pytest.mark.parametrize("family", ORIGINALS)
def test_a_family_that_transformers_lacks_is_not_held_against_another(family):
  folder = next(ALL.glob(f"{ORIGINALS[family]}_*"))
  with pytest.raises(UserError, match=f"transformers has no {family} model with head .* to verify against"):
    verify(folder)


def test_a_head_that_transformers_lacks_is_named():
  with pytest.raises(UserError, match="transformers has no bert model with head crf to verify against"):
    verify(HERE / "tagging_crf", load_hub_folder(HERE / "tagging_crf", num_labels=7))


def test_parameters_that_the_folder_lacks_are_given_to_both_and_listed(tmp_path):
  hub_folder(tmp_path / "hub", "bert", "masked_lm")
  ours = load_hub_folder(tmp_path / "hub", head="multiple_choice")
  certificate = verify(tmp_path / "hub", ours)
  assert certificate["passed"]
  assert certificate["given_our_values"] == [
    "bert.pooler.dense.bias",
    "bert.pooler.dense.weight",
    "classifier.bias",
    "classifier.weight",
  ]


def test_a_damaged_folder_is_one_sentence(tmp_path):
  hub_folder(tmp_path / "hub")
  ours = load_hub_folder(tmp_path / "hub")
  (tmp_path / "hub" / "model.safetensors").write_bytes(b"12345678")
  with pytest.raises(UserError, match="cut short or not a safetensors file"):
    verify(tmp_path / "hub", ours)
