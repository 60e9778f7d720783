"""Winograd's convolution against XLA's."""

import jax
import numpy as np
import pytest

from musiclm_jax.evaluation.embedders import vggish, winograd


def convolved(x, kernel):
    """Computes the plain convolution."""
    dims = ("NHWC", "HWIO", "NHWC")
    return np.asarray(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims))


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 4, 64)), rng.normal(0, 1 / 24, (3, 3, 64, 5))
    return x.astype(np.float32), kernel.astype(np.float32)


def test_tiles_match_the_convolution(case):
    x, kernel = case
    expected = convolved(x, kernel)
    found = winograd.tiles(x, winograd.transformed(kernel))
    np.testing.assert_allclose(winograd.image(found), expected, atol=1e-5)
    np.testing.assert_allclose(winograd.maximum(found), expected.reshape(2, 3, 2, 2, 2, 5).max(axis=(2, 4)), atol=1e-5)


def test_one_channel(case):
    x, kernel = case
    found = winograd.tiles_of_one_channel(x[..., 0], kernel[:, :, :1])
    np.testing.assert_allclose(winograd.image(found), convolved(x[..., :1], kernel[:, :, :1]), atol=1e-5)


def test_vggish_is_the_same_by_either_convolution():
    rng = np.random.default_rng(0)
    params, channels = {}, 1
    widths = zip([name for group in vggish.CONVOLUTIONS for name in group], (4, 8, 8, 16, 16, 32), strict=True)
    for name, width in widths:
        kernel = rng.normal(size=(3, 3, channels, width)) / np.sqrt(4.5 * channels)
        params[name] = {"kernel": kernel.astype(np.float32), "bias": rng.normal(size=width).astype(np.float32)}
        channels = width
    mel = rng.normal(size=(12, 96, 64)).astype(np.float32)  # three blocks of four
    expected = np.asarray(vggish._features(params, mel))
    assert expected.shape == (12, 6 * 4 * 32) and expected.std() > 0.1
    np.testing.assert_allclose(vggish._features_on_cpu(params, mel), expected, atol=1e-5)
