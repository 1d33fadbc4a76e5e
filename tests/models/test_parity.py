"""Every head of every family against transformers: outputs, hidden states, loss and the gradient of every parameter."""

import itertools
import re

import jax
import numpy as np
import pytest
from tiny_hub import ENCODER_DECODERS, EVERY_HEAD, FAMILIES, LM
from torch_reference import make_batch, make_pair, run_ours, run_torch

from fsb_jax import models

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
UNTIED = [(family, LM[family], False) for family in FAMILIES]
# Gradients that are zero in theory, for softmax does not see what is added to all scores at once: of keys' biases, and
# of biases that shift the score of every choice or every token alike.
ALWAYS_ZERO = r".*attention/(distance_|global_)?key/bias"
# It is in the files, and nobody trains it.
FIXED_BIAS = r"head/lm/bias"
# A class is read from the first token. Global, as it is unless told otherwise, it attends by projections of its own,
# and nothing reads what the last layer's others do.
LOCAL_OF_THE_LAST_LAYER = r"encoder/layers_2/attention/(query|key|value)/.*"
SPAN_ZEROS = r"head/span/bias|encoder/final_norm/bias|encoder/(layers|group)_2/mlp_norm/bias"
ALWAYS_ZERO_OF = {
  "multiple_choice": r"head/(summary_)?classifier/bias",
  "conditional_generation": FIXED_BIAS,
  "question_answering": SPAN_ZEROS,
  "question_answering_simple": SPAN_ZEROS,
  ("roformer", "multiple_choice"): r"encoder/layers_2/mlp_norm/bias",
  ("longformer", "sequence_classification", "default inputs"): LOCAL_OF_THE_LAST_LAYER,
  ("longformer", "multiple_choice", "default inputs"): LOCAL_OF_THE_LAST_LAYER,
  # Without a query stream, and without segments.
  "xlnet": r"mask_embed|encoder/.*/attention/segment_(bias|embed)",
}
# transformers folds the mask of choices, asks masks which tokens are real, and shows a decoder what its encoder sees:
# two dimensions.
PADDING_MASKS_ONLY = {"multiple_choice", "replaced_tokens", "deberta_v2", "longformer", "xlnet", *ENCODER_DECODERS}
EVERY_MODEL = [(family, head, True) for family, head in EVERY_HEAD] + UNTIED


def excess(ours, reference, tolerance):
  """By how much the worst element is off beyond `tolerance` times max(1, |reference|)."""
  assert ours.shape == reference.shape
  return float((np.abs(ours - reference) - tolerance * np.maximum(1, np.abs(reference))).max())


def check(
  family, head, tied, *, dtype="float64", scan=True, mask="padding", explicit=True, remat="none", seed=0, **changes
):
  run = dict(scan_layers=scan, remat=remat)
  with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
    pair = make_pair(family, head, dtype=dtype, run=run, tie_word_embeddings=tied, **changes)
    batch = make_batch(pair, mask=mask, explicit=explicit, seed=seed)
    theirs, ours = run_torch(pair, batch), run_ours(pair, batch)
  expected, got = (models.flatten(x.pop("gradients")) for x in (theirs, ours))
  assert ours.keys() == theirs.keys() and got.keys() == expected.keys()
  ours, theirs = {**ours, **got}, {**theirs, **expected}
  assert {name for name, x in ours.items() if x.dtype != dtype} == set()
  wrong = {name: excess(ours[name], theirs[name], TOLERANCE[dtype]) for name in ours}
  assert {name: by for name, by in wrong.items() if by > 0} == {}
  # Agreement on nothing would prove nothing.
  silent = {name for name, x in theirs.items() if np.abs(x).max() < 1e-6}
  inputs = "all inputs" if explicit else "default inputs"
  known = (ALWAYS_ZERO_OF.get(key) for key in (head, family, (family, head), (family, head, inputs)))
  zero = "|".join([ALWAYS_ZERO, *filter(None, known)])
  assert {name for name in silent if not re.fullmatch(zero, name)} == set()


def everyday_cases():
  """Every model once, the other choices taking turns so that each meets each family; most heads are slow."""
  turns = itertools.cycle(
    [
      dict(scan=True, mask="padding"),
      dict(scan=False, mask="dense"),
      dict(scan=True, mask="dense", remat="full"),
      dict(scan=False, mask="padding", explicit=False),
      dict(scan=True, mask="none", explicit=False, remat="dots_saveable"),
      dict(scan=False, mask="padding", remat="full"),
      dict(scan=True, mask="padding", explicit=False),
    ]
  )
  daily = {(family, LM[family], True) for family in FAMILIES} | {("bert", "sequence_classification", True)}
  for model, choices in zip(EVERY_MODEL, turns):
    if PADDING_MASKS_ONLY & {*model} and choices["mask"] == "dense":
      choices = {**choices, "mask": "padding"}
    name = "-".join([*map(str, model), *(f"{k}={v}" for k, v in choices.items())])
    yield pytest.param(model, choices, id=name, marks=[] if model in daily else pytest.mark.slow)


@pytest.mark.parametrize("model,choices", list(everyday_cases()))
def test_float64(model, choices):
  check(*model, **choices)


@pytest.mark.parametrize(
  "model,choices",
  [
    (("bert", "pretraining", True), dict(scan=True, mask="dense")),
    (("megatron_bert", "masked_lm", False), dict(scan=False, mask="padding")),
    (("roberta", "token_classification", True), dict(scan=True, mask="padding", explicit=False)),
  ],
)
def test_float32(model, choices):
  check(*model, **choices, dtype="float32")


@pytest.mark.parametrize(
  "changes",
  [
    dict(share_att_key=False),
    dict(pos_att_type=["c2p"], norm_rel_ebd="none", position_buckets=-1, max_relative_positions=6),
    dict(pos_att_type="p2c", share_att_key=False, conv_kernel_size=0, position_biased_input=False, type_vocab_size=0),
  ],
  ids=lambda changes: "-".join(changes),
)
def test_forms_of_deberta(changes):
  check("deberta_v2", "masked_lm", True, **changes)


@pytest.mark.parametrize("changes", [dict(rotary_value=True), dict(embedding_size=None)], ids=str)
def test_forms_of_roformer(changes):
  check("roformer", "masked_lm", True, scan=False, **changes)


def test_an_electra_with_embeddings_as_wide_as_its_layers():
  check("electra", "masked_lm", True, embedding_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("mask,explicit", [("padding", True), ("dense", False), ("none", False)])
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("family,head,tied", EVERY_MODEL)
def test_everything(family, head, tied, scan, mask, explicit):
  if PADDING_MASKS_ONLY & {family, head} and mask == "dense":
    pytest.skip("transformers takes two dimensions only, to fold those of choices or to know which tokens are real")
  check(family, head, tied, scan=scan, mask=mask, explicit=explicit, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("family,head,tied", EVERY_MODEL)
def test_everything_in_float32(family, head, tied):
  check(family, head, tied, dtype="float32", scan=True, mask="padding", explicit=True, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["full", "dots_saveable", "dots_with_no_batch_dims_saveable"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_remat(family, remat, scan):
  check(family, LM[family], True, scan=scan, remat=remat)
