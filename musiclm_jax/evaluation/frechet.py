"""Frechet distance of embeddings: FAD with its interval, and FAD extrapolated to infinitely many clips.

FAD (Kilgour et al., arXiv 1812.08466) is the squared 2-Wasserstein distance of Gaussians fitted to two sets of
embeddings. Everything is float64. Embeddings come as one array `[vectors, dim]` a clip: clips, not vectors, are the
items that intervals and subsets are drawn from, since the vectors of a clip are alike.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from musiclm_jax.evaluation.metrics import Estimate

SIZES = 15  # set sizes of the extrapolation, evenly spaced in 1 / size
SMALLEST_SHARE = 0.25  # smallest of these sizes, as a share of the clips


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to embeddings; also what is kept of a reference set.

    Attributes:
      mean: float64 `[dim]`.
      covariance: float64 `[dim, dim]`, unbiased.
      vectors: embeddings that it was fitted to.
    """

    mean: np.ndarray
    covariance: np.ndarray
    vectors: int

    @functools.cached_property
    def root(self) -> np.ndarray:
        """`[dim, rank]`: its product with its transpose is the covariance; directions without variance are left out."""
        values, directions = np.linalg.eigh(self.covariance)
        # Rounding leaves eigenvalues of either sign where there is no variance; their roots would be 1e8 times larger.
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return directions[:, kept] * np.sqrt(values[kept])


def fit(embeddings: np.ndarray | Sequence[np.ndarray]) -> Gaussian:
    """Fits a Gaussian.

    Args:
      embeddings: float `[vectors, dim]`, or a list of such arrays, one per clip.

    Raises:
      ValueError: if there are fewer than two vectors or a value is not finite.
    """
    stacked = np.asarray(np.concatenate(embeddings) if isinstance(embeddings, Sequence) else embeddings, np.float64)
    if stacked.ndim != 2 or len(stacked) < 2:
        raise ValueError(f"embeddings of shape {stacked.shape}: a Gaussian needs two vectors or more, [vectors, dim]")
    return _weighted(stacked, np.ones(len(stacked)))


def _weighted(embeddings: np.ndarray, weights: np.ndarray) -> Gaussian:
    """Gaussian of `[vectors, dim]` where vector i occurs `weights[i]` times."""
    total = weights.sum()
    mean = weights @ embeddings / total
    if not np.isfinite(mean).all():
        raise ValueError("embeddings hold NaN or infinite values: look at the clips that they come from")
    centred = (embeddings - mean) * np.sqrt(weights)[:, None]
    return Gaussian(mean, centred.T @ centred / (total - 1), int(total))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians.

    The trace of the root is the sum of the singular values of `first.root.T @ second.root`, which is real and stable
    for covariances of any rank, unlike a matrix square root of the product.

    Raises:
      ValueError: if the dimensions differ: embeddings of two embedders cannot be compared.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"Gaussians of {len(first.mean)} and {len(second.mean)} dimensions: compare embeddings of one embedder"
        )
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    shared = np.linalg.svd(first.root.T @ second.root, compute_uv=False).sum()
    return float(shift @ shift + traces - 2 * shared)


@dataclasses.dataclass(frozen=True)
class FAD:
    """FAD of a set of clips against a reference.

    Attributes:
      estimate: the value with its interval over the clips, the reference held fixed.
      infinity: the value extrapolated to infinitely many clips, which takes out the bias of a finite set; None where
        the clips are too few for it.
      clips: clips that count.
      vectors: embeddings of these clips.
      reference_vectors: embeddings of the reference.
      dim: dimensions of an embedding.
    """

    estimate: Estimate
    infinity: float | None
    clips: int
    vectors: int
    reference_vectors: int
    dim: int

    @property
    def warning(self) -> str:
        """What makes the figure hard to compare; "" if nothing."""
        few = min(self.vectors, self.reference_vectors)
        if few > self.dim:
            return ""
        return f"only {few} embeddings for {self.dim} dimensions: biased upwards, compare with sets of this size alone"


def fad(clips: Sequence[np.ndarray], reference: Gaussian, draws: int = 200, level: float = 0.95, seed: int = 0) -> FAD:
    """Frechet audio distance of clips to a reference.

    The interval: clips are drawn with replacement. A drawn set holds fewer different clips, which raises every draw as
    a smaller set would; the spread of the draws around their own mean is therefore laid around the value. The bias
    itself is what `infinity` takes out.

    Args:
      clips: embeddings `[vectors, dim]` of each clip.
      reference: fitted to the reference clips.
      draws: bootstrap samples.
      level: coverage of the interval.
      seed: of the draws.

    Raises:
      ValueError: if there are fewer than two clips or two vectors, or the dimensions differ.
    """
    if len(clips) < 2:
        raise ValueError(f"FAD of {len(clips)} clips: at least two are needed")
    stacked = np.concatenate(clips).astype(np.float64)
    of_clip = np.repeat(np.arange(len(clips)), [len(clip) for clip in clips])
    value = frechet_distance(fit(stacked), reference)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        times = np.bincount(rng.integers(0, len(clips), len(clips)), minlength=len(clips)).astype(np.float64)
        drawn.append(frechet_distance(_weighted(stacked, times[of_clip]), reference))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) - np.mean(drawn)
    estimate = Estimate(value, max(0.0, value + float(low)), value + float(high))
    infinity = fad_infinity(clips, reference, seed=seed)
    return FAD(estimate, infinity, len(clips), len(stacked), reference.vectors, stacked.shape[1])


def fad_infinity(clips: Sequence[np.ndarray], reference: Gaussian, draws: int = 5, seed: int = 0) -> float | None:
    """FAD extrapolated to infinitely many clips (Chong and Forsyth, arXiv 1911.07023; Gui et al., arXiv 2311.01616).

    FAD falls with the number of clips n about as a + b / n, once there are more vectors than dimensions. It is measured
    on random subsets of several sizes; a line through them at 1 / n = 0 gives a. The reference stays as it is: the bias
    of its own size is not taken out.

    Args:
      clips: embeddings `[vectors, dim]` of each clip.
      reference: fitted to the reference clips.
      draws: random subsets of each size.
      seed: of the subsets.

    Returns:
      a; None if less than two sizes hold more vectors than there are dimensions, so that no line can be drawn.
    """
    count = len(clips)
    dim = len(reference.mean)
    vectors_per_clip = sum(len(clip) for clip in clips) / max(count, 1)
    # Twice the dimensions: just above, the curve is not yet a line.
    smallest = max(2, round(SMALLEST_SHARE * count), int(np.ceil(2 * dim / max(vectors_per_clip, 1e-9))))
    if smallest > count / 2:
        return None
    sizes = np.unique(np.round(1 / np.linspace(1 / count, 1 / smallest, SIZES)).astype(int))
    rng = np.random.default_rng(seed)
    points = []
    for size in sizes:
        for _ in range(1 if size == count else draws):
            chosen = rng.choice(count, size, replace=False)
            points.append((1 / size, frechet_distance(fit([clips[i] for i in chosen]), reference)))
    inverse, values = np.array(points).T
    return float(np.polyfit(inverse, values, 1)[1])
