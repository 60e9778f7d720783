"""Losses of SoundStream: multi-scale mel reconstruction, hinge and feature matching (arXiv 2107.03312, III-D)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from musiclm_jax.data import spectrogram

MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples, 2^6 .. 2^11; the hop is a quarter
NUM_MELS = 64
STFT_WINDOWS = (256, 512, 1024, 2048)  # samples, for stft_loss; the hop is a quarter
LOG_FLOOR = 1e-4  # added before the logarithm: amplitude of a sine at -80 dB of full scale; not in the paper


def _log_mel(mel: jax.Array, window: int, sample_rate: int) -> jax.Array:
    # The magnitude of a sine of amplitude a is a * window / 4, and unit-area filters sum to about window / sample_rate.
    # So the floor is the same level in all windows, and none makes the codec spend bits on inaudible sound.
    return jnp.log(mel + LOG_FLOOR * window / 4 * window / sample_rate)


def _pad(audio: jax.Array, window: int) -> jax.Array:
    # Half a window on both sides, so that the ends of the crop count as much as its middle.
    return jnp.pad(audio, ((0, 0), (window // 2, window // 2)))


def mel_loss(audio: jax.Array, decoded: jax.Array, sample_rate: int, windows: Sequence[int] = MEL_WINDOWS) -> jax.Array:
    """Computes the sum over windows s of |S(x) - S(y)|_1 + sqrt(s / 2) |log S(x) - log S(y)|_2.

    S is the mel spectrogram. Norms are over mels, and their mean is over frames.

    Args:
      audio: the reference, float32 `[b, samples]`.
      decoded: the audio to compare with it, same shape.
      sample_rate: Hz.
      windows: window lengths in samples.

    Returns:
      float32 scalar.
    """
    total = jnp.zeros(())
    for window in windows:
        filters = spectrogram.mel_filterbank(sample_rate, window, NUM_MELS, 0.0, sample_rate / 2)
        both = jnp.concatenate([jax.lax.stop_gradient(audio), decoded])
        x, y = jnp.split(spectrogram.magnitude(_pad(both, window), window, window // 4) @ filters, 2)
        log_difference = _log_mel(x, window, sample_rate) - _log_mel(y, window, sample_rate)
        log_norm = jnp.sqrt(jnp.sum(log_difference**2, axis=-1) + 1e-12)
        total += jnp.mean(jnp.sum(jnp.abs(x - y), axis=-1)) + math.sqrt(window / 2) * jnp.mean(log_norm)
    return total


def stft_loss(audio: jax.Array, decoded: jax.Array, windows: Sequence[int] = STFT_WINDOWS) -> jax.Array:
    """Computes the mean difference of complex spectra and of log magnitudes over windows, frames and bins.

    Mel filters are wide at high frequencies; here every bin and its phase count individually. Complex spectra are
    divided by the norm of their window, so that their differences have the scale of differences of samples.

    Args:
      audio: the reference, float32 `[b, samples]`.
      decoded: the audio to compare with it, same shape.
      windows: window lengths in samples.

    Returns:
      float32 scalar: mean |X - Y| plus a tenth of mean |log |X| - log |Y||.
    """
    total = jnp.zeros(())
    for window in windows:
        both = jnp.concatenate([jax.lax.stop_gradient(audio), decoded])
        norm = math.sqrt(3 / 8 * window)  # L2 norm of the Hann window
        spectra = [part / norm for part in spectrogram.stft(_pad(both, window), window, window // 4)]
        (real, real_of_decoded), (imaginary, imaginary_of_decoded) = (jnp.split(part, 2) for part in spectra)
        squared = (real - real_of_decoded) ** 2 + (imaginary - imaginary_of_decoded) ** 2
        logs = 0.5 * jnp.log(spectra[0] ** 2 + spectra[1] ** 2 + LOG_FLOOR**2)
        log_difference = jnp.abs(jnp.subtract(*jnp.split(logs, 2)))
        total += jnp.mean(jnp.sqrt(squared + 1e-12)) + 0.1 * jnp.mean(log_difference)
    return total / len(windows)


def natural_log_mel_distance(
    audio: jax.Array, decoded: jax.Array, sample_rate: int, windows: Sequence[int] = MEL_WINDOWS
) -> jax.Array:
    """Computes the mean absolute difference of natural log mel magnitudes, averaged over the windows.

    Arguments as in `mel_loss`. Filters that are empty, as in short windows, do not count in the mean.
    """
    distances = []
    for window in windows:
        filters = spectrogram.mel_filterbank(sample_rate, window, NUM_MELS, 0.0, sample_rate / 2)
        filters = filters[:, filters.sum(0) > 0]
        x, y = (spectrogram.magnitude(_pad(a, window), window, window // 4) @ filters for a in (audio, decoded))
        distances.append(jnp.mean(jnp.abs(_log_mel(x, window, sample_rate) - _log_mel(y, window, sample_rate))))
    return jnp.mean(jnp.stack(distances))


def batch_si_sdr(audio: jax.Array, decoded: jax.Array) -> jax.Array:
    """Computes the scale-invariant SDR in dB, `[b]` (Le Roux et al., SDR: half-baked or well done?, 2019)."""
    audio = audio - jnp.mean(audio, axis=-1, keepdims=True)
    decoded = decoded - jnp.mean(decoded, axis=-1, keepdims=True)
    power = jnp.sum(audio**2, axis=-1, keepdims=True)
    target = jnp.sum(audio * decoded, axis=-1, keepdims=True) / (power + 1e-9) * audio
    noise = jnp.sum((decoded - target) ** 2, axis=-1)
    return 10 * jnp.log10((jnp.sum(target**2, axis=-1) + 1e-9) / (noise + 1e-9))


def discriminator_hinge(real: Sequence[jax.Array], fake: Sequence[jax.Array]) -> jax.Array:
    """Computes the mean over discriminators of E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(x)))] for logits `[b, ...]`."""
    terms = [jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f)) for r, f in zip(real, fake, strict=True)]
    return jnp.mean(jnp.stack(terms))


def generator_hinge(fake: Sequence[jax.Array]) -> jax.Array:
    """Computes the mean over discriminators of E[max(0, 1 - D(G(x)))]."""
    return jnp.mean(jnp.stack([jnp.mean(jax.nn.relu(1 - f)) for f in fake]))


def feature_matching(real: Sequence[Sequence[jax.Array]], fake: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Computes the mean absolute difference of the features `[discriminators][layers]`, averaged over all layers."""
    terms = [
        jnp.mean(jnp.abs(jax.lax.stop_gradient(r) - f), dtype=jnp.float32)
        for real_layers, fake_layers in zip(real, fake, strict=True)
        for r, f in zip(real_layers, fake_layers, strict=True)
    ]
    return jnp.mean(jnp.stack(terms))
