"""The arithmetic of benchmarks/semantic_tokens.py, on literals."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import semantic_tokens
from musiclm_jax.evaluation.diagnose import semantic


def test_information_excludes_rests():
    labels = np.array([[0, 0, 1, 1, -1, -1]])
    assert semantic_tokens.information(np.array([[5, 5, 3, 3, 5, 3]]), labels) == pytest.approx(1.0)
    assert semantic_tokens.information(np.array([[5, 3, 5, 3, 5, 5]]), labels) == pytest.approx(0.0, abs=1e-9)


def test_compare_is_paired():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (30, 40))
    noisy = np.where(rng.random(labels.shape) < 0.5, rng.integers(0, 4, labels.shape), labels)
    first, second, difference = semantic_tokens.compare(labels, noisy, labels, seed=0)
    assert first.value == pytest.approx(1.0) and 0.1 < second.value < 0.5
    assert difference.value == pytest.approx(first.value - second.value)
    assert difference.low > 0.4
    same = semantic_tokens.compare(noisy, noisy, labels, seed=0)[2]
    assert same.low == same.high == 0


def test_mel_features_have_the_rate_of_tokens():
    audio = np.random.default_rng(0).normal(size=(2, 9600)).astype("f")
    assert semantic.mel_features(jnp.asarray(audio)).shape == (2, 10, 80)


def test_batches_keep_every_clip_in_order():
    clips = [{"audio": np.full(4, i, np.float32)} for i in range(11)]
    np.testing.assert_array_equal(semantic_tokens.in_batches(lambda x: x[:, 0] * 2, clips), np.arange(11) * 2)
