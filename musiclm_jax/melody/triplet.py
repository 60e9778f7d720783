"""The triplet loss with semi-hard negatives (FaceNet, arXiv 1503.03832, section 3.2), over all pairs of a batch."""

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def squared_distances(embeddings: jax.Array) -> jax.Array:
    """Squared Euclidean distances `[n, n]` of unit vectors `[n, dim]`."""
    return jnp.maximum(2.0 - 2.0 * embeddings @ embeddings.T, 0.0)


def semi_hard_triplet_loss(embeddings: jax.Array, melodies: jax.Array, margin: float) -> tuple[jax.Array, Metrics]:
    """Mean over anchors and positives of max(0, d(anchor, positive) - d(anchor, negative) + margin).

    The negative is semi-hard: of the other melodies the nearest one that is further than the positive; where none is,
    the furthest.

    Args:
      embeddings: unit vectors float32 `[n, dim]`.
      melodies: int `[n]`, equal for renditions of one melody; at least two of them.
      margin: of the squared distances.

    Returns:
      The loss, and "triplet/..." metrics: the share of pairs whose loss is not 0, mean squared distances of the same
      and of other melodies, and how often the nearest other rendition has the melody of the anchor.
    """
    distances = squared_distances(embeddings)
    other = melodies[:, None] != melodies[None]
    positive = ~other & ~jnp.eye(len(melodies), dtype=bool)
    further = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])  # [anchor, positive, negative]
    nearest = jnp.min(jnp.where(further, distances[:, None, :], jnp.inf), axis=2)
    furthest = jnp.max(jnp.where(other, distances, -jnp.inf), axis=1, keepdims=True)
    negative = jnp.where(jnp.any(further, axis=2), nearest, furthest)
    # Where nothing is compared, infinity would make the gradient NaN.
    losses = jnp.where(positive, jnp.maximum(distances - jnp.where(positive, negative, 0.0) + margin, 0.0), 0.0)
    pairs = jnp.maximum(jnp.sum(positive), 1)
    ranked = jnp.where(jnp.eye(len(melodies), dtype=bool), jnp.inf, distances)
    metrics = {
        "triplet/active": jnp.sum(losses > 0) / pairs,
        "triplet/distance_same": jnp.sum(jnp.where(positive, distances, 0.0)) / pairs,
        "triplet/distance_other": jnp.sum(jnp.where(other, distances, 0.0)) / jnp.maximum(jnp.sum(other), 1),
        "triplet/nearest_is_same": jnp.mean(melodies[jnp.argmin(ranked, axis=1)] == melodies),
    }
    return jnp.sum(losses) / pairs, metrics
