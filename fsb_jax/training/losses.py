"""Losses, each as (sum, weight) per term, so that accumulation, padding and sharding agree on the mean.

The loss of a batch is the sum over terms of `sum / weight`. Weights come from the batch alone: with several
microbatches they are counted over all of them first. Rows of weight 0 (`batch["weights"]`) fill a batch up and count
for nothing. Labels as in Hugging Face: -100 is ignored.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fsb_jax.encodings import IGNORED, MAX_WIDTH
from fsb_jax.errors import UserError
from fsb_jax.models import option_logits, said_by_tagger
from fsb_jax.models.crf import crf_log_likelihood
from fsb_jax.training import contrastive_losses as contrastive
from fsb_jax.training import extraction_losses as extraction
from fsb_jax.training.cross_entropy import cross_entropy, focal_weight, symmetric_divergence

Batch = Mapping[str, jax.Array]
Terms = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Term:
  """A part of a loss: a weighted mean of values.

  Attributes:
    name: of the term.
    values: (outputs, batch) -> `[batch, ...]`.
    counts: batch -> the weight of every value, of the same shape; one of weight 0 counts for nothing, even if it is no
      number.
    scale: what the term is multiplied by.
  """

  name: str
  values: Callable[[Any, Batch], jax.Array]
  counts: Callable[[Batch], jax.Array]
  scale: float = 1.0

  def weight(self, batch: Batch) -> jax.Array:
    """What the sum is to be divided by."""
    return jnp.sum(of_rows(self.counts(batch), batch))

  def sum(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> jax.Array:
    """The values, weighted and added up; there are no labels to smooth."""
    return self.scale * counted(self.values(outputs, batch), of_rows(self.counts(batch), batch))


def of_rows(counts: jax.Array, batch: Batch) -> jax.Array:
  """Weights `[batch, ...]` with those of the rows in them."""
  counts = counts.astype(jnp.float32)
  return counts * batch["weights"].reshape(-1, *(1,) * (counts.ndim - 1)) if "weights" in batch else counts


def counted(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Values weighted and added up, where those that do not count may be infinite."""
  return jnp.sum(jnp.where(weights > 0, values * weights, 0.0))


