"""What the readers of decoders' Hub configs share."""

from collections.abc import Mapping

from fsb_jax.errors import UserError
from fsb_jax.models.layers import ACTIVATIONS


def require_fields(hf: Mapping, names: tuple[str, ...]) -> None:
  """UserError where a config lacks what says its shape."""
  missing = [name for name in names if name not in hf]
  if missing:
    raise UserError(f"config.json lacks {', '.join(missing)}; is it the config of this model?")


def known_activation(field: str, name: str) -> str:
  """An activation's name; UserError where we have none of that name."""
  if name not in ACTIVATIONS:
    raise UserError(
      f"config.json says {field}={name!r}, which fsb_jax does not know; known: {', '.join(sorted(ACTIVATIONS))}"
    )
  return name


def require_multiple(hf: Mapping, size: str, *parts: str) -> None:
  """UserError where a size is no multiple of the number of its parts; all are fields of the config."""
  for name in parts:
    if hf[size] % hf[name]:
      raise UserError(f"config.json says {size}={hf[size]}, which is no multiple of {name}={hf[name]}")
