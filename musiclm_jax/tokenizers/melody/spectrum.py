"""A log spectrum with one filter per semitone, in which transposing a melody shifts it along the frequency axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.spectrogram import LogMelConfig, frame


@functools.cache
def semitone_filters(sample_rate: int, fft_size: int, count: int, lowest: int) -> np.ndarray:
    """Returns triangular filters around MIDI pitches that reach one semitone, or one bin if wider, to either side.

    Args:
      sample_rate: Hz.
      fft_size: points of the transform.
      count: number of filters.
      lowest: MIDI pitch of the first filter.

    Returns:
      float32 `[bins, count]`, from bin 0 to the last bin that a filter reads.
    """
    centres = 440.0 * 2 ** ((lowest + np.arange(count) - 69) / 12)
    widths = np.maximum(centres * (2 ** (1 / 12) - 1), sample_rate / fft_size)
    hz = np.arange(fft_size // 2 + 1)[:, None] * sample_rate / fft_size
    filters = np.maximum(0.0, 1.0 - np.abs(hz - centres) / widths)
    filters /= filters.sum(axis=0)
    return filters[: int(np.flatnonzero(filters.any(axis=1))[-1]) + 1].astype(np.float32)


def log_semitones(audio: jax.Array, config: LogMelConfig, lowest: int) -> jax.Array:
    """Computes log magnitudes around each semitone with exactly `samples // hop` frames, like `spectrogram.log_mel`.

    Args:
      audio: float32 `[batch, samples]`.
      config: window, hop, transform and number of filters.
      lowest: MIDI pitch of the first filter.

    Returns:
      float32 `[batch, samples // hop, filters]`.
    """
    filters = semitone_filters(config.sample_rate, config.fft_size, config.num_mels, lowest)
    excess = config.window - config.hop
    padded = jnp.pad(audio, ((0, 0), (excess // 2, excess - excess // 2)))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
    window = (2.0 / hann.sum() * hann).astype(np.float32)
    frames = frame(padded, config.window, config.hop) * window[None, None, :]
    # An FFT, since a product with the Fourier basis would cost more than the model.
    spectrum = jnp.abs(jnp.fft.rfft(frames, config.fft_size)[..., : len(filters)])
    return jnp.log(spectrum @ filters + config.floor)


def pitch_classes(spectrum: jax.Array, lowest: int, parts: int) -> jax.Array:
    """Computes which pitch classes sound in each part of a window, regardless of loudness and octave.

    Args:
      spectrum: float32 `[batch, frames, filters]`, log magnitudes from `log_semitones`.
      lowest: MIDI pitch of the first filter.
      parts: number of parts, equally long up to whole frames.

    Returns:
      float32 `[batch, parts, 12]`, C first. Each vector has mean 0 and length 1; it is shorter if the part is below a
      tenth of the loudest one (-20 dB), and 0 in silence.
    """
    frames, count = spectrum.shape[1:]
    of_class = ((lowest + np.arange(count))[:, None] % 12 == np.arange(12)).astype(np.float32)
    of_part = (np.arange(frames)[:, None] * parts // frames == np.arange(parts)).astype(np.float32)
    of_class, of_part = of_class / of_class.sum(axis=0), of_part / of_part.sum(axis=0)
    heard = jnp.einsum("bfc,fp->bpc", jnp.exp(spectrum) @ of_class, of_part)
    heard = heard - heard.mean(axis=2, keepdims=True)
    size = jnp.linalg.norm(heard, axis=2, keepdims=True)
    return heard / jnp.maximum(jnp.maximum(size, 0.1 * size.max(axis=1, keepdims=True)), 1e-4)
