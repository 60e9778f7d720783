"""MuLan's audio tower: a residual network over the log-mel spectrogram, pooled to a unit vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.data.spectrogram import log_mel
from musiclm_jax.tokenizers.mulan.config import MulanConfig


def unit(x: jax.Array) -> jax.Array:
    """Scales the last axis to length 1; its gradient stays finite at zero."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def features(audio: jax.Array, config: MulanConfig) -> jax.Array:
    """Computes the scaled log-mel of `audio` `[batch, samples]`: float32 `[batch, frames, mels]`."""
    return (log_mel(audio, config.mel) - config.mel_mean) / config.mel_scale


class ResidualBlock(nn.Module):
    """A ResNet block (arXiv 1512.03385); the first 3x3 convolution has the stride."""

    width: int
    stride: int
    bottleneck: bool
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, frames, mels, channels]` to `[batch, frames / stride, mels / stride, width]`."""

        def conv(y: jax.Array, width: int, kernel: int, stride: int, name: str) -> jax.Array:
            y = nn.Conv(width, (kernel, kernel), (stride, stride), use_bias=False, name=name)(y)
            return nn.GroupNorm(self.groups, name=f"{name}_norm")(y)

        if self.bottleneck:
            y = nn.relu(conv(x, self.width // 4, 1, 1, "reduce"))
            y = nn.relu(conv(y, self.width // 4, 3, self.stride, "conv"))
            y = conv(y, self.width, 1, 1, "expand")
        else:
            y = nn.relu(conv(x, self.width, 3, self.stride, "conv"))
            y = conv(y, self.width, 3, 1, "conv2")
        if x.shape != y.shape:
            x = conv(x, self.width, 1, self.stride, "shortcut")
        return nn.relu(x + y)


class AudioTower(nn.Module):
    """Maps log-mel to a unit vector.

    Projects both the mean over time, which shows what sounds throughout, and the maximum, which shows what sounds at
    all.
    """

    config: MulanConfig

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        """Embeds windows.

        Args:
          mel: float32 `[batch, frames, mels]` from `features`.

        Returns:
          float32 `[batch, embedding_dim]`, unit vectors.
        """
        c = self.config
        x = mel[..., None]  # [b, t, mels, 1]
        x = nn.Conv(c.stem_width, (c.stem_kernel,) * 2, (c.stem_stride,) * 2, use_bias=False, name="stem")(x)
        x = nn.relu(nn.GroupNorm(c.norm_groups, name="stem_norm")(x))
        if c.stem_pool:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, (width, blocks) in enumerate(zip(c.stage_widths, c.stage_blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = ResidualBlock(width, stride, c.bottleneck, c.norm_groups, name=f"stage{stage}_block{block}")(x)
        x = x.mean(axis=2)  # [b, t, d]
        pooled = jnp.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
        return unit(nn.Dense(c.embedding_dim, name="projection")(nn.LayerNorm(name="pooled_norm")(pooled)))
