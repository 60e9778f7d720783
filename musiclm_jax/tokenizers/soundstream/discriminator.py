"""Discriminators of SoundStream: one on the STFT, three on the waveform at decreasing rates (arXiv 2107.03312, III-D).

`SoundStreamConfig.discriminator_windows` can set STFTs of several resolutions, which later codecs use instead of
waveform discriminators. Each discriminator returns logits over time and the features of its hidden layers. They only
see crops during training, so their convolutions are padded on both sides.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.data import spectrogram
from musiclm_jax.tokenizers.soundstream.model import SoundStreamConfig

WAVE_SCALES = (1, 2, 4)  # divisors of the sample rate
SLOPE = 0.2  # negative slope of the leaky ReLU


def _conv(config: SoundStreamConfig, features: int, kernel: tuple[int, ...], **arguments: Any) -> nn.Conv:
    return nn.Conv(features, kernel, dtype=config.dtype, **arguments)


def _leaky(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, SLOPE)


class WaveDiscriminator(nn.Module):
    """MelGAN's discriminator at one resolution: four strided convolutions between unstrided ones."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Maps audio `[b, samples]` to logits `[b, t, 1]` and the features `[b, t', c]` of each layer."""
        config = self.config
        channels = config.wave_discriminator_channels
        x = _leaky(_conv(config, channels, (15,), name="conv_in")(audio[..., None]))
        features = [x]
        for i in range(4):
            groups = max(1, channels // config.wave_discriminator_groups)
            channels = min(4 * channels, config.wave_discriminator_max_channels)
            x = _leaky(_conv(config, channels, (41,), strides=4, feature_group_count=groups, name=f"down{i}")(x))
            features.append(x)
        x = _leaky(_conv(config, channels, (5,), name="conv_out")(x))
        features.append(x)
        return _conv(config, 1, (3,), name="logits")(x).astype(jnp.float32), features


class STFTDiscriminator(nn.Module):
    """Residual 2-D convolutions over time and frequency of the complex STFT; the last one spans all frequencies."""

    config: SoundStreamConfig
    window: int = 1024  # samples of the STFT, four times its hop

    @nn.compact
    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Maps audio `[b, samples]` to logits `[b, t, 1]` and the features `[b, t', f, c]` of each layer."""
        config = self.config
        channels = config.discriminator_channels
        real, imaginary = spectrogram.stft(audio, self.window, self.window // 4)
        # Without the highest bin, the remaining 512 (for a window of 1024) can be halved six times.
        x = _leaky(_conv(config, channels, (7, 7), name="conv_in")(jnp.stack([real, imaginary], axis=-1)[:, :, :-1]))
        features = [x]
        for i in range(6):
            strides = (1, 2) if i % 2 == 0 else (2, 2)
            y = _leaky(_conv(config, channels, (3, 3), name=f"block{i}_conv")(x))
            channels = channels * 2 if i in (0, 3) else channels
            y = _conv(config, channels, (strides[0] + 2, strides[1] + 2), strides=strides, name=f"block{i}_down")(y)
            x = _leaky(y + _conv(config, channels, (1, 1), strides=strides, name=f"block{i}_skip")(x))
            features.append(x)
        logits = _conv(config, 1, (1, x.shape[2]), padding="VALID", name="logits")(x)
        return logits[:, :, 0].astype(jnp.float32), features


class Discriminators(nn.Module):
    """All discriminators: those on STFTs, then those on waveforms."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, audio: jax.Array) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """Maps audio `[b, samples]` to the logits `[b, t, 1]` and the layers' features of each discriminator.

        Raises:
          ValueError: if the audio is shorter than the longest STFT's window.
        """
        outputs = []
        for i, window in enumerate(self.config.discriminator_windows):
            outputs.append(STFTDiscriminator(self.config, window, name=f"stft{i}" if i else "stft")(audio))
        for i, scale in enumerate(WAVE_SCALES if self.config.wave_discriminators else ()):
            samples = audio.shape[1] // scale * scale
            pooled = jnp.mean(audio[:, :samples].reshape(audio.shape[0], -1, scale), axis=-1)
            outputs.append(WaveDiscriminator(self.config, name=f"wave{i}")(pooled))
        return [logits for logits, _ in outputs], [features for _, features in outputs]


def init_params(config: SoundStreamConfig, key: jax.Array) -> dict[str, Any]:
    """Returns initial parameters of all discriminators, float32."""
    return Discriminators(config).init(key, jnp.zeros((1, 4 * max((1024, *config.discriminator_windows)))))["params"]


def discriminate(
    config: SoundStreamConfig, params: Mapping[str, Any], audio: jax.Array
) -> tuple[list[jax.Array], list[list[jax.Array]]]:
    """Computes logits and features of `audio` `[b, samples]`; see `Discriminators`."""
    return Discriminators(config).apply({"params": params}, audio)
