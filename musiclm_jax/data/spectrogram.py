"""Spectrograms in JAX: STFT as a matrix product with the Fourier basis, mel filters, log-mel features.

A product with a fixed basis runs on the matrix units of every accelerator, and its gradient is a matrix product too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """Log-mel features of 24 kHz audio."""

    sample_rate: int = 24_000  # Hz
    window: int = 600  # samples (25 ms)
    hop: int = 240  # samples (10 ms)
    fft_size: int = 1024  # samples
    num_mels: int = 80
    min_hz: float = 60.0
    max_hz: float = 11_000.0
    floor: float = 1e-5  # added to the mel magnitudes before the logarithm


@functools.cache
def mel_filterbank(sample_rate: int, fft_size: int, num_mels: int, min_hz: float, max_hz: float) -> np.ndarray:
    """Returns triangular filters of unit area on Slaney's mel scale, like `librosa.filters.mel`.

    Returns:
      float32 `[fft_size // 2 + 1, num_mels]`.
    """

    def hz_to_mel(hz: np.ndarray) -> np.ndarray:
        return np.where(hz < 1000.0, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000.0) / np.log(6.4))

    def mel_to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp(np.log(6.4) * (mel - 15) / 27))

    bin_hz = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    edges = mel_to_hz(np.linspace(hz_to_mel(np.array(min_hz)), hz_to_mel(np.array(max_hz)), num_mels + 2))
    rising = (bin_hz[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bin_hz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return filters.astype(np.float32)


@functools.cache
def fourier_basis(window: int, fft_size: int) -> np.ndarray:
    """Returns the Hann-windowed cosines and sines of a real DFT of `fft_size` points over `window` samples.

    Returns:
      float32 `[window, 2 * (fft_size // 2 + 1)]`: the real parts, then the imaginary parts.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    angle = 2 * np.pi * np.arange(window)[:, None] * np.arange(fft_size // 2 + 1)[None] / fft_size
    return np.concatenate([hann[:, None] * np.cos(angle), -hann[:, None] * np.sin(angle)], axis=1).astype(np.float32)


def frame(audio: jax.Array, window: int, hop: int) -> jax.Array:
    """Cuts `[batch, samples]` into `[batch, frames, window]` every `hop` samples, without padding.

    Raises:
      ValueError: if `audio` is shorter than one window.
    """
    samples = audio.shape[-1]
    if samples < window:
        raise ValueError(f"audio of {samples} samples is shorter than the window of {window}: pad it first")
    num_frames = 1 + (samples - window) // hop
    if window % hop == 0:
        # The window is a whole number of hops: a few shifted slices replace a gather, whose gradient is slow.
        parts = window // hop
        blocks = audio[..., : (num_frames + parts - 1) * hop].reshape(*audio.shape[:-1], num_frames + parts - 1, hop)
        return jnp.concatenate([blocks[..., p : p + num_frames, :] for p in range(parts)], axis=-1)
    starts = np.arange(num_frames)[:, None] * hop + np.arange(window)[None]
    return audio[..., starts]


def stft(audio: jax.Array, window: int, hop: int, fft_size: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Computes the short-time Fourier transform with a periodic Hann window and no padding.

    Args:
      audio: float32 `[batch, samples]`.
      window: window length in samples.
      hop: hop in samples.
      fft_size: points of the transform, at least `window`; `window` by default.

    Returns:
      Real and imaginary parts, float32 `[batch, frames, fft_size // 2 + 1]`.
    """
    fft_size = fft_size or window
    bins = fft_size // 2 + 1
    # Full precision on accelerators too: 10 mantissa bits would leave noise at -60 dB relative to the loudest bin.
    basis = fourier_basis(window, fft_size)
    spectrum = jnp.matmul(frame(audio, window, hop), basis, precision=jax.lax.Precision.HIGHEST)
    return spectrum[..., :bins], spectrum[..., bins:]


def magnitude(audio: jax.Array, window: int, hop: int, fft_size: int | None = None) -> jax.Array:
    """Computes the magnitude of `stft`, with a finite gradient at silence: `[batch, frames, bins]`."""
    real, imaginary = stft(audio, window, hop, fft_size)
    return jnp.sqrt(real**2 + imaginary**2 + 1e-12)


def mel_spectrogram(audio: jax.Array, config: LogMelConfig) -> jax.Array:
    """Computes the mel spectrogram of `audio` `[batch, samples]`, unpadded: float32 `[batch, frames, num_mels]`."""
    filters = mel_filterbank(config.sample_rate, config.fft_size, config.num_mels, config.min_hz, config.max_hz)
    return magnitude(audio, config.window, config.hop, config.fft_size) @ filters


def log_mel(audio: jax.Array, config: LogMelConfig) -> jax.Array:
    """Computes log-mel features with exactly `samples // hop` frames.

    The audio is padded by `window - hop` zeros, half on each side, so frame i is centred on hop i.

    Args:
      audio: float32 `[batch, samples]` at `config.sample_rate`.
      config: window, hop and filters.

    Returns:
      float32 `[batch, samples // hop, num_mels]`.
    """
    excess = config.window - config.hop
    padded = jnp.pad(audio, ((0, 0), (excess // 2, excess - excess // 2)))
    return jnp.log(mel_spectrogram(padded, config) + config.floor)
