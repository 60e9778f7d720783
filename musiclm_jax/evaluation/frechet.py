"""Frechet audio distance (FAD): with a bootstrap interval, and extrapolated to infinitely many clips.

FAD (Kilgour et al., arXiv 1812.08466) is the squared 2-Wasserstein distance between Gaussians fitted to two sets of
embeddings. All arithmetic is float64. Embeddings come as one array `[vectors, dim]` per clip. Intervals and subsets
resample clips, not vectors, since the vectors of a clip are correlated.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from musiclm_jax.evaluation.metrics import Estimate

SIZES = 15  # subset sizes for the extrapolation, evenly spaced in 1 / size
SMALLEST_SHARE = 0.25  # smallest of these sizes, as a share of the clips


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to embeddings; represents a reference set.

    Attributes:
      mean: float64 `[dim]`.
      covariance: float64 `[dim, dim]`, unbiased.
      vectors: number of embeddings that it was fitted to.
    """

    mean: np.ndarray
    covariance: np.ndarray
    vectors: int

    @functools.cached_property
    def root(self) -> np.ndarray:
        """A square root `[dim, rank]` of the covariance: root @ root.T; directions without variance are dropped."""
        values, directions = np.linalg.eigh(self.covariance)
        # Rounding turns zero eigenvalues into about +-1e-16, whose square roots would be 1e8 times larger.
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return directions[:, kept] * np.sqrt(values[kept])


def fit(embeddings: np.ndarray | Sequence[np.ndarray]) -> Gaussian:
    """Fits a Gaussian to embeddings.

    Args:
      embeddings: float `[vectors, dim]`, or a list of such arrays, one per clip.

    Raises:
      ValueError: if there are fewer than two vectors or a value is not finite.
    """
    stacked = np.asarray(np.concatenate(embeddings) if isinstance(embeddings, Sequence) else embeddings, np.float64)
    if stacked.ndim != 2 or len(stacked) < 2:
        raise ValueError(f"embeddings have shape {stacked.shape}: expected [vectors, dim] with at least two vectors")
    return _weighted(stacked, np.ones(len(stacked)))


def _weighted(embeddings: np.ndarray, weights: np.ndarray) -> Gaussian:
    """Fits a Gaussian to `[vectors, dim]` where vector i occurs `weights[i]` times."""
    total = weights.sum()
    mean = weights @ embeddings / total
    if not np.isfinite(mean).all():
        raise ValueError("embeddings contain NaN or infinite values: check the clips that they come from")
    centred = (embeddings - mean) * np.sqrt(weights)[:, None]
    return Gaussian(mean, centred.T @ centred / (total - 1), int(total))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Computes the squared Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between two Gaussians.

    The trace of the root is computed as the sum of the singular values of `first.root.T @ second.root`. Unlike a matrix
    square root of the product, it is real and stable for covariances of any rank.

    Raises:
      ValueError: if the dimensions differ, as they do for different embedders.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"the Gaussians have {len(first.mean)} and {len(second.mean)} dimensions: use one embedder for both"
        )
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    shared = np.linalg.svd(first.root.T @ second.root, compute_uv=False).sum()
    return float(shift @ shift + traces - 2 * shared)


@dataclasses.dataclass(frozen=True)
class FAD:
    """FAD of a set of clips against a reference.

    Attributes:
      estimate: the value, with an interval over the clips; the reference is held fixed.
      infinity: the value extrapolated to infinitely many clips, which removes the bias of a finite set; None if there
        are too few clips.
      clips: number of clips.
      vectors: number of embeddings of the clips.
      reference_vectors: number of embeddings of the reference.
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
        """A warning if there are too few embeddings for a comparable figure; "" if there are enough."""
        few = min(self.vectors, self.reference_vectors)
        if few > self.dim:
            return ""
        return f"only {few} embeddings for {self.dim} dimensions: biased upwards, compare only with sets of this size"


def fad(clips: Sequence[np.ndarray], reference: Gaussian, draws: int = 200, level: float = 0.95, seed: int = 0) -> FAD:
    """Computes the Frechet audio distance between clips and a reference.

    The interval is a bootstrap over clips. A bootstrap sample has fewer distinct clips, which biases its FAD upwards
    like a smaller set; the interval therefore centers the spread of the samples on the value. `infinity` removes the
    bias of the value itself.

    Args:
      clips: embeddings `[vectors, dim]` of each clip.
      reference: fitted to the reference clips.
      draws: number of bootstrap samples.
      level: coverage of the interval.
      seed: for the bootstrap.

    Raises:
      ValueError: if there are fewer than two clips or two vectors, or the dimensions differ.
    """
    if len(clips) < 2:
        raise ValueError(f"FAD needs at least two clips, got {len(clips)}")
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
    """Extrapolates FAD to infinitely many clips (Chong and Forsyth, arXiv 1911.07023; Gui et al., arXiv 2311.01616).

    With more vectors than dimensions, FAD depends on the number of clips n about as a + b / n. It is measured on random
    subsets of several sizes; a line fitted to them has the value a at 1 / n = 0. The reference is unchanged: the bias
    from its finite size remains.

    Args:
      clips: embeddings `[vectors, dim]` of each clip.
      reference: fitted to the reference clips.
      draws: random subsets of each size.
      seed: for the subsets.

    Returns:
      a; None if there are too few clips for subsets with twice as many vectors as dimensions.
    """
    count = len(clips)
    dim = len(reference.mean)
    vectors_per_clip = sum(len(clip) for clip in clips) / max(count, 1)
    # Twice as many vectors as dimensions: with only slightly more, the curve is not yet linear in 1 / n.
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
