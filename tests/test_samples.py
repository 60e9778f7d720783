"""16-bit samples and levels, against closed forms."""

import numpy as np
import pytest

from musiclm_jax.data import samples


def test_full_scale_and_one_step_are_kept():
    audio = np.array([0.0, 1.0, -1.0, 1.4 / 32_767, 1.6 / 32_767], np.float32)
    pcm = samples.to_pcm16(audio)
    assert pcm.dtype == np.int16 and pcm.tolist() == [0, 32_767, -32_767, 1, 2]
    back = samples.from_pcm16(pcm)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, (pcm / 32_767).astype(np.float32))


def test_level_of_sines_and_of_silence():
    sine = np.sin(2 * np.pi * 100 * np.arange(24_000) / 24_000).astype(np.float32)
    assert samples.level_db(sine) == pytest.approx(-3.01, abs=0.01)
    assert samples.level_db(0.001 * sine) == pytest.approx(-63.01, abs=0.01)
    assert samples.level_db(np.zeros(100)) == samples.level_db(np.zeros(0)) == -200
