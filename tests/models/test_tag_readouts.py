"""What taggers say of a row, read on the device, against the definition."""

import itertools

import jax
import numpy as np
import pytest
from torch_reference import QUICK

from fsb_jax import encodings, models

ROWS, LENGTH, WIDTH = 3, 6, 4
NAMES = ("[PAD]", "[START]", "[END]", "O", "PER", "LOC", "ORG")
# Which labels may be answers, of each row.
ALLOWED = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0]])
MASK = (np.arange(LENGTH) < np.array([6, 4, 1])[:, None]).astype(int)


def drawn(*shape):
  return 2 * np.random.default_rng(len(shape)).normal(size=shape)


def said(output):
  function = jax.jit(models.said_by_tagger, static_argnums=3, compiler_options=QUICK)
  return {name: np.asarray(values) for name, values in function(output, MASK, ALLOWED, WIDTH).items()}


def likeliest(logits):
  return [
    [max(np.flatnonzero(allowed), key=lambda label: scores[label]) for scores in row]
    for row, allowed in zip(logits, ALLOWED)
  ]


def test_a_linear_taggers_likeliest_labels():
  logits = drawn(ROWS, LENGTH, len(NAMES))
  assert said(models.TokenClassificationOutput(logits=logits))["predictions"].tolist() == likeliest(logits)
  assert not np.isin(np.argmax(logits, -1)[1], np.flatnonzero(ALLOWED[1])).all()


def test_spans_ends():
  starts, ends = drawn(ROWS, LENGTH, len(NAMES)), drawn(ROWS, LENGTH, len(NAMES))[::-1]
  found = said(models.SpanTaggingOutput(start_logits=starts, end_logits=ends))
  assert (found["starts"].tolist(), found["ends"].tolist()) == (likeliest(starts), likeliest(ends))


def test_a_crfs_likeliest_sequence_of_allowed_labels():
  logits, transitions = drawn(ROWS, LENGTH, len(NAMES)), drawn(len(NAMES), len(NAMES))
  first, last = drawn(2, len(NAMES))
  found = said(models.CrfOutput(logits, transitions, first, last))["predictions"]
  for row, (mask, allowed) in enumerate(zip(MASK, ALLOWED)):
    tokens = int(mask.sum())

    def score(tags, row=row):
      emitted = sum(logits[row, i, tag] for i, tag in enumerate(tags))
      return emitted + first[tags[0]] + last[tags[-1]] + sum(transitions[pair] for pair in itertools.pairwise(tags))

    best = max(itertools.product(np.flatnonzero(allowed), repeat=tokens), key=score)
    assert found[row, :tokens].tolist() == list(best)


@pytest.mark.parametrize("nested", [False, True])
def test_pairs_are_chosen_as_of_all_scores(nested):
  logits = drawn(ROWS, LENGTH, LENGTH, len(NAMES))
  found = said(models.BiaffineOutput(span_logits=logits))
  assert found["pairs"].shape == found["sureness"].shape == (ROWS, LENGTH, WIDTH)
  some = 0
  for row, (mask, allowed) in enumerate(zip(MASK, ALLOWED)):
    tokens = int(mask.sum())
    offsets = np.stack([np.arange(tokens), np.arange(tokens) + 1], -1)
    scores = np.where(allowed, logits[row], -1e9)
    expected = encodings.entities_of_pairs(scores, offsets, NAMES, max_width=WIDTH, nested=nested)
    real = {name: values[row, :tokens] for name, values in found.items()}
    got = encodings.entities_of_surest(real["pairs"], real["sureness"], offsets, NAMES, nested=nested)
    assert got == expected
    some += len(expected)
  assert some > 3
