"""Families: which Hub configs we read, and the modules they become. Files in `families/` are found, not listed."""

import dataclasses
import functools
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Mapping

import flax.linen as nn

from fsb_jax.errors import UserError
from fsb_jax.models.config import TransformerConfig
from fsb_jax.models.encoder import EncoderModel
from fsb_jax.models.heads import HEADS, Head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One kind of checkpoint.

  Attributes:
    name: how users and files call it.
    model_type: `model_type` in a Hub config; the original's own, `fengshen_model_type`, has "fengshen-" before it.
    class_prefix: what its classes begin with ("Bert" in "BertForMaskedLM").
    config_from_hf: reads a Hub config (a dict), raising UserError on options we lack.
    config_to_hf: the Hub fields that describe a config; undoes `config_from_hf`.
    sizes: known shapes by name.
    classes: head name -> its class, where it is not `class_prefix` and what other families call it.
    heads: head name -> head module; every family also has "base", no head at all.
    reads: whether a Hub config of this `model_type` is this family's, where several share one.
    model: makes the module of a config and a head.
  """

  name: str
  model_type: str
  class_prefix: str
  config_from_hf: Callable[[Mapping], TransformerConfig]
  config_to_hf: Callable[[TransformerConfig], dict]
  sizes: Mapping[str, TransformerConfig]
  heads: Mapping[str, Callable[..., Head]] = dataclasses.field(default_factory=lambda: HEADS)
  classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  model: Callable[..., nn.Module] = EncoderModel
  reads: Callable[[Mapping], bool] = lambda hf: True

  def architecture(self, head: str) -> str:
    """The class a Hub config names for `head`."""
    return self.classes.get(head) or _CLASSES.get(head) or self.class_prefix + _CLASS_SUFFIX[head]

  def in_transformers(self, head: str) -> bool:
    """Whether the class of `head` is one that transformers might have, and not the original code's own."""
    return head not in _CLASSES

  @property
  def architectures(self) -> dict[str, str]:
    """The head of every class that is read; where heads share a class, the first of them, and any before "base"."""
    also = {name: head for name, head in _ALSO_READ.items() if head in self.heads}
    return also | {self.architecture(head): head for head in ("base", *reversed(self.heads))}

  def head_of(self, architecture: str) -> str:
    """The head of a class name; UserError lists the known ones."""
    known = self.architectures
    if architecture not in known:
      raise UserError(
        f"{architecture} is not a head of the {self.name} family that fsb_jax knows; pass head= with one of "
        f"{', '.join(['base', *self.heads])}"
      )
    return known[architecture]


_CLASS_SUFFIX = {
  "base": "Model",
  "masked_lm": "ForMaskedLM",
  "pretraining": "ForPreTraining",
  "sentence_order": "ForPreTraining",
  "replaced_tokens": "ForPreTraining",
  "causal_lm": "ForCausalLM",
  "conditional_generation": "ForConditionalGeneration",
  "encoder": "EncoderModel",
  "projection": "ModelWithProjection",
  "lm": "LMHeadModel",
  "next_sentence": "ForNextSentencePrediction",
  "sequence_classification": "ForSequenceClassification",
  "token_classification": "ForTokenClassification",
  "multiple_choice": "ForMultipleChoice",
  "question_answering": "ForQuestionAnswering",
  "question_answering_simple": "ForQuestionAnsweringSimple",
}
# Heads of the original code, whose classes are named alike on every encoder.
_CLASSES: dict[str, str] = {
  "tcbert": "TCBertModel",
  "ubert": "UbertModel",
  "uniex": "UniEXBertModel",
  "crf": "BertCrf",
  "span": "BertSpan",
  "span_hard": "BertSpan",
  "biaffine": "BertBiaffine",
  "text_infill": "BartForTextInfill",
}
# Classes of the original code that are heads of transformers' by another name.
_ALSO_READ = {"BertLinear": "token_classification"}


@functools.cache
def all_families() -> dict[str, Family]:
  """Every family by name."""
  package = importlib.import_module("fsb_jax.models.families")
  modules = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
  return {module.FAMILY.name: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


def family(name: str) -> Family:
  """The family called `name`."""
  if name not in all_families():
    raise UserError(f"unknown model family {name!r}; known: {', '.join(sorted(all_families()))}")
  return all_families()[name]


def family_of_hub_config(hf: Mapping) -> Family:
  """The family of a Hub config."""
  model_type = hf.get("model_type")
  # What the original says of its own classes comes first: transformers' field may be empty beside it.
  # Capitals tell only the original's T5 from T5.
  for named, form in itertools.product((hf.get("fengshen_model_type"), model_type), (str, str.lower)):
    for candidate in all_families().values():
      if named and form(candidate.model_type) == form(named.removeprefix("fengshen-")) and candidate.reads(hf):
        return candidate
  # The original's T5 is written in capitals.
  known = ", ".join(sorted({f.model_type for f in all_families().values()}, key=str.lower))
  raise UserError(f"config.json says model_type {model_type!r}, which fsb_jax does not know; known: {known}")


def updated(hf_config: Mapping, fields: Mapping) -> dict:
  """A Hub config with other values of some fields; what `fields` does not name stays, in nested configs too."""
  nested = {
    name: updated(hf_config.get(name) or {}, value) for name, value in fields.items() if name.endswith("_config")
  }
  return {**hf_config, **fields, **nested}


def sized(family_name: str, size: str, **run) -> TransformerConfig:
  """The config of a named size, with run choices replaced by `run`."""
  sizes = family(family_name).sizes
  if size not in sizes:
    raise UserError(f"unknown size {size!r} of the {family_name} family; known: {', '.join(sizes)}")
  return sizes[size].with_run(**run)


def build(family_name: str, config: TransformerConfig, head: str = "base", num_labels: int = 2) -> nn.Module:
  """The module of a family with a head."""
  chosen = family(family_name)
  if head != "base" and head not in chosen.heads:
    raise UserError(f"the {family_name} family has no head {head!r}; known: {', '.join(['base', *chosen.heads])}")
  head_module = None if head == "base" else chosen.heads[head](config=config, num_labels=num_labels)
  return chosen.model(config=config, head=head_module)
