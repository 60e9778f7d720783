"""The triplet loss with semi-hard negatives (FaceNet, arXiv 1503.03832, section 3.2) and a softmax to begin with.

Both compare all pairs of a batch. Positives of an anchor are the other renditions of its passage, negatives those of
other compositions; other passages of the anchor's own composition, which may overlap with it, are neither.
"""

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def squared_distances(embeddings: jax.Array) -> jax.Array:
    """Squared Euclidean distances `[n, n]` of unit vectors `[n, dim]`."""
    return jnp.maximum(2.0 - 2.0 * embeddings @ embeddings.T, 0.0)


def semi_hard_triplet_loss(
    embeddings: jax.Array, passages: jax.Array, compositions: jax.Array, margin: float
) -> tuple[jax.Array, Metrics]:
    """Mean over anchors and positives of max(0, d(anchor, positive) - d(anchor, negative) + margin).

    The negative is semi-hard: of the negatives the nearest one that is further than the positive; where none is, the
    furthest.

    Args:
      embeddings: unit vectors float32 `[n, dim]`.
      passages: int `[n]`, equal for renditions of one passage.
      compositions: int `[n]`, equal for passages of one composition.
      margin: of the squared distances.

    Returns:
      The loss, and "triplet/..." metrics: the share of pairs whose loss is not 0, mean squared distances of renditions
      of one passage and of different compositions, and how often the nearest of all that the anchor is compared with
      is of its passage.
    """
    distances = squared_distances(embeddings)
    other = compositions[:, None] != compositions[None]
    same = (passages[:, None] == passages[None]) & ~jnp.eye(len(passages), dtype=bool)
    further = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])  # [anchor, positive, negative]
    nearest = jnp.min(jnp.where(further, distances[:, None, :], jnp.inf), axis=2)
    furthest = jnp.max(jnp.where(other, distances, -jnp.inf), axis=1, keepdims=True)
    negative = jnp.where(jnp.any(further, axis=2), nearest, furthest)
    compared = same & jnp.any(other, axis=1, keepdims=True)
    # Where nothing is compared, infinity would make the gradient NaN.
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
    """Mean over anchors and positives of -log of the positive's share in a softmax with all negatives.

    InfoNCE (arXiv 1807.03748) on cosines over the temperature; arguments as in `semi_hard_triplet_loss`.
    """
    logits = embeddings @ embeddings.T / temperature
    other = compositions[:, None] != compositions[None]
    same = (passages[:, None] == passages[None]) & ~jnp.eye(len(passages), dtype=bool)
    negatives = jax.nn.logsumexp(jnp.where(other, logits, -1e9), axis=1, keepdims=True)
    losses = jnp.where(same, jnp.logaddexp(logits, negatives) - logits, 0.0)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(same), 1)
