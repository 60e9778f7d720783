"""Judges semantic tokens (w2v-BERT and its clusters) by what they say about the music."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.spectrogram import LogMelConfig, log_mel
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade
from musiclm_jax.tokenizers import quantization, w2v_bert

BATCH = 8
REST = -1  # label of frames to ignore


def mel_features(audio: jax.Array) -> jax.Array:
    """Computes raw log-mel features at 25 Hz: `[batch, samples]` to `[batch, samples // 960, 80]`."""
    config = LogMelConfig()
    mel = log_mel(audio, config)
    return mel.reshape(len(mel), -1, w2v_bert.FRAME_SAMPLES // config.hop, config.num_mels).mean(axis=2)


def in_batches(function: Callable[[jax.Array], jax.Array], clips: Sequence[Mapping]) -> np.ndarray:
    """Jits a function of audio and applies it to the clips in batches of one size."""
    apply, outputs = jax.jit(function), []
    for start in range(0, len(clips), BATCH):
        batch = [clip["audio"] for clip in clips[start : start + BATCH]]
        filled = np.stack(batch + batch[-1:] * (BATCH - len(batch)))
        outputs.append(np.asarray(apply(filled))[: len(batch)])
    return np.concatenate(outputs)


def mel_clusters(
    clips: Sequence[Mapping], fit_clips: Sequence[Mapping], num_clusters: int, iterations: int, seed: int
) -> np.ndarray:
    """Clusters raw log-mel features, normalized per dimension; `fit_clips` set the centroids: int `[clips, frames]`."""
    fitted = in_batches(mel_features, fit_clips)
    mean, std = fitted.mean(axis=(0, 1)), fitted.std(axis=(0, 1))
    normal = jnp.asarray(((fitted - mean) / std).reshape(-1, fitted.shape[-1]))
    centroids = quantization.kmeans(jax.random.key(seed), normal, num_clusters, iterations)
    return in_batches(
        lambda x: quantization.kmeans_assign(centroids, (mel_features(x) - mean[None, None]) / std[None, None]), clips
    )


def purity(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes purity: the share of a clip's frames whose label is the most common one of their cluster.

    This is HuBERT's "phone purity" (arXiv 2106.07447), except that the most common label of a cluster is taken from all
    other clips. With many clusters and few clips, a cluster that occurs in only one clip would otherwise always be
    pure. A cluster that occurs in no other clip gets the most common label overall.

    Args:
      codes: int `[clips, frames]`.
      labels: int `[clips, frames]`; frames labeled `REST` are ignored.

    Returns:
      `[clips]`, without clips whose frames are all `REST`.
    """
    _, rows = np.unique(codes, return_inverse=True)
    _, columns = np.unique(labels, return_inverse=True)
    rows, columns, known = rows.reshape(codes.shape), columns.reshape(codes.shape), labels != REST
    joint = np.zeros((len(codes), rows.max() + 1, columns.max() + 1), np.int32)
    for of_clip, row, column, own in zip(joint, rows, columns, known, strict=True):
        np.add.at(of_clip, (row[own], column[own]), 1)
    others = joint.sum(axis=0) - joint
    # Add half a frame to the most common label: it only decides ties and clusters without frames.
    usual = np.eye(joint.shape[2])[np.argmax(others.sum(axis=1), axis=1)] / 2
    named = np.argmax(others + usual[:, None, :], axis=2)  # [clips, clusters]
    right = np.take_along_axis(named, rows, axis=1) == columns
    return np.sum(right & known, axis=1)[known.any(axis=1)] / known.sum(axis=1)[known.any(axis=1)]


def judge_purity(
    name: str, ours: np.ndarray, labels: np.ndarray, other: np.ndarray, raw: np.ndarray | None, seed: int
) -> Finding:
    """Judges the purity of semantic tokens.

    It is compared with another clip's tokens, which have the same run lengths and frequencies but do not match the
    labels, and with clusters of raw log-mel features, the model's input.

    Args:
      name: name of the labels.
      ours: semantic tokens, int `[clips, frames]`.
      labels: int `[clips, frames]`.
      other: int `[clips]`: for each clip, the index of another.
      raw: int `[clips, frames]`, from equally many clusters of raw log-mel features; None skips this comparison.
      seed: for the bootstrap intervals.
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
        "the tokens carry no information about the music: they were shuffled, or the clusters were fitted to other "
        "features; fit the clusters again (musiclm export)"
        if broken
        else "the model adds nothing to its input spectrogram: train it longer, or use another feature_layer",
    )


def labels_of(clips: Sequence[Mapping], frames: int) -> dict[str, np.ndarray]:
    """Returns labels, int `[clips, frames]`, from the corpus's metadata; labels that do not vary are left out."""
    names = sorted({clip["instrument"] for clip in clips})
    labels = {
        "pitch class of the lead voice": np.stack([_filled(clip["pitch_class"], frames) for clip in clips]),
        "instrument": np.stack([np.full(frames, names.index(clip["instrument"])) for clip in clips]),
    }
    return {name: label for name, label in labels.items() if len(np.unique(label[label != REST])) > 1}


def _filled(label: np.ndarray, frames: int) -> np.ndarray:
    label = np.asarray(label)[:frames]
    return np.pad(label, (0, frames - len(label)), constant_values=REST)
