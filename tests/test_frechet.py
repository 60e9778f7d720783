"""FAD against closed forms, SciPy's matrix square root and the arithmetic of frechet-audio-distance on PyPI."""

import numpy as np
import pytest
import scipy.linalg

from musiclm_jax.evaluation import frechet
from musiclm_jax.evaluation.frechet import Gaussian


def embeddings(seed, clips=60, vectors=5, dim=8, mean=0.0, scale=1.0):
    """Returns a list of `[vectors, dim]`: clips with different means."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dim, dim)) / np.sqrt(dim)
    centres = rng.normal(size=(clips, 1, dim))
    return list((centres + rng.normal(size=(clips, vectors, dim))) @ mixing * scale + mean)


def with_sqrtm(first, second):
    """Computes FAD like frechet-audio-distance 0.3.4: np.mean, np.cov and scipy.linalg.sqrtm of the product."""
    first, second = np.concatenate(first), np.concatenate(second)
    mean1, mean2 = first.mean(axis=0), second.mean(axis=0)
    cov1, cov2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    return (mean1 - mean2) @ (mean1 - mean2) + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root)


def test_commuting_gaussians_have_a_closed_form():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    spreads = rng.uniform(0.1, 3, (2, 6))
    means = rng.normal(size=(2, 6))
    first, second = (Gaussian(m, rotation * s**2 @ rotation.T, 9) for m, s in zip(means, spreads, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((spreads[0] - spreads[1]) ** 2)
    assert frechet.frechet_distance(first, second) == pytest.approx(expected, abs=1e-12)


def test_two_dimensions_have_a_closed_form():
    # For 2 x 2 matrices the trace of the root of C1 C2 is sqrt(trace + 2 sqrt(determinant)).
    rng = np.random.default_rng(1)
    first, second = (a @ a.T for a in rng.normal(size=(2, 2, 2)))
    product = first @ second
    expected = np.trace(first + second) - 2 * np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    zero = np.zeros(2)
    found = frechet.frechet_distance(Gaussian(zero, first, 9), Gaussian(zero, second, 9))
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dim", [2, 8, 128])
def test_equals_frechet_audio_distance_on_the_same_embeddings(dim):
    first, second = embeddings(0, dim=dim), embeddings(1, clips=80, dim=dim, mean=0.3, scale=1.4)
    found = frechet.frechet_distance(frechet.fit(first), frechet.fit(second))
    assert found == pytest.approx(with_sqrtm(first, second), abs=1e-6)


def test_rank_deficient_covariances_are_exact():
    # Six vectors in 40 dimensions: a rotation changes nothing, and a set has distance 0 to itself.
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 6, 40))
    rotation = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    found = frechet.frechet_distance(frechet.fit(first), frechet.fit(second))
    turned = frechet.frechet_distance(frechet.fit(first @ rotation), frechet.fit(second @ rotation))
    assert turned == pytest.approx(found, abs=1e-10)
    assert frechet.frechet_distance(frechet.fit(first), frechet.fit(first)) == pytest.approx(0, abs=1e-10)
    # By definition, from the centered data: the singular values of their product.
    centred = [(x - x.mean(axis=0)) / np.sqrt(5) for x in (first, second)]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    shift = first.mean(axis=0) - second.mean(axis=0)
    assert found == pytest.approx(shift @ shift + sum(np.sum(c**2) for c in centred) - 2 * shared, abs=1e-10)


def test_constant_embeddings_differ_by_their_shift():
    first, second = np.zeros((5, 3)), np.tile([3.0, 4.0, 0.0], (5, 1))
    assert frechet.frechet_distance(frechet.fit(first), frechet.fit(second)) == pytest.approx(25)


def test_order_does_not_matter_and_a_shift_does():
    clips, reference = embeddings(0), frechet.fit(embeddings(1))
    value = frechet.frechet_distance(frechet.fit(clips), reference)
    assert frechet.frechet_distance(frechet.fit(clips[::-1]), reference) == pytest.approx(value, abs=1e-10)
    assert frechet.frechet_distance(reference, frechet.fit(clips)) == pytest.approx(value, abs=1e-10)
    shift = np.full(8, 0.5)
    difference = frechet.fit(clips).mean - reference.mean
    moved = frechet.frechet_distance(frechet.fit([clip + shift for clip in clips]), reference)
    assert moved - value == pytest.approx(shift @ shift + 2 * shift @ difference, abs=1e-10)


def test_the_interval_has_its_nominal_coverage():
    # The distance is large enough for the finite-size bias to be small compared to the spread.
    exact = Gaussian(np.full(2, 3.0), 1.5 * np.eye(2), 10**9)
    rng = np.random.default_rng(0)
    truth = 18 + 2 * (np.sqrt(1.25) - np.sqrt(1.5)) ** 2
    covered = 0
    for trial in range(60):
        clips = list(rng.normal(size=(50, 1, 2)) + 0.5 * rng.normal(size=(50, 4, 2)))
        estimate = frechet.fad(clips, exact, draws=100, seed=trial).estimate
        covered += estimate.low <= truth <= estimate.high
        assert estimate.low <= estimate.value <= estimate.high
    assert 50 <= covered <= 60, "the interval is of 95 %"


def test_infinity_removes_the_bias_of_a_small_set():
    exact = Gaussian(np.zeros(16), np.eye(16), 10**9)
    rng = np.random.default_rng(0)
    plain, extrapolated = [], []
    for trial in range(10):
        clips = list(rng.normal(size=(60, 4, 16)))
        found = frechet.fad(clips, exact, draws=2, seed=trial)
        plain.append(found.estimate.value)
        extrapolated.append(found.infinity)
    assert np.mean(plain) > 0.3  # the truth is 0
    assert abs(np.mean(extrapolated)) < 0.1 * np.mean(plain)


def test_counts_and_warnings():
    found = frechet.fad(embeddings(0, clips=6, vectors=2, dim=16), frechet.fit(embeddings(1, dim=16)), draws=5)
    assert (found.clips, found.vectors, found.reference_vectors, found.dim) == (6, 12, 300, 16)
    assert found.infinity is None
    assert "only 12 embeddings for 16 dimensions" in found.warning
    assert frechet.fad(embeddings(0), frechet.fit(embeddings(1)), draws=5).warning == ""


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="8 and 4 dimensions"):
        frechet.frechet_distance(frechet.fit(embeddings(0)), frechet.fit(embeddings(0, dim=4)))
    with pytest.raises(ValueError, match="at least two vectors"):
        frechet.fit(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="NaN"):
        frechet.fit(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="at least two clips, got 1"):
        frechet.fad([np.zeros((4, 2))], frechet.fit(embeddings(0, dim=2)))
