"""Metrics in NumPy and SciPy: pure functions of arrays, independent of any model, and bootstrap intervals.

Audio is float `[samples]`; codes are integers 0..codebook_size-1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.signal
import scipy.stats

from musiclm_jax.data.spectrogram import mel_filterbank

# Key profiles (Krumhansl and Kessler, 1982): how well each pitch class fits a key, from the tonic upwards.
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
MEL_SCALES = ((256, 16), (512, 32), (1024, 64), (2048, 128))  # (window in samples, mel bands) of the mel distance
MEL_FLOOR = 1e-4  # of full scale (-80 dB): quieter bands count as silence
KLD_DIRECTIONS = ("reference||generated", "generated||reference")
MAX_SI_SDR = 120.0  # dB; beyond it, float32 audio is identical to the reference or unrelated to it
KLD_SMOOTHING = 1e-6  # share of the uniform distribution mixed into class probabilities


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: np.ndarray | Sequence[float],
    statistic: Callable[[np.ndarray], float] = np.mean,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Computes a statistic of independent items and its percentile bootstrap interval.

    Args:
      values: `[items, ...]`; items are drawn with replacement along the first axis. For a paired comparison, pass the
        differences.
      statistic: maps a sample of the items to a float.
      draws: number of bootstrap samples.
      level: coverage of the interval.
      seed: for the bootstrap; equal seeds give equal intervals.

    Raises:
      ValueError: if there are fewer than two items or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two items, got {len(values)}: score more clips")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(values))} of {values.size} values are NaN or infinite: check those clips"
        )
    rng = np.random.default_rng(seed)
    drawn = [float(statistic(values[rng.integers(0, len(values), len(values))])) for _ in range(draws)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(values)), float(low), float(high))


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Computes the area under the ROC curve.

    It is the probability that a positive item scores above a negative one; ties count half.

    Raises:
      ValueError: if either array is empty.
    """
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if not positive.size or not negative.size:
        raise ValueError(
            f"AUC needs positive and negative items, got {positive.size} positive and {negative.size} negative ones"
        )
    ranks = scipy.stats.rankdata(np.concatenate([positive, negative]))
    above = ranks[: positive.size].sum() - positive.size * (positive.size + 1) / 2
    return float(above / (positive.size * negative.size))


