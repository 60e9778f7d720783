import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from musiclm_jax.data import spectrogram


@pytest.fixture(name="audio")
def audio_fixture():
    return np.random.default_rng(0).standard_normal((2, 6000)).astype(np.float32)


@pytest.mark.parametrize("num_mels,max_hz", [(64, 12_000.0), (80, 11_000.0)])
def test_mel_filterbank_is_librosas(num_mels, max_hz):
    ours = spectrogram.mel_filterbank(24_000, 1024, num_mels, 60.0, max_hz)
    theirs = librosa.filters.mel(sr=24_000, n_fft=1024, n_mels=num_mels, fmin=60.0, fmax=max_hz)
    np.testing.assert_allclose(ours, theirs.T, atol=1e-7)


@pytest.mark.parametrize("window,hop", [(64, 16), (1024, 256), (600, 240)])
def test_magnitude_is_librosas(audio, window, hop):
    ours = spectrogram.magnitude(audio, window, hop)
    theirs = np.abs(librosa.stft(audio, n_fft=window, hop_length=hop, center=False))
    np.testing.assert_allclose(ours, np.swapaxes(theirs, 1, 2), atol=2e-4)


def test_log_mel_has_one_centered_frame_per_hop():
    config = spectrogram.LogMelConfig()
    click = np.zeros((1, 4800), np.float32)
    click[0, 10 * 240 + 120] = 1.0  # the middle of hop 10
    features = spectrogram.log_mel(click, config)
    assert features.shape == (1, 20, 80)
    assert int(jnp.argmax(features.sum(-1))) == 10


def test_gradient_at_silence_is_finite():
    gradient = jax.grad(lambda x: spectrogram.log_mel(x, spectrogram.LogMelConfig()).sum())(jnp.zeros((1, 2400)))
    assert bool(jnp.isfinite(gradient).all())


def test_too_short_audio_is_an_error():
    with pytest.raises(ValueError, match="shorter than the window"):
        spectrogram.frame(jnp.zeros((1, 10)), 64, 16)
