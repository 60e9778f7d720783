"""Level and spectral centroid against closed forms."""

import numpy as np
import pytest

from musiclm_jax.generation import drift

RATE = 24_000


def sine(hz, seconds, peak=1.0):
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_level_and_centroid_of_sines():
    assert drift.span_level_db(sine(1000, 1)) == pytest.approx(-3.01, abs=0.01)
    assert drift.span_level_db(sine(1000, 1, peak=0.1)) == pytest.approx(-23.01, abs=0.01)
    assert drift.span_level_db(np.zeros(100)) == drift.SILENCE_DB
    assert drift.centroid_hz(sine(3000, 1)) == pytest.approx(3000, rel=0.01)
    assert drift.centroid_hz(sine(2000, 1) + sine(6000, 1, peak=1 / 3)) == pytest.approx(3000, rel=0.02)
    assert drift.centroid_hz(np.zeros(100)) == 0


def test_spans_show_what_drifts():
    piece = np.concatenate([sine(1000, 15), sine(2000, 15, peak=0.5), sine(4000, 5, peak=0.25)])
    found = drift.spans(piece)
    assert [(span.start, span.end) for span in found] == [(0, 15), (15, 35)]  # the last span includes the remainder
    assert [span.start for span in drift.spans(piece, seconds=10)] == [0, 10, 20, 30]
    assert drift.spans(piece[:RATE])[0].end == 1
    lines = drift.table(drift.spans(piece[: 30 * RATE])).splitlines()
    assert lines[0].split() == ["0:00", "to", "0:15", "-3.0", "dB", "1000", "Hz"]
    assert lines[-1].strip() == "the last span against the first: -6.0 dB, +1000 Hz"
