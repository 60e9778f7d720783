"""The log-mel patches that VGGish and YAMNet were trained on (Hershey et al., arXiv 1609.09430)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.spectrogram import magnitude

SAMPLE_RATE = 16_000  # Hz
FRAME, HOP = 400, 160  # samples: 25 ms every 10 ms
FFT_SIZE = 512  # samples
NUM_MELS = 64
MIN_HZ, MAX_HZ = 125.0, 7500.0
PATCH_FRAMES = 96
PATCH_SAMPLES = (PATCH_FRAMES - 1) * HOP + FRAME  # samples in one patch: 0.975 s


@functools.cache
def mel_filters() -> np.ndarray:
    """Returns triangular filters on the HTK mel scale, linear in mel rather than in Hz; the DC bin has weight 0.

    Returns:
      float32 `[FFT_SIZE // 2 + 1, NUM_MELS]`.
    """

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    bins = mel(np.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1))[:, None]
    edges = np.linspace(mel(MIN_HZ), mel(MAX_HZ), NUM_MELS + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters[0] = 0.0
    return filters.astype(np.float32)


def log_mel(audio: jax.Array, offset: float) -> jax.Array:
    """Computes log(mel magnitudes + offset), without padding.

    Args:
      audio: float32 `[batch, samples]` at 16 kHz.
      offset: added before the logarithm.

    Returns:
      float32 `[batch, frames, NUM_MELS]`.
    """
    return jnp.log(magnitude(audio, FRAME, HOP, FFT_SIZE) @ mel_filters() + offset)
