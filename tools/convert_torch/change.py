"""A model written otherwise: in another family's layout, with more or fewer tokens."""

import dataclasses

from convert_torch.hub import HubModel
from fsb_jax import models
from fsb_jax.errors import UserError

# What config.json says in every layout; the rest is said by the family.
_EVERYWHERE = ("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "num_labels", "torch_dtype")


def to_family(model: HubModel, family: str) -> HubModel:
  """The same model in the layout of another family; UserError where that one cannot say what the model is."""
  if family == model.family:
    return model
  model_type = models.family(model.family).model_type
  target = models.family(family)
  if target.model_type != model_type:
    layouts = sorted(name for name, each in models.all_families().items() if each.model_type == model_type)
    raise UserError(f"a {model.family} model cannot be written as {family}; its layouts are {', '.join(layouts)}")
  config = dataclasses.replace(target.config_from_hf(target.config_to_hf(model.config)), run=model.config.run)
  fields = [field.name for field in dataclasses.fields(config)]
  lost = [name for name in fields if getattr(config, name) != getattr(model.config, name)]
  if lost:
    raise UserError(f"this {model.family} model cannot be written as {family}, which has no other {', '.join(lost)}")
  kept = {name: value for name, value in model.hf_config.items() if name in _EVERYWHERE}
  return dataclasses.replace(model, family=family, hf_config=kept)


def to_vocabulary(model: HubModel, size: int) -> HubModel:
  """The model with `size` tokens: new ones are the mean of the old, see `models.resize_vocabulary`."""
  if size < 1:
    raise UserError(f"vocab_size={size} leaves no token; give how many the model is to know")
  config = dataclasses.replace(model.config, vocab_size=size)
  boxed = models.abstract_params(models.build(model.family, config, model.head, model.num_labels))
  params = models.resize_vocabulary(model.params, boxed, model.config.vocab_size)
  return dataclasses.replace(model, config=config, params=params)
