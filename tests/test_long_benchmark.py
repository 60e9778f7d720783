"""Window joins, and jumps at them, in pieces with known jumps."""

import miniature
import numpy as np
import pytest

from benchmarks import long
from musiclm_jax import bundles

RATE = 24_000


def test_joins_are_where_windows_end():
    times = long.joins(bundles.load(miniature.path()), 3.0)  # windows of 1.6, 0.8 and 0.4 s
    np.testing.assert_allclose(times["semantic"], [1.6, 2.4])
    np.testing.assert_allclose(times["coarse"], [0.8, 1.2, 2.0, 2.8])
    np.testing.assert_allclose(times["fine"], [0.4])
    assert len(times["decoder"]) == 0
    assert len(long.joins(bundles.load(miniature.path()), 20.5)["decoder"]) == 0  # 10 and 20 s are also stages' joins


@pytest.mark.parametrize("fault", ["", "level", "spectrum", "waveform"])
def test_jumps_at_joins_are_found(fault):
    rng = np.random.default_rng(0)
    times = {"coarse": np.arange(2.0, 19.0, 2.0), "fine": np.arange(1.0, 20.0, 2.0), "decoder": np.zeros(0)}
    pieces = []
    for _ in range(2):
        piece = rng.normal(0, 0.1, 20 * RATE)
        for time in times["coarse"]:
            after = slice(round(time * RATE), round(time * RATE) + RATE // 10)
            if fault == "level":
                piece[after] *= 0.6
            elif fault == "spectrum":
                piece[after] = np.convolve(piece[after], [1, 0.8], "same") / 1.64**0.5  # darker, and as loud
            elif fault == "waveform":
                piece[after.start] += 2
        pieces.append(piece.astype(np.float32))
    figures = long.compare(pieces, times, seed=0)
    judged = {figure.name: figure.passed for figure in figures if figure.target}
    assert len(judged) == 6
    found = {name for name, passed in judged.items() if not passed}
    # A fault may also show as another kind of jump, but not at other joins.
    assert bool(found) == bool(fault) and not any("fine" in name for name in found)
    assert not fault or f"added to the {fault} at joins of coarse windows" in found
