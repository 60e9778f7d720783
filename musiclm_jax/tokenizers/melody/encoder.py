"""The melody model: a Transformer over patches of a log spectrum (ViT, arXiv 2010.11929), pooled to one unit vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.data.spectrogram import log_mel
from musiclm_jax.tokenizers.melody.config import MelodyConfig
from musiclm_jax.tokenizers.melody.spectrum import log_semitones
from musiclm_jax.tokenizers.mulan.audio_tower import unit


def features(config: MelodyConfig, audio: jax.Array) -> jax.Array:
    """Computes the scaled log spectrum of windows `[batch, window_samples]`: float32 `[batch, frames, mels]`.

    Each window is first scaled to the same RMS: loudness says nothing about a melody.
    """
    level = jnp.sqrt(jnp.mean(jnp.square(audio), axis=-1, keepdims=True))
    audio = 0.1 * audio / jnp.maximum(level, 1e-4)
    mel = log_semitones(audio, config.mel, config.lowest_pitch) if config.semitones else log_mel(audio, config.mel)
    return (mel - config.mel_mean) / config.mel_scale


def patches(config: MelodyConfig, mel: jax.Array) -> jax.Array:
    """Cuts spectra `[batch, frames, mels]` into patches at every height: `[batch, patches, heights, values]`.

    A patch of all mels has one height; a patch of `patch_mels` has as many as there are positions where it fits.
    Patches longer than their hop overlap, and extend past the ends of the window into zeros.
    """
    c = config
    excess = c.patch_frames - c.patch_hop
    mel = jnp.pad(mel, ((0, 0), (excess // 2, excess - excess // 2), (0, 0)))
    span = c.patches * c.patch_hop
    frames = jnp.stack([mel[:, i : i + span : c.patch_hop] for i in range(c.patch_frames)], axis=-1)
    heights = c.num_mels - c.patch_mels + 1
    return jnp.concatenate([frames[:, :, i : i + heights] for i in range(c.patch_mels)], axis=-1)


class Block(nn.Module):
    """A pre-norm Transformer layer: attention and feed-forward."""

    config: MelodyConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, patches, width]` to the same shape."""
        c = self.config
        inner = c.num_heads * c.head_dim
        attention = nn.MultiHeadDotProductAttention(c.num_heads, qkv_features=inner, name="attention")
        x = x + attention(nn.LayerNorm(name="attention_norm")(x))
        hidden = nn.gelu(nn.Dense(c.mlp_width, name="mlp_in")(nn.LayerNorm(name="mlp_norm")(x)))
        return x + nn.Dense(c.width, name="mlp_out")(hidden)


class MelodyEncoder(nn.Module):
    """Maps the log spectrum of a window to a unit vector."""

    config: MelodyConfig

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        """Embeds windows.

        Args:
          mel: float32 `[batch, frames, mels]` from `features`.

        Returns:
          float32 `[batch, embedding_dim]`, unit vectors.
        """
        c = self.config
        x = nn.Dense(c.width, name="patches")(patches(c, mel)).max(axis=2)
        x = x + self.param("positions", nn.initializers.normal(0.02), (c.patches, c.width))[None]
        for layer in range(c.num_layers):
            x = Block(c, name=f"layer_{layer}")(x)
        return unit(nn.Dense(c.embedding_dim, name="projection")(nn.LayerNorm(name="norm")(x).mean(axis=1)))
