"""What is read off a model's outputs without parameters: pooled texts, and the probability of options."""

from typing import Literal

import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32
from fsb_jax.models.outputs import BaseOutput

Pooling = Literal["first", "mean", "first_last_mean"]


def pool(output: BaseOutput, attention_mask: jax.Array | None, kind: Pooling = "first") -> jax.Array:
  """One vector for a text.

  Args:
    output: of a model without a head.
    attention_mask: `[batch, length]`, 1 for real tokens; None where all are.
    kind: "first" takes the first token's last hidden state (Gao et al. 2021, SimCSE); "mean" the mean over real
      tokens (Reimers and Gurevych 2019); "first_last_mean" that of the mean of the first and the last layer's outputs
      (Su et al. 2021), which wants the model called with `output_hidden_states=True`.

  Returns:
    `[batch, embed]` in at least float32; zeros for a text without real tokens.

  Raises:
    ValueError: an unknown kind, or hidden states that are not there.
  """
  dtype = at_least_float32(output.last_hidden_state.dtype)
  hidden = output.last_hidden_state.astype(dtype)
  if kind == "first":
    return hidden[:, 0]
  if kind == "first_last_mean":
    if output.hidden_states is None:
      raise ValueError("first_last_mean wants the hidden states; call the model with output_hidden_states=True")
    hidden = (output.hidden_states[1].astype(dtype) + hidden) / 2
  elif kind != "mean":
    raise ValueError(f"unknown pooling {kind!r}; known: first, mean, first_last_mean")
  if attention_mask is None:
    return hidden.mean(axis=1)
  real = attention_mask[..., None] != 0
  return jnp.sum(jnp.where(real, hidden, 0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def cosine_similarity(one: jax.Array, other: jax.Array) -> jax.Array:
  """Cosines of the angles between all vectors, `[rows, embed]` and `[columns, embed]` to `[rows, columns]`.

  As in `torch.nn.CosineSimilarity`, a norm counts as at least 1e-8.
  """
  return unit_vectors(one) @ unit_vectors(other).T


def unit_vectors(vectors: jax.Array) -> jax.Array:
  """Vectors `[..., embed]` divided by their lengths, which count as at least 1e-8."""
  # Not max(norm, 1e-8): the gradient of a norm of zero is no number.
  squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-16))


def option_logits(logits: jax.Array, option_mask: jax.Array, yes_token: jax.Array) -> jax.Array:
  """How much each option of a UniMC row says yes (Yang et al. 2022, https://arxiv.org/abs/2210.08590).

  Args:
    logits: of the vocabulary, `[batch, asked, vocab]`.
    option_mask: bool `[batch, asked]`, where an option's mask token is.
    yes_token: int `[batch]`, the token that says yes.

  Returns:
    `[batch, asked]` in at least float32, -inf where no option is.
  """
  # Not taken by index: see `training.losses.cross_entropy`.
  chosen = jnp.arange(logits.shape[-1]) == yes_token[:, None, None]
  yes = jnp.sum(jnp.where(chosen, logits, 0), axis=-1).astype(at_least_float32(logits.dtype))
  return jnp.where(option_mask, yes, -jnp.inf)


def option_probabilities(logits: jax.Array, option_mask: jax.Array, yes_token: jax.Array) -> jax.Array:
  """Softmax of `option_logits` over a row's options, `[batch, asked]`, 0 where no option is."""
  return jax.nn.softmax(option_logits(logits, option_mask, yes_token), axis=-1, where=option_mask)
