"""Semantic tokens: what they say about the music (w2v-BERT and its clusters)."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.spectrogram import LogMelConfig, log_mel
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade
from musiclm_jax.tokenizers import quantization, w2v_bert

BATCH = 8
REST = -1  # label of frames that are left out


def mel_features(audio: jax.Array) -> jax.Array:
    """Raw log-mel features at 25 Hz: `[batch, samples]` to `[batch, samples // 960, 80]`."""
    config = LogMelConfig()
    mel = log_mel(audio, config)
    return mel.reshape(len(mel), -1, w2v_bert.FRAME_SAMPLES // config.hop, config.num_mels).mean(axis=2)


def in_batches(function: Callable[[jax.Array], jax.Array], clips: Sequence[Mapping]) -> np.ndarray:
    """A jitted function of audio, applied to the clips in batches of one size."""
    apply, outputs = jax.jit(function), []
    for start in range(0, len(clips), BATCH):
        batch = [clip["audio"] for clip in clips[start : start + BATCH]]
        filled = np.stack(batch + batch[-1:] * (BATCH - len(batch)))
        outputs.append(np.asarray(apply(filled))[: len(batch)])
    return np.concatenate(outputs)


def mel_clusters(
    clips: Sequence[Mapping], fit_clips: Sequence[Mapping], num_clusters: int, iterations: int, seed: int
) -> np.ndarray:
    """Clusters of raw log-mel features (normalised per dimension), fitted to `fit_clips`: int `[clips, frames]`."""
    fitted = in_batches(mel_features, fit_clips)
    mean, std = fitted.mean(axis=(0, 1)), fitted.std(axis=(0, 1))
    normal = jnp.asarray(((fitted - mean) / std).reshape(-1, fitted.shape[-1]))
    centroids = quantization.kmeans(jax.random.key(seed), normal, num_clusters, iterations)
    return in_batches(lambda x: quantization.kmeans_assign(centroids, (mel_features(x) - mean) / std), clips)


def purity(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How well a cluster tells the label: share of a clip's frames that have the commonest label of their cluster.

    HuBERT's purity (arXiv 2106.07447, "phone purity"), but a cluster is named by the frames of all other clips: where
    clusters are many and clips few, one that is met in a single clip would be pure whatever it says. A cluster that no
    other clip has gets the commonest label of all.

    Args:
      codes: int `[clips, frames]`.
      labels: int `[clips, frames]`; frames of `REST` are left out.

    Returns:
      `[clips]`, without clips that rest throughout.
    """
    _, rows = np.unique(codes, return_inverse=True)
    _, columns = np.unique(labels, return_inverse=True)
    rows, columns, known = rows.reshape(codes.shape), columns.reshape(codes.shape), labels != REST
    joint = np.zeros((len(codes), rows.max() + 1, columns.max() + 1), np.int32)
    for of_clip, row, column, own in zip(joint, rows, columns, known, strict=True):
        np.add.at(of_clip, (row[own], column[own]), 1)
    others = joint.sum(axis=0) - joint
    # A half of a frame for the commonest label: it decides only where the cluster says nothing.
    usual = np.eye(joint.shape[2])[np.argmax(others.sum(axis=1), axis=1)] / 2
    named = np.argmax(others + usual[:, None, :], axis=2)  # [clips, clusters]
    right = np.take_along_axis(named, rows, axis=1) == columns
    return np.sum(right & known, axis=1)[known.any(axis=1)] / known.sum(axis=1)[known.any(axis=1)]


def judge_purity(
    name: str, ours: np.ndarray, labels: np.ndarray, other: np.ndarray, raw: np.ndarray | None, seed: int
) -> Finding:
    """Judges the purity of semantic tokens.

    Beside it stand the tokens of another clip, which have the same runs and frequencies but do not belong to the
    labels, and clusters of raw log-mel features, which the model starts from.

    Args:
      name: of the labels.
      ours: int `[clips, frames]`.
      labels: int `[clips, frames]`.
      other: int `[clips]`: index of another clip for each.
      raw: int `[clips, frames]`, as many clusters of raw log-mel features; None leaves the comparison out.
      seed: of the intervals.
    """
    own = purity(ours, labels)
    strange = purity(ours[other], labels)
    chance = metrics.bootstrap(own - strange, seed=seed)
    broken, weak = chance.low <= 0, False
    beside = [f"of another clip's tokens {strange.mean():.3f}, difference {chance}"]
    if raw is not None:
        of_raw = purity(raw, labels)
        ahead = metrics.bootstrap(own - of_raw, seed=seed)
        weak = ahead.high < 0
        beside.append(f"of log-mel clusters {of_raw.mean():.3f}, difference {ahead}")
    return Finding(
        "w2v_bert",
        f"purity for the {name}",
        metrics.bootstrap(own, seed=seed),
        grade(broken, weak),
        "broken if not above another clip's tokens" + ", weak if below log-mel clusters" * (raw is not None),
        "; ".join(beside),
        "the tokens say nothing of the music: they were shuffled, or the clusters are of other features than the "
        "model's; fit the clusters again (musiclm export)"
        if broken
        else "the model adds nothing to its spectrogram: train it on, or take another feature_layer",
    )


def labels_of(clips: Sequence[Mapping], frames: int) -> dict[str, np.ndarray]:
    """Labels int `[clips, frames]` of the corpus's facts; kinds that do not vary are left out."""
    names = sorted({clip["instrument"] for clip in clips})
    labels = {
        "pitch class of the lead voice": np.stack([_filled(clip["pitch_class"], frames) for clip in clips]),
        "instrument": np.stack([np.full(frames, names.index(clip["instrument"])) for clip in clips]),
    }
    return {name: label for name, label in labels.items() if len(np.unique(label[label != REST])) > 1}


def _filled(label: np.ndarray, frames: int) -> np.ndarray:
    label = np.asarray(label)[:frames]
    return np.pad(label, (0, frames - len(label)), constant_values=REST)
