"""Converts samples between 16-bit integers and floats, and measures their level.

Needs only NumPy: the processes that render the corpus import neither JAX nor TensorFlow.
"""

from typing import Any

import numpy as np

FULL_SCALE = 32_767.0  # the 16-bit integer of a sample of 1.0
NO_SOUND_DB = -80.0  # dBFS (RMS); audio below it holds nothing to learn from or to follow


def to_pcm16(audio: np.ndarray) -> np.ndarray:
    """Rounds float audio `[..., samples]` in [-1, 1] to little-endian int16; clip audio that may exceed it first."""
    return np.round(audio * FULL_SCALE).astype("<i2")


def from_pcm16(samples: Any) -> Any:
    """Converts int16 NumPy or JAX arrays `[..., samples]` to float32 audio; inverts `to_pcm16` up to rounding."""
    return samples.astype(np.float32) / FULL_SCALE


def level_db(audio: np.ndarray) -> float:
    """Computes the RMS level of float audio `[samples]` in dB relative to full scale; -200 for silence."""
    audio = np.ravel(audio)
    return float(20 * np.log10(max(np.sqrt(float(np.dot(audio, audio)) / max(audio.size, 1)), 1e-10)))


def is_silent(audio: np.ndarray, below_db: float = NO_SOUND_DB) -> bool:
    """Returns whether the level of audio `[samples]` is below `below_db`; a constant offset is not sound."""
    audio = np.ravel(audio)
    return level_db(audio - audio.mean() if audio.size else audio) < below_db
