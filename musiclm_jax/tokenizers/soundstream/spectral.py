"""Encoder and decoder of SoundStream in the frequency domain: both work on short-time spectra.

Convolutions on the waveform do most of their work at thousands of frames per second. Here the fastest layers run once
per hop (150 times per second) on whole spectra, and the decoder ends in an inverse Fourier transform with overlap-add
(Vocos, arXiv 2306.00814). The layers in between are causal ConvNeXt blocks that carry their left context explicitly, as
in `causal`.

In the encoder and the decoder, hop j has the window of `fft_size` samples that begins at sample `hop * j`. The window
ends `lookahead` samples after the hop, so the encoder looks that far ahead. The decoder does not wait: the samples of a
frame are complete as soon as its code is known.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data import spectrogram
from musiclm_jax.tokenizers.soundstream.causal import CausalConv, Chain, Context, extend, fold, unfold

LOG_FLOOR = 1e-2  # added to magnitudes before the logarithm, -84 dB of a sine of full scale
RMS_FLOOR = 1e-3  # lower limit of a window's RMS when it is scaled to unit power: -60 dB
HEAD_GAIN = 4.0  # see head_scale; the lowest bins of loud music are in the tens
HEAD_CORNER = 40.0  # head_scale begins to fall at 1 / HEAD_CORNER of the sample rate, 600 Hz


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """Sizes of the networks; by default 7 million parameters and frames of 480 samples."""

    hop: int = 160  # samples from one spectrum to the next
    fft_size: int = 640  # samples of a window, a multiple of hop
    hops_per_frame: int = 3  # spectra per frame of codes
    encoder_width: int = 160  # channels of the encoder's blocks that run once per hop
    encoder_hop_blocks: int = 3  # number of these blocks
    encoder_frame_blocks: int = 2  # blocks of the encoder that run once per frame
    width: int = 320  # channels of the blocks that run once per frame, in encoder and decoder
    decoder_frame_blocks: int = 4  # blocks of the decoder that run once per frame
    decoder_width: int = 256  # channels of the decoder's blocks that run once per hop
    decoder_hop_blocks: int = 5  # number of these blocks
    kernel_size: int = 7  # frames that a convolution reads, the current one included
    expansion: int = 3  # hidden channels of a block relative to its width
    layer_scale: float = 0.1  # initial scale of a block's branch; small values make the network nearly linear

    def __post_init__(self) -> None:
        if self.hop < 1 or self.fft_size % self.hop or self.fft_size // self.hop < 3:
            raise ValueError(f"fft_size {self.fft_size} must be a multiple of hop {self.hop}, at least three times it")
        if self.fft_size % 2 or self.hops_per_frame < 1:
            raise ValueError(
                f"fft_size {self.fft_size} must be even and hops_per_frame {self.hops_per_frame} at least 1"
            )

    @property
    def frame_size(self) -> int:
        """Samples per frame of codes."""
        return self.hop * self.hops_per_frame

    @property
    def lookahead(self) -> int:
        """Number of samples after the end of a frame that its code depends on."""
        return self.fft_size - self.hop


@functools.cache
def inverse_basis(fft_size: int, hop: int) -> np.ndarray:
    """Returns the matrix that turns spectra into windowed segments whose overlap-add inverts `spectrogram.stft`.

    Returns:
      float32 `[2 * (fft_size // 2 + 1), fft_size]`: rows for the real parts, then the imaginary parts. The window is a
      Hann window divided by the sum of squares of the overlapping windows, which is constant.
    """
    forward = spectrogram.fourier_basis(fft_size, fft_size).astype(np.float64)
    once = np.isin(np.arange(fft_size // 2 + 1), (0, fft_size // 2))  # all other bins also stand for their conjugates
    weights = np.tile(np.where(once, 1.0, 2.0), 2) / fft_size
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
    return (weights[:, None] * forward.T / (np.sum(hann**2) / hop)).astype(np.float32)


def head_scale(fft_size: int) -> np.ndarray:
    """Returns a scale that falls with frequency as music does, so that the decoder's outputs are similar in all bins.

    Returns:
      float32 `[2 * (fft_size // 2 + 1)]`, for the real parts, then the imaginary parts.
    """
    bins = np.arange(fft_size // 2 + 1)
    return np.tile(HEAD_GAIN / (1 + bins * HEAD_CORNER / fft_size), 2).astype(np.float32)


def overlap_add(segments: jax.Array, context: jax.Array | None, hop: int) -> tuple[jax.Array, jax.Array]:
    """Adds up segments that begin one hop apart.

    Args:
      segments: float32 `[b, hops, fft_size]`.
      context: earlier segments that reach into the first hop, `[b, fft_size // hop - 1, fft_size]`; None for none.
      hop: hop in samples.

    Returns:
      The samples that later segments do not reach, `[b, hops * hop]`, and the context for the next segments.
    """
    b, hops, size = segments.shape
    parts = size // hop
    extended = extend(segments, context, parts - 1)
    # Part p of the segment p hops ago falls here.
    audio = sum(
        extended[:, parts - 1 - p : parts - 1 - p + hops, p * hop : (p + 1) * hop] for p in reversed(range(parts))
    )
    return jnp.reshape(audio, (b, hops * hop)), extended[:, hops:]


class ConvNeXtBlock(nn.Module):
    """Residual block: a causal depthwise convolution, then two linear layers at each frame."""

    config: SpectralConfig
    dtype: str = "float32"  # of the linear layers

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns `[b, t, c]` and the context for the next block; a `context` of None is silence."""
        taps = self.config.kernel_size
        t, c = x.shape[1:]
        kernel = self.param("kernel", nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"), (taps, c))
        # A sum of shifted products is one pass over memory; XLA's depthwise convolutions are slow.
        extended = extend(x, context, taps - 1)
        y = sum(kernel[None, None, k] * extended[:, k : k + t] for k in range(taps))
        y = nn.LayerNorm(name="norm")(y)
        y = nn.Dense(self.config.expansion * c, dtype=self.dtype, name="up")(y)
        y = nn.Dense(c, dtype=self.dtype, name="down")(nn.gelu(y)).astype(jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.config.layer_scale), (c,))
        return x + scale[None, None, :] * y, extended[:, t:]


