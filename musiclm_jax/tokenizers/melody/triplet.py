"""The triplet loss with semi-hard negatives (FaceNet, arXiv 1503.03832, section 3.2) and a softmax loss for the start.

Both compare all pairs of a batch. An anchor's positives are the other renditions of its passage, and its negatives are
renditions of other compositions. Other passages of its own composition, which may overlap with it, are neither.
"""

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def squared_distances(embeddings: jax.Array) -> jax.Array:
    """Returns the squared Euclidean distances `[n, n]` of unit vectors `[n, dim]`."""
    return jnp.maximum(2.0 - 2.0 * embeddings @ embeddings.T, 0.0)


def semi_hard_triplet_loss(
    embeddings: jax.Array, passages: jax.Array, compositions: jax.Array, margin: float
) -> tuple[jax.Array, Metrics]:
    """Computes the mean over anchors and positives of max(0, d(anchor, positive) - d(anchor, negative) + margin).

    The negative is semi-hard: the nearest negative that is further away than the positive or, if there is none, the
    furthest negative.

    Args:
      embeddings: unit vectors, float32 `[n, dim]`.
      passages: int `[n]`, equal for renditions of the same passage.
      compositions: int `[n]`, equal for passages of the same composition.
      margin: margin between squared distances.

    Returns:
      The loss, and metrics: "triplet/active", the share of pairs with a loss above 0; "triplet/distance_same" and
      "triplet/distance_other", the mean squared distances within a passage and between compositions; and
      "triplet/nearest_is_same", the share of anchors whose nearest positive or negative is a positive.
    """
    distances = squared_distances(embeddings)
    other = compositions[:, None] != compositions[None]
    same = (passages[:, None] == passages[None]) & ~jnp.eye(len(passages), dtype=bool)
    further = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])  # [anchor, positive, negative]
    nearest = jnp.min(jnp.where(further, distances[:, None, :], jnp.inf), axis=2)
    furthest = jnp.max(jnp.where(other, distances, -jnp.inf), axis=1, keepdims=True)
    negative = jnp.where(jnp.any(further, axis=2), nearest, furthest)
    compared = same & jnp.any(other, axis=1, keepdims=True)
    # Without a comparison, the negative's infinity would make the gradient NaN.
    losses = jnp.where(compared, jnp.maximum(distances - jnp.where(compared, negative, 0.0) + margin, 0.0), 0.0)
    pairs = jnp.maximum(jnp.sum(compared), 1)
    ranked = jnp.argmin(jnp.where(same | other, distances, jnp.inf), axis=1)
    metrics = {
        "triplet/active": jnp.sum(losses > 0) / pairs,
        "triplet/distance_same": jnp.sum(jnp.where(same, distances, 0.0)) / jnp.maximum(jnp.sum(same), 1),
        "triplet/distance_other": jnp.sum(jnp.where(other, distances, 0.0)) / jnp.maximum(jnp.sum(other), 1),
        "triplet/nearest_is_same": jnp.mean(passages[ranked] == passages),
    }
    return jnp.sum(losses) / pairs, metrics


def contrastive_loss(
    embeddings: jax.Array, passages: jax.Array, compositions: jax.Array, temperature: float
) -> jax.Array:
    """Computes InfoNCE (arXiv 1807.03748), the mean over anchors and positives against all negatives of the anchor.

    The logits are cosine similarities divided by the temperature. Other arguments as in `semi_hard_triplet_loss`.
    """
    logits = embeddings @ embeddings.T / temperature
    other = compositions[:, None] != compositions[None]
    same = (passages[:, None] == passages[None]) & ~jnp.eye(len(passages), dtype=bool)
    negatives = jax.nn.logsumexp(jnp.where(other, logits, -1e9), axis=1, keepdims=True)
    losses = jnp.where(same, jnp.logaddexp(logits, negatives) - logits, 0.0)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(same), 1)
