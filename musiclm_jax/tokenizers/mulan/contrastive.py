"""The symmetric contrastive loss of MuLan, with several positives per row.

Synthetic captions repeat: two clips of a batch may have the same text. Such clips are positives of each other, not
negatives, so the target of a row is uniform over all columns with the same text.
"""

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def same_text(ids: jax.Array) -> jax.Array:
    """Returns which rows of `ids` `[batch, length]` are equal in every token: bool `[batch, batch]`."""
    return jnp.all(ids[:, None] == ids[None], axis=-1)


def contrastive_loss(
    audio: jax.Array, text: jax.Array, scale: jax.Array, positives: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Computes the symmetric InfoNCE (MuLan, arXiv 2208.12415, equation 1) with uniform targets over `positives`.

    Args:
      audio: unit vectors, float32 `[batch, dim]`.
      text: unit vectors, float32 `[batch, dim]`; row i belongs to row i of `audio`.
      scale: scalar that multiplies the cosine similarities, 1 / temperature.
      positives: bool `[batch, batch]`, symmetric, True on the diagonal.

    Returns:
      The loss, a scalar. It is ln(batch) at chance and 0 at best, since the entropy of the targets (0 without repeated
      texts) is subtracted. And the metrics of `retrieval_metrics`, prefixed with "contrastive/".
    """
    targets = positives / jnp.sum(positives, axis=1, keepdims=True)
    entropy = jnp.mean(jnp.log(jnp.sum(positives, axis=1)))
    logits = scale * audio @ text.T  # [b, b]: rows are audio
    to_text = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits, axis=1), axis=1))
    to_audio = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits.T, axis=1), axis=1))
    loss = (to_text + to_audio) / 2 - entropy
    metrics = {f"contrastive/{name}": value for name, value in retrieval_metrics(logits, positives).items()}
    metrics["contrastive/ln_batch"] = jnp.log(jnp.float32(audio.shape[0]))
    metrics["contrastive/scale"] = scale
    return loss, metrics


def recall_at(similarities: jax.Array, positives: jax.Array, k: int) -> jax.Array:
    """Computes the share of rows whose best positive is among the k highest columns.

    Args:
      similarities: float32 `[rows, columns]`.
      positives: bool `[rows, columns]`, at least one True per row.
      k: length of the list; ties count against the positive.
    """
    best = jnp.max(jnp.where(positives, similarities, -jnp.inf), axis=1, keepdims=True)
    ahead = jnp.sum((similarities >= best) & ~positives, axis=1)
    return jnp.mean(ahead < k)


def retrieval_metrics(similarities: jax.Array, positives: jax.Array) -> Metrics:
    """Computes top-1 accuracy and recall at 10 in both directions from similarities `[audio, text]`."""
    return {
        "audio_to_text_top_1": recall_at(similarities, positives, 1),
        "text_to_audio_top_1": recall_at(similarities.T, positives.T, 1),
        "audio_to_text_recall_10": recall_at(similarities, positives, 10),
        "text_to_audio_recall_10": recall_at(similarities.T, positives.T, 10),
    }