def matched_wins(scores: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Measures how often an item outscores others in its own label; the mean of the result is an AUC over all labels.

    Args:
      scores: float `[items, labels]`.
      asked: int `[items]`: the label requested for each item.

    Returns:
      `[items]`: among the items with another requested label, the share that score lower in this item's label. Ties
      count half; NaN if no item has another label.
    """
    scores, asked = np.asarray(scores), np.asarray(asked)
    own = scores[np.arange(len(asked)), asked][:, None]
    others = scores[:, asked].T  # [item, other item] in the item's label
    stranger = asked[:, None] != asked[None, :]
    wins = (own > others) + 0.5 * (own == others)
    with np.errstate(invalid="ignore"):
        return np.sum(wins * stranger, axis=1) / np.sum(stranger, axis=1)


def matched_auc(scores: np.ndarray, asked: np.ndarray) -> float:
    """Computes the mean of `matched_wins`: 1 if every item outscores all others in its own label, 0.5 by chance.

    Raises:
      ValueError: if all items have the same requested label.
    """
    wins = matched_wins(scores, asked)
    if not np.isfinite(wins).all():
        raise ValueError("all items have the same requested label: there is nothing to compare with")
    return float(wins.mean())


def kl_divergence(
    reference: np.ndarray,
    generated: np.ndarray,
    direction: str = KLD_DIRECTIONS[0],
    smoothing: float = KLD_SMOOTHING,
) -> np.ndarray:
    """Computes the KL divergence between class probabilities for pairs of clips, in nats; its mean is KLD.

    The MusicLM paper does not state the direction. The default, KL(reference || generated), penalizes classes that are
    in the reference but not in the generated clip.

    Args:
      reference: `[..., classes]`, at least 0; normalized to sum to 1, which multi-label probabilities do not.
      generated: `[..., classes]`; normalized likewise.
      direction: one of `KLD_DIRECTIONS`.
      smoothing: share of the uniform distribution mixed into both. It bounds the cost of a probability of 0 by
        log(classes / smoothing).

    Returns:
      float64 `[...]`.

    Raises:
      ValueError: if the direction is unknown, the shapes differ, or a row is negative, not finite or all zero.
    """
    if direction not in KLD_DIRECTIONS:
        raise ValueError(f"direction is {direction!r}: expected {' or '.join(map(repr, KLD_DIRECTIONS))}")
    reference, generated = np.asarray(reference, np.float64), np.asarray(generated, np.float64)
    if reference.shape[-1] != generated.shape[-1]:
        raise ValueError(
            f"the clips have {reference.shape[-1]} and {generated.shape[-1]} classes: use one classifier for both"
        )
    sides = []
    for probabilities in (reference, generated):
        total = probabilities.sum(axis=-1, keepdims=True)
        if not (np.isfinite(total).all() and (total > 0).all() and (probabilities >= 0).all()):
            raise ValueError("class probabilities must be finite, at least 0 and not all 0: check the clips")
        sides.append((1 - smoothing) * probabilities / total + smoothing / probabilities.shape[-1])
    first, second = sides if direction == KLD_DIRECTIONS[0] else sides[::-1]
    return np.sum(first * np.log(first / second), axis=-1)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Computes the cosine of pairs of vectors `[..., dim]`: float64 `[...]`.

    For MuLan's text and audio embeddings, its mean is MCC.

    Raises:
      ValueError: if a vector is zero or not finite.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("an embedding is zero or not finite, so it has no direction: check its clip")
    return np.sum(first * second, axis=-1) / lengths


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Computes the scale-invariant signal-to-distortion ratio of `[samples]` in dB (Le Roux et al., arXiv 1811.02508).

    It is clipped to +-`MAX_SI_SDR`; a silent estimate, whose ratio is 0 / 0, gets the lower bound.

    Raises:
      ValueError: if the lengths differ or the reference is silent.
    """
    reference, estimate = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    if reference.shape != estimate.shape:
        raise ValueError(f"reference {reference.shape} and estimate {estimate.shape} differ in length: trim them first")
    reference, estimate = reference - reference.mean(), estimate - estimate.mean()
    energy = reference @ reference
    if energy <= 1e-12:
        raise ValueError("the reference is silent: SI-SDR is undefined")
    target = (estimate @ reference / energy) * reference
    noise = estimate - target
    if estimate @ estimate <= 1e-12 * energy:
        return -MAX_SI_SDR
    with np.errstate(divide="ignore"):
        ratio = 10 * (np.log10(target @ target) - np.log10(noise @ noise))
    return float(np.clip(ratio, -MAX_SI_SDR, MAX_SI_SDR))


def best_lag(reference: np.ndarray, estimate: np.ndarray, max_lag: int) -> int:
    """Returns the delay of `estimate` in samples (negative: early), within +-max_lag, by cross-correlation."""
    correlation = scipy.signal.correlate(estimate, reference, mode="full", method="fft")
    zero = len(reference) - 1
    window = correlation[zero - max_lag : zero + max_lag + 1]
    return int(np.argmax(window)) - max_lag


def shifted(estimate: np.ndarray, lag: int, samples: int) -> np.ndarray:
    """Removes a delay of `lag` samples from `[n]`, and pads or trims the result to `[samples]`."""
    moved = estimate[lag:] if lag >= 0 else np.concatenate([np.zeros(-lag, estimate.dtype), estimate])
    return np.pad(moved[:samples], (0, max(0, samples - len(moved))))


def log_mel_distance_db(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Computes the mean absolute difference of log-mel spectra in dB, averaged over the windows of `MEL_SCALES`.

    Magnitudes are relative to a full-scale sine. Bands below `MEL_FLOOR` count as silence, so that inaudible detail has
    no effect.

    Args:
      reference: float `[samples]`.
      estimate: float `[samples]`.
      sample_rate: Hz.

    Raises:
      ValueError: if the lengths differ.
    """
    if reference.shape != estimate.shape:
        raise ValueError(f"reference {reference.shape} and estimate {estimate.shape} differ in length: trim them first")
    distances = []
    for window, bands in MEL_SCALES:
        filters = mel_filterbank(sample_rate, window, bands, 0.0, sample_rate / 2)
        filters = filters / np.maximum(filters.sum(axis=0), 1e-12)
        levels = []
        for audio in (reference, estimate):
            # scaling="spectrum" divides by the sum of the window: a full-scale sine has magnitude 0.5.
            # float32: its error is far below the floor, and it halves the time.
            _, _, spectrum = scipy.signal.stft(np.asarray(audio, np.float32), nperseg=window, noverlap=window * 3 // 4)
            levels.append(20 * np.log10(np.maximum(2 * np.abs(spectrum).T @ filters, MEL_FLOOR)))
        distances.append(np.mean(np.abs(levels[0] - levels[1])))
    return float(np.mean(distances))


def entropy_bits(codes: np.ndarray) -> float:
    """Computes the entropy in bits of the histogram of `codes`, of any shape."""
    counts = np.unique(np.asarray(codes), return_counts=True)[1]
    return float(scipy.stats.entropy(counts, base=2))


def perplexity(codes: np.ndarray) -> float:
    """Computes the perplexity of `codes`, the effective number of codes in use: 2 to the entropy in bits."""
    return float(2 ** entropy_bits(codes))


def unigram_bits(train_codes: np.ndarray, test_codes: np.ndarray, codebook_size: int) -> float:
    """Computes the bits per code of `test_codes` under the add-one smoothed frequencies of `train_codes`."""
    counts = np.bincount(np.asarray(train_codes).ravel(), minlength=codebook_size) + 1.0
    return float(-np.mean(np.log2(counts / counts.sum())[np.asarray(test_codes).ravel()]))


def normalized_mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Computes the mutual information of two labelings `[items]`, divided by the mean of their entropies: 0..1.

    Raises:
      ValueError: if the lengths differ.
    """
    first, second = np.asarray(first).ravel(), np.asarray(second).ravel()
    if first.shape != second.shape:
        raise ValueError(f"the labelings have {first.size} and {second.size} items: expected equal lengths")
    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    joint = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(joint, (rows, columns), 1.0)
    joint_entropy = scipy.stats.entropy(joint.ravel())
    row_entropy, column_entropy = scipy.stats.entropy(joint.sum(axis=1)), scipy.stats.entropy(joint.sum(axis=0))
    mean = (row_entropy + column_entropy) / 2
    return float((row_entropy + column_entropy - joint_entropy) / mean) if mean > 0 else 0.0


def key_fit(pitch_classes: np.ndarray) -> float:
    """Measures how well a pitch-class histogram fits a key: the highest of 24 correlations with key profiles.

    Args:
      pitch_classes: weights `[12]`, C first, such as note durations.

    Returns:
      Pearson correlation, -1..1; 0 for an empty or flat histogram.
    """
    weights = _histogram(pitch_classes)
    if np.ptp(weights) < 1e-12:
        return 0.0
    profiles = [np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)]
    return float(max(np.corrcoef(weights, profile)[0, 1] for profile in profiles))


def pitch_classes_in_use(pitch_classes: np.ndarray) -> float:
    """Computes the effective number of pitch classes in a histogram `[12]`: 2 to its entropy; 0 if it is empty.

    Use it with `key_fit`, which also scores a steady hum on a few pitches highly.
    """
    weights = _histogram(pitch_classes)
    return float(2 ** scipy.stats.entropy(weights, base=2)) if weights.sum() > 0 else 0.0


def _histogram(pitch_classes: np.ndarray) -> np.ndarray:
    weights = np.asarray(pitch_classes, np.float64)
    if weights.shape != (12,) or not (weights >= 0).all():
        raise ValueError(f"pitch classes have shape {weights.shape}: expected 12 weights of at least 0, C first")
    return weights
