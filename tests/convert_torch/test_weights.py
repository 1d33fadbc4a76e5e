"""The tables against transformers' own classes: every name and shape, for every head, without any numbers."""

import dataclasses
import functools

import pytest
import torch
from convert_torch import engine
from convert_torch.hub import param_shapes
from convert_torch.weights import Row, table
from tiny_hub import EVERY_FAMILY, EVERY_HEAD, HEADS, torch_class, torch_config

from fsb_jax import models
from fsb_jax.errors import UserError

# What `tiny_hub.ALSO` says is there in place of something else.
OTHERWISE = {
  "deberta_v2": dict(share_att_key=False),
  "mt5": dict(feed_forward_proj="relu"),
  "t5": dict(feed_forward_proj="gated-gelu"),
}


@functools.cache
def slots_of(family, head, tie, scan, **changes):
  hf = torch_config(family, head, tie_word_embeddings=tie, **changes)
  hf.tie_word_embeddings = tie  # which T5's does not believe
  with torch.device("meta"):
    theirs = {name: tuple(x.shape) for name, x in torch_class(family, head)(hf).state_dict().items()}
  return our_slots(family, head, hf, scan), theirs


def our_slots(family, head, hf, scan):
  config = models.family(family).config_from_hf(hf.to_dict()).with_run(scan_layers=scan, vocab_multiple=8)
  shapes = param_shapes(models.build(family, config, head, hf.num_labels))
  return engine.slots(table(family), config, shapes, prefixed=head != "base")


# Every day each head is seen in one of the two ways, and the next one in the other.
BOTH_WAYS = [
  pytest.param(*head, way, way, marks=[] if place % 2 == way else pytest.mark.slow)
  for place, head in enumerate(EVERY_HEAD)
  for way in (True, False)
]


@pytest.mark.parametrize("family,head,tie,scan", BOTH_WAYS)
def test_names_and_shapes_are_those_of_transformers(family, head, tie, scan):
  slots, theirs = slots_of(family, head, tie, scan)
  ours = {}
  for slot in slots:
    for name in filter(None, (slot.theirs, slot.otherwise)):
      assert ours.setdefault(name, slot.shape) == slot.shape
  # The decoder's kernel is the token table where they are tied, so it has no slot of its own.
  kernels = ("decoder.weight", "lm_head.weight", "lm_loss.weight")
  tied = {name for name in theirs if name.endswith(kernels)} if tie else set()
  weights = table(family)
  repeated = (*weights.constants, *weights.copies, *weights.untied_copies)
  constant = {spelled for name in repeated for spelled in (name, name.removeprefix(weights.prefix))}
  assert ours == {name: shape for name, shape in theirs.items() if name not in tied | constant}


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_row_is_used_by_some_head(family):
  heads = [head for name, head in EVERY_HEAD if name == family]
  used = {
    slot.row
    for head in heads
    for tie in (True, False)
    for changes in ({}, OTHERWISE.get(family, {}))
    for slot in slots_of(family, head, tie, tie, **changes)[0]
  }
  for head in set(models.family(family).heads) - set(HEADS[family]):
    config = models.family(family).config_from_hf(torch_config(family, "base").to_dict())
    shapes = param_shapes(models.build(family, config, head))
    used |= {slot.row for slot in engine.slots(table(family), config, shapes, prefixed=True)}
  assert [row.ours for row in table(family).rows if row not in used] == []


def test_a_parameter_without_a_row_and_a_row_without_a_parameter_are_reported():
  config = models.family("bert").config_from_hf(torch_config("bert", "base").to_dict())
  shapes = param_shapes(models.build("bert", config))
  whole = table("bert")
  short = dataclasses.replace(whole, rows=whole.rows[1:])
  with pytest.raises(ValueError, match="without a row.*token_embed/embedding"):
    engine.slots(short, config, shapes, prefixed=True)
  long = dataclasses.replace(whole, rows=(*whole.rows, Row("encoder/layers_{i}/gate", "bert.gate.{i}")))
  with pytest.raises(ValueError, match="rows without a parameter.*gate"):
    engine.slots(long, config, shapes, prefixed=True)


def test_a_family_without_a_table_is_named():
  with pytest.raises(UserError, match="no weight table for the nonesuch family"):
    table("nonesuch")