class SpectralEncoder(nn.Module):
    """Audio `[b, samples]` -> embeddings `[b, samples // frame_size, embedding_dim]`."""

    config: SpectralConfig
    embedding_dim: int
    dtype: str = "float32"  # of the linear layers

    @nn.compact
    def __call__(self, audio: jax.Array) -> jax.Array:
        """Returns the embeddings of the whole audio, with silence before and after it."""
        config = self.config
        chain = Chain(None)
        padded = jnp.pad(audio, ((0, 0), (0, config.lookahead)))
        magnitude = spectrogram.magnitude(padded, config.fft_size, config.hop)
        windows = spectrogram.frame(padded, config.fft_size, config.hop)
        # The magnitudes carry the level; the waveform is scaled to unit power, in quiet and loud passages alike.
        windows = windows * np.hanning(config.fft_size + 1)[None, None, :-1].astype(np.float32)
        windows /= jnp.sqrt(jnp.mean(windows**2, axis=-1, keepdims=True) + RMS_FLOOR**2)
        x = nn.Dense(config.encoder_width, dtype=self.dtype, name="windows_in")(windows).astype(jnp.float32)
        # The scaled log magnitudes are roughly within -1.5..1.5.
        x += nn.Dense(config.encoder_width, name="magnitude_in")((jnp.log(magnitude + LOG_FLOOR) + 1) / 3)
        x = nn.LayerNorm(name="norm_in")(x)
        for i in range(config.encoder_hop_blocks):
            x = chain(ConvNeXtBlock(config, self.dtype, name=f"hop_block{i}"), x)
        x = fold(nn.LayerNorm(name="norm_fold")(x), config.hops_per_frame)
        x = nn.Dense(config.width, dtype=self.dtype, name="fold")(x).astype(jnp.float32)
        for i in range(config.encoder_frame_blocks):
            x = chain(ConvNeXtBlock(config, self.dtype, name=f"frame_block{i}"), x)
        return nn.Dense(self.embedding_dim, name="out")(nn.LayerNorm(name="norm_out")(x))


class SpectralDecoder(nn.Module):
    """Embeddings `[b, frames, embedding_dim]` -> audio `[b, frames * frame_size]`."""

    config: SpectralConfig
    dtype: str = "float32"  # of the linear layers

    @nn.compact
    def __call__(self, x: jax.Array, context: Context | None = None) -> tuple[jax.Array, Context]:
        """Returns the audio and the context for the next block of embeddings; a `context` of None is silence."""
        config = self.config
        chain = Chain(None if context is None else context[:-1])
        x = nn.LayerNorm(name="norm_in")(chain(CausalConv(config.width, config.kernel_size, name="conv_in"), x))
        for i in range(config.decoder_frame_blocks):
            x = chain(ConvNeXtBlock(config, self.dtype, name=f"frame_block{i}"), x)
        x = nn.LayerNorm(name="norm_unfold")(x)
        x = nn.Dense(config.hops_per_frame * config.decoder_width, dtype=self.dtype, name="unfold")(x)
        x = unfold(x.astype(jnp.float32), config.hops_per_frame)
        for i in range(config.decoder_hop_blocks):
            x = chain(ConvNeXtBlock(config, self.dtype, name=f"hop_block{i}"), x)
        x = nn.LayerNorm(name="norm_out")(x)
        # The outputs are real and imaginary parts. In trials of 100 to 300 steps, predicting magnitude and phase
        # (Vocos) or a gain for each bin did not lead to the waveform.
        spectrum = nn.Dense(config.fft_size + 2, name="out")(x) * head_scale(config.fft_size)[None, None, :]
        # Full precision on accelerators too, as in the STFT: less would be audible as noise in quiet bins.
        basis = inverse_basis(config.fft_size, config.hop)
        segments = jnp.matmul(spectrum, basis, precision=jax.lax.Precision.HIGHEST)
        audio, following = overlap_add(segments, None if context is None else context[-1], config.hop)
        return audio, (*chain.new, following)
