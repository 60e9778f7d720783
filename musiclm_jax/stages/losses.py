"""Losses of the stages: cross-entropy over the codes of each position's level."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLosses(NamedTuple):
    """Unweighted losses of each position, float32 [b, t, q]."""

    cross_entropy: jax.Array  # nats, including label smoothing
    log_normalizer: jax.Array  # log of the sum of exp(logits); its square is the z-loss (ST-MoE, arXiv 2202.08906)
    correct: jax.Array  # 1 where the most likely code is the target


def token_losses(logits: jax.Array, codes: jax.Array, label_smoothing: float = 0.0) -> TokenLosses:
    """Computes the cross-entropy of each position.

    Args:
      logits: float32 [b, t, q, k].
      codes: int32 [b, t, q] in [0, k).
      label_smoothing: share of the target that is spread evenly over all k codes.
    """
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A one-hot mask fuses with the softmax; the gradient of a gather would be a slow scatter.
    is_target = jax.nn.one_hot(codes, logits.shape[-1], dtype=jnp.bool_)
    expected = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    if label_smoothing:
        expected = (1.0 - label_smoothing) * expected + label_smoothing * jnp.mean(logits, axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == codes).astype(jnp.float32)
    return TokenLosses(log_normalizer - expected, log_normalizer, correct)


def weighted_mean(values: jax.Array, weights: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Returns the mean of values, weighted by weights of the same shape; 0 if all weights are 0."""
    return jnp.sum(values * weights, axis=axis) / jnp.maximum(jnp.sum(weights, axis=axis), 1e-9)