@dataclasses.dataclass(frozen=True)
class ClassTerm:
  """A cross-entropy, the part of a loss that one set of labels makes.

  Attributes:
    name: of the term.
    logits: outputs -> `[..., classes]`.
    labels: batch -> int `[...]`; negative ones (ignored, unlabelled) count for nothing.
    scale: what the term is multiplied by.
    focal: gamma of `focal_weight`, which every cross-entropy is multiplied by.
  """

  name: str
  logits: Callable[[Any], jax.Array]
  labels: Callable[[Batch], jax.Array]
  scale: float = 1.0
  focal: float = 0.0

  def weight(self, batch: Batch) -> jax.Array:
    """How many labels count."""
    return jnp.sum(self._kept(batch))

  def sum(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> jax.Array:
    """The cross-entropies of the labels that count, added up."""
    logits, labels = self.logits(outputs), jnp.maximum(self.labels(batch), 0)
    losses = cross_entropy(logits, labels, label_smoothing)
    if self.focal:
      losses *= focal_weight(logits, labels, self.focal)
    return self.scale * counted(losses, self._kept(batch))

  def divergence(self, one: Any, other: Any, batch: Batch) -> jax.Array:
    """How far two passes' predictions are from each other where labels count, added up."""
    return self.scale * counted(symmetric_divergence(self.logits(one), self.logits(other)), self._kept(batch))

  def _kept(self, batch: Batch) -> jax.Array:
    """Weight of every label: 0 where it is negative or its row fills the batch up."""
    return of_rows(self.labels(batch) >= 0, batch)


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss of one head.

  Attributes:
    terms: what it is the sum of.
    answers: (outputs, batch) -> what rows are answered with and what is right, by name, `[batch, ...]` each.
  """

  terms: tuple[ClassTerm | Term, ...]
  answers: Callable[[Any, Batch], Terms] = lambda outputs, batch: chosen(outputs.logits, batch["labels"])

  @property
  def classifies(self) -> bool:
    """Whether all of it is about classes, so that labels can be smoothed and two passes compared."""
    return all(isinstance(term, ClassTerm) for term in self.terms)

  def sums(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> Terms:
    """The sum of each term."""
    return {term.name: term.sum(outputs, batch, label_smoothing) for term in self.terms}

  def weights(self, batch: Batch) -> Terms:
    """The weight of each term."""
    return {term.name: term.weight(batch) for term in self.terms}

  def __call__(
    self, outputs: Any, batch: Batch, weights: Terms | None = None, label_smoothing: float = 0.0
  ) -> jax.Array:
    """The loss; `weights` are those of a larger batch that this one is a part of."""
    return self._mean(self.sums(outputs, batch, label_smoothing), batch, weights)

  def divergence(self, one: Any, other: Any, batch: Batch, weights: Terms | None = None) -> jax.Array:
    """`symmetric_divergence` of two passes over the batch, averaged and weighted as the loss is."""
    return self._mean({term.name: term.divergence(one, other, batch) for term in self.terms}, batch, weights)

  def _mean(self, sums: Terms, batch: Batch, weights: Terms | None) -> jax.Array:
    weights = self.weights(batch) if weights is None else weights
    return sum(value / jnp.maximum(weights[name], 1) for name, value in sums.items())


def chosen(logits: jax.Array, labels: jax.Array) -> Terms:
  """Classes as answers: `labels`, and `logits`, or `predictions` (their argmax) where a row has several labels.

  A vocabulary's scores at many places would be too much to hand to the host.
  """
  return {**({"predictions": jnp.argmax(logits, -1)} if labels.ndim > 1 else {"logits": logits}), "labels": labels}


def _option_logits(outputs: Any, batch: Batch) -> jax.Array:
  """How much each of a row's options says yes, `[batch, asked]`."""
  return option_logits(outputs.logits, batch["option_mask"], batch["yes_token"])


def _option_losses(outputs: Any, batch: Batch) -> jax.Array:
  """Cross-entropy of a row's options, `[batch]`."""
  return cross_entropy(_option_logits(outputs, batch), jnp.maximum(batch["option_label"], 0))


def with_focal(objective: Objective, gamma: float) -> Objective:
  """The objective with every cross-entropy multiplied by `focal_weight`.

  Args:
    objective: one of classes.
    gamma: 2 is usual; 0 changes nothing.

  Raises:
    UserError: gamma is no such number, or the objective is not about classes alone.
  """
  # Below 1 the gradient of a label that is certain would be infinite.
  if gamma != 0 and not 1 <= gamma < float("inf"):
    raise UserError(f"the focal loss's gamma must be 0 or at least 1, not {gamma}")
  _require_classes(objective, "a focal loss")
  return Objective(tuple(dataclasses.replace(term, focal=gamma) for term in objective.terms))


def with_smoothing_of_all(objective: Objective, share: float, places: Callable[[Batch], jax.Array]) -> Objective:
  """Labels smoothed as the original's taggers do: ignored ones are smoothed too, each towards all classes alike.

  It differs from `label_smoothing` only where `places` holds ignored labels: there the share that is spread evenly is a
  mean over more tokens than the rest.

  Args:
    objective: one of classes.
    share: of a label's probability that is spread over all classes, the label's own included.
    places: batch -> weights of the form of the labels, 1 for the tokens (or pairs of tokens) of the text.

  Raises:
    UserError: the objective is not about classes alone.
  """
  _require_classes(objective, "smoothing of labels")

  def evenly(term):
    def values(outputs, batch):
      return cross_entropy(term.logits(outputs), jnp.maximum(term.labels(batch), 0), label_smoothing=1.0)

    return Term(f"{term.name}_evenly", values, places, term.scale * share)

  labelled = tuple(dataclasses.replace(term, scale=term.scale * (1 - share)) for term in objective.terms)
  return Objective(labelled + tuple(evenly(term) for term in objective.terms))


def _require_classes(objective: Objective, what: str) -> None:
  if not objective.classifies:
    names = ", ".join(term.name for term in objective.terms if not isinstance(term, ClassTerm))
    raise UserError(f"{what} is for losses of classes, which {names} is not; choose another head or leave it out")


def _label(name: str) -> Callable[[Batch], jax.Array]:
  return lambda batch: batch[name]


def _position(name: str) -> Callable[[Batch], jax.Array]:
  """Labels that are positions; those beyond the row are ignored."""
  return lambda batch: jnp.where(batch[name] < batch["input_ids"].shape[1], batch[name], IGNORED)


def _all_of(cells: Callable[[Batch], jax.Array]) -> Callable[[Batch], jax.Array]:
  """Counts of a mean over as many values as an array of the batch has."""
  return lambda batch: jnp.ones(cells(batch).shape)


def _every_row(batch: Batch) -> jax.Array:
  """Counts of a mean over rows."""
  return jnp.ones(len(batch["input_ids"]))


def _text_mask(batch: Batch) -> jax.Array:
  """Which positions hold tokens, (batch, length): all of them where the batch does not say."""
  return batch["attention_mask"] if "attention_mask" in batch else jnp.ones_like(batch["input_ids"])


def _of_text(name: str) -> Callable[[Batch], jax.Array]:
  """Labels of tokens; those of padding are ignored."""
  return lambda batch: jnp.where(_text_mask(batch) == 1, batch[name], IGNORED)


def _said(outputs: Any, batch: Batch) -> Terms:
  """A tagger's answers, and which positions hold tokens."""
  mask = _text_mask(batch)
  return {**said_by_tagger(outputs, mask, batch["label_mask"], MAX_WIDTH), "attention_mask": mask}


_class_terms = (ClassTerm("classes", lambda outputs: outputs.logits, _label("labels")),)
_classes = Objective(_class_terms)

_span = Objective(
  (
    # The mean of the two.
    ClassTerm("start_positions", lambda outputs: outputs.start_logits, _position("start_positions"), 0.5),
    ClassTerm("end_positions", lambda outputs: outputs.end_logits, _position("end_positions"), 0.5),
  ),
  # The mask says which of the scores are of a row's own tokens.
  answers=lambda outputs, batch: {
    "start_logits": outputs.start_logits, "end_logits": outputs.end_logits, "attention_mask": _text_mask(batch),
  },
)

_entities = Objective(
  (
    # The mean of the two; label 0, nothing begins or ends here, is one of the classes.
    ClassTerm("starts", lambda outputs: outputs.start_logits, _of_text("start_positions"), 0.5),
    ClassTerm("ends", lambda outputs: outputs.end_logits, _of_text("end_positions"), 0.5),
  ),
  answers=_said,
)


def _crf_loss(outputs: Any, batch: Batch) -> jax.Array:
  return -crf_log_likelihood(
    outputs.logits, batch["labels"], _text_mask(batch),
    outputs.transitions, outputs.start_transitions, outputs.end_transitions,
  )  # fmt: skip


def _infill_losses(outputs: Any, batch: Batch) -> jax.Array:
  """Of the labels of what is read: cross-entropies, or squares where they are numbers."""
  logits, labels = outputs.encoder_logits, jnp.maximum(batch["encoder_labels"], 0)
  losses = cross_entropy(logits, labels) if logits.ndim == 3 else jnp.square(logits - labels)
  return outputs.encoder_loss_weight * losses


def _infill_counts(batch: Batch) -> jax.Array:
  """Labels below zero count for nothing, others as the batch says: by their class, or all alike."""
  return (batch["encoder_labels"] >= 0) * batch.get("encoder_weights", 1.0)


def _pairs(batch: Batch) -> jax.Array:
  """Labels of the pairs of tokens in the band; label 0 is no class but padding."""
  labels = batch["span_labels"]
  return jnp.where((batch["span_mask"] == 1) & (labels != 0), labels, IGNORED)


OBJECTIVES: dict[str, Objective] = {
  "sequence_classification": _classes,
  "multiple_choice": _classes,
  "token_classification": Objective(_class_terms, answers=_said),
  "masked_lm": Objective((ClassTerm("masked_lm", lambda outputs: outputs.logits, _label("labels")),)),
  # Each position is asked for the next one's token.
  "causal_lm": Objective(
    (ClassTerm("causal_lm", lambda outputs: outputs.logits[:, :-1], lambda batch: batch["labels"][:, 1:]),)
  ),
  # Those of `encodings.batch_unimc`: the original's words, and the right option among a row's.
  "unimc": Objective(
    (
      ClassTerm("masked_lm", lambda outputs: outputs.logits, _label("labels")),
      Term("options", _option_losses, lambda batch: batch["option_label"] >= 0),
    ),
    answers=lambda outputs, batch: chosen(_option_logits(outputs, batch), batch["option_label"]),
  ),
  "tcbert": Objective(
    (
      ClassTerm("masked_lm", lambda outputs: outputs.prediction_logits, _label("labels")),
      ClassTerm("classes", lambda outputs: outputs.logits, _label("class_label")),
    )
  ),
  # Of the encoder alone: row i and row i + batch / 2 are a pair, for SimCSE the same text under two dropouts. They stay
  # together in interleaved microbatches, as long as those divide the half.
  "contrastive": Objective((Term("pairs", contrastive.pair_losses, contrastive.pair_counts),)),
  # Row i is a text and its image; the temperature is the model's.
  "clip": Objective(
    (
      Term("texts", contrastive.text_losses, _every_row, 0.5),
      Term("images", contrastive.image_losses, _every_row, 0.5),
    )
  ),
  "next_sentence": Objective((ClassTerm("next_sentence", lambda outputs: outputs.logits, _label("labels")),)),
  "pretraining": Objective(
    (
      ClassTerm("masked_lm", lambda outputs: outputs.prediction_logits, _label("labels")),
      ClassTerm("next_sentence", lambda outputs: outputs.seq_relationship_logits, _label("next_sentence_label")),
    )
  ),
  "sentence_order": Objective(
    (
      ClassTerm("masked_lm", lambda outputs: outputs.prediction_logits, _label("labels")),
      ClassTerm("sentence_order", lambda outputs: outputs.sop_logits, _label("sentence_order_label")),
    )
  ),
  "lm": Objective((ClassTerm("lm", lambda outputs: outputs.logits, _label("labels")),)),
  # The text that is written; the decoder reads it one token late, see `encodings.shift_right`.
  "conditional_generation": Objective(
    (ClassTerm("conditional_generation", lambda outputs: outputs.logits, _label("labels")),)
  ),
  # One logit is that of two classes, the other's being 0. Padding is not asked about.
  "replaced_tokens": Objective(
    (
      ClassTerm(
        "replaced_tokens",
        lambda outputs: jnp.stack([jnp.zeros_like(outputs.logits), outputs.logits], -1),
        _of_text("labels"),
      ),
    )
  ),
  "ubert": Objective(
    (
      Term("cells", extraction.ubert_cells, _all_of(lambda batch: batch["span_labels"]), 1000.0),
      Term("labels", extraction.ubert_labels, _all_of(lambda batch: batch["span_labels"][:, :, 0, 0]), 10.0),
      Term("spans", extraction.ubert_spans, _all_of(lambda batch: batch["span_labels"][:, 0]), 10.0),
    )
  ),
  "uniex": Objective(
    (
      Term("index", extraction.uniex_index, _all_of(lambda batch: batch["span_labels"][..., 0]), 1e5),
      Term(
        "types",
        extraction.uniex_types,
        _all_of(lambda batch: extraction.between_spans(batch["span_labels"], batch)),
        1e5,
      ),
    )
  ),
  "text_infill": Objective(
    (
      Term("encoder", _infill_losses, _infill_counts),
      ClassTerm("lm", lambda outputs: outputs.logits, _label("labels")),
    )
  ),
  "question_answering": _span,
  "question_answering_simple": _span,
  "crf": Objective((Term("crf", _crf_loss, lambda batch: jnp.ones(batch["labels"].shape[:1])),), _said),
  "span": _entities,
  "span_hard": _entities,
  "biaffine": Objective((ClassTerm("pairs", lambda outputs: outputs.span_logits, _pairs, 10.0),), _said),
}
