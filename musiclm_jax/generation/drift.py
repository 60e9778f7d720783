"""Whether long music stays itself: level and spectral centroid, span by span."""

import itertools
from typing import NamedTuple

import numpy as np

from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.generation.prompts import clock

SPAN_SECONDS = 15.0
SILENCE_DB = -100.0  # what digital silence counts as
_WINDOW, _HOP = 2048, 1024  # samples


class Span(NamedTuple):
    """Figures of a part of a piece: seconds, dB of full scale (root mean square), Hz."""

    start: float
    end: float
    level: float
    centroid: float


def level_db(audio: np.ndarray) -> float:
    """Root mean square of `[samples]` in dB of full scale."""
    return float(max(SILENCE_DB, 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20)))


def centroid_hz(audio: np.ndarray) -> float:
    """Spectral centroid of `[samples]` in Hz: the mean frequency, weighted by magnitudes; 0 in silence."""
    padded = np.pad(audio, (0, max(0, _WINDOW - len(audio))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)).sum(axis=0)
    return float(magnitude @ np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE) / max(magnitude.sum(), 1e-12))


def spans(audio: np.ndarray, seconds: float = SPAN_SECONDS) -> list[Span]:
    """Figures of each `seconds` of `[samples]`; a rest under half of that counts to the last span."""
    length, total = round(seconds * SAMPLE_RATE), len(audio)
    edges = [index * length for index in range(max(1, (total + length // 2) // length))] + [total]
    return [
        Span(start / SAMPLE_RATE, end / SAMPLE_RATE, level_db(audio[start:end]), centroid_hz(audio[start:end]))
        for start, end in itertools.pairwise(edges)
    ]


def table(found: list[Span]) -> str:
    """The spans as lines for people, with the drift from the first to the last."""
    lines = [f"  {clock(s.start)} to {clock(s.end)}  {s.level:6.1f} dB  {s.centroid:6.0f} Hz" for s in found]
    first, last = found[0], found[-1]
    if len(found) > 1:
        change = f"{last.level - first.level:+.1f} dB, {last.centroid - first.centroid:+.0f} Hz"
        lines.append(f"  the last span against the first: {change}")
    return "\n".join(lines)
