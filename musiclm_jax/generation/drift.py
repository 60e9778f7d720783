"""Measures the drift of long pieces: level and spectral centroid, span by span."""

import itertools
from typing import NamedTuple

import numpy as np

from musiclm_jax.data.samples import level_db
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.generation.prompts import clock

SPAN_SECONDS = 15.0
SILENCE_DB = -100.0  # level assigned to digital silence
_WINDOW, _HOP = 2048, 1024  # samples


class Span(NamedTuple):
    """Measurements of one span: start and end in seconds, RMS level in dBFS, spectral centroid in Hz."""

    start: float
    end: float
    level: float
    centroid: float


def span_level_db(audio: np.ndarray) -> float:
    """Level of `[samples]` in dB of full scale, at least `SILENCE_DB`."""
    return max(SILENCE_DB, level_db(audio))


def centroid_hz(audio: np.ndarray) -> float:
    """Computes the spectral centroid of `[samples]` in Hz: the magnitude-weighted mean frequency; 0 for silence."""
    padded = np.pad(audio, (0, max(0, _WINDOW - len(audio))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)).sum(axis=0)
    return float(magnitude @ np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE) / max(magnitude.sum(), 1e-12))


def spans(audio: np.ndarray, seconds: float = SPAN_SECONDS) -> list[Span]:
    """Measures `[samples]` in spans of `seconds`; a remainder under half a span is merged into the last one."""
    length, total = round(seconds * SAMPLE_RATE), len(audio)
    edges = [index * length for index in range(max(1, (total + length // 2) // length))] + [total]
    return [
        Span(start / SAMPLE_RATE, end / SAMPLE_RATE, span_level_db(audio[start:end]), centroid_hz(audio[start:end]))
        for start, end in itertools.pairwise(edges)
    ]


def table(found: list[Span]) -> str:
    """Formats the spans as text lines, followed by the drift from the first to the last."""
    lines = [f"  {clock(s.start)} to {clock(s.end)}  {s.level:6.1f} dB  {s.centroid:6.0f} Hz" for s in found]
    first, last = found[0], found[-1]
    if len(found) > 1:
        change = f"{last.level - first.level:+.1f} dB, {last.centroid - first.centroid:+.0f} Hz"
        lines.append(f"  the last span against the first: {change}")
    return "\n".join(lines)
