"""How far scores of classes are from labels, and from each other."""

import jax
import jax.numpy as jnp

from fsb_jax.models.layers import at_least_float32


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """-log softmax(logits)[labels] in at least float32.

  Args:
    logits: `[..., classes]`; a class whose logit is -inf is none (rows that pad a vocabulary).
    labels: int `[...]`, all valid.
    label_smoothing: share of the label's probability that is spread evenly over all classes, the label's own
      included (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; as in `torch.nn.CrossEntropyLoss`).

  Returns:
    `[...]`.
  """
  logits = logits.astype(at_least_float32(logits.dtype))
  # First, and not within the logsumexp alone: a small loss is no difference of two large numbers then.
  logits = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  total = jax.nn.logsumexp(logits, axis=-1)
  # Not taken by index: the gradient of that is a scatter into an array of zeros as large as the logits.
  chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
  loss = total - jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
  if not label_smoothing:
    return loss
  real = ~jnp.isneginf(logits)
  mean = jnp.sum(jnp.where(real, logits, 0), axis=-1) / jnp.sum(real, axis=-1)
  return (1 - label_smoothing) * loss + label_smoothing * (total - mean)


def focal_weight(logits: jax.Array, labels: jax.Array, gamma: float) -> jax.Array:
  """(1 - p) ** gamma of the labels' probabilities: little where the model is sure already.

  Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4; the gradient goes through it.

  Args:
    logits: as in `cross_entropy`.
    labels: int `[...]`, all valid.
    gamma: how strongly; 0 for not at all.

  Returns:
    `[...]`.
  """
  return (-jnp.expm1(-cross_entropy(logits, labels))) ** gamma


def symmetric_divergence(one: jax.Array, other: jax.Array) -> jax.Array:
  """(KL(p‖q) + KL(q‖p)) / 2 of softmax(one) and softmax(other), `[..., classes]` to `[...]`, in at least float32."""
  dtype = at_least_float32(jnp.promote_types(one.dtype, other.dtype))
  log_p, log_q = (jax.nn.log_softmax(logits.astype(dtype), axis=-1) for logits in (one, other))
  # Of a class that neither knows nothing is left; -inf - -inf would be no number.
  difference = jnp.where(jnp.isneginf(log_p) & jnp.isneginf(log_q), 0, log_p - log_q)
  return jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * difference, axis=-1) / 2
