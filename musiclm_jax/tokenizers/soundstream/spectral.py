"""Encoder and decoder of SoundStream in the frequency domain: short-time spectra in, short-time spectra out.

Convolutions on the waveform spend most of their work on rates of thousands of frames a second. Here the fastest layers
run once a hop (150 times a second), on whole spectra, and the decoder ends in an inverse Fourier transform with
overlap-add (Vocos, arXiv 2306.00814). The layers in between are ConvNeXt blocks, causal, with their left context passed
explicitly as in `causal`.

Hop j is the window of `fft_size` samples that begins at sample `hop * j`, in the encoder and in the decoder. Its end
lies `lookahead` samples after the end of the hop, so that much of the future is in a frame's code, while the samples of
a frame are complete as soon as its code is known.
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
RMS_FLOOR = 1e-3  # of the samples of a window, where they are scaled to unit power: -60 dB
HEAD_GAIN = 4.0  # see head_scale; the lowest bins of loud music are in the tens
HEAD_CORNER = 40.0  # its fall begins at a HEAD_CORNER-th of the sample rate, 600 Hz


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """Sizes of the networks. By default 7 million parameters and frames of 480 samples."""

    hop: int = 160  # samples from one spectrum to the next
    fft_size: int = 640  # samples of a window, a multiple of hop
    hops_per_frame: int = 3  # spectra in one frame of codes
    encoder_width: int = 160  # channels of the encoder's blocks, once a hop
    encoder_hop_blocks: int = 3  # their number
    encoder_frame_blocks: int = 2  # blocks of the encoder once a frame
    width: int = 320  # channels of the blocks once a frame, in encoder and decoder
    decoder_frame_blocks: int = 4  # blocks of the decoder once a frame
    decoder_width: int = 256  # channels of the decoder's blocks, once a hop
    decoder_hop_blocks: int = 5  # their number
    kernel_size: int = 7  # frames that a convolution sees, the present one included
    expansion: int = 3  # hidden channels of a block relative to its width
    layer_scale: float = 0.1  # of a block's branch at the start: small, for a nearly linear network

    def __post_init__(self) -> None:
        if self.hop < 1 or self.fft_size % self.hop or self.fft_size // self.hop < 3:
            raise ValueError(f"fft_size {self.fft_size} must be a multiple of hop {self.hop}, three times it or more")
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
        """Samples after the end of a frame that its code depends on."""
        return self.fft_size - self.hop


@functools.cache
def inverse_basis(fft_size: int, hop: int) -> np.ndarray:
    """Turns spectra into windowed segments whose overlap-add undoes `spectrogram.stft`.

    Returns:
      float32 `[2 * (fft_size // 2 + 1), fft_size]`: rows for the real parts, then the imaginary parts. The window is
      Hann's, divided by the sum of its squares over the windows that overlap, which is constant.
    """
    forward = spectrogram.fourier_basis(fft_size, fft_size).astype(np.float64)
    once = np.isin(np.arange(fft_size // 2 + 1), (0, fft_size // 2))  # all other bins stand for their conjugates, too
    weights = np.tile(np.where(once, 1.0, 2.0), 2) / fft_size
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
    return (weights[:, None] * forward.T / (np.sum(hann**2) / hop)).astype(np.float32)


def head_scale(fft_size: int) -> np.ndarray:
    """Falls with the frequency as music does, so that the outputs of the decoder are of one size in all bins.

    Returns:
      float32 `[2 * (fft_size // 2 + 1)]`, for the real parts, then the imaginary parts.
    """
    bins = np.arange(fft_size // 2 + 1)
    return np.tile(HEAD_GAIN / (1 + bins * HEAD_CORNER / fft_size), 2).astype(np.float32)


def overlap_add(segments: jax.Array, context: jax.Array | None, hop: int) -> tuple[jax.Array, jax.Array]:
    """Adds up segments that begin one hop apart.

    Args:
      segments: float32 `[b, hops, fft_size]`.
      context: segments before them that reach into the first hop, `[b, fft_size // hop - 1, fft_size]`; None for none.
      hop: in samples.

    Returns:
      The samples that later segments do not reach, `[b, hops * hop]`, and the context for the segments that follow.
    """
    b, hops, size = segments.shape
    parts = size // hop
    extended = extend(segments, context, parts - 1)
    # The segment p hops ago has its part p here.
    audio = sum(
        extended[:, parts - 1 - p : parts - 1 - p + hops, p * hop : (p + 1) * hop] for p in reversed(range(parts))
    )
    return jnp.reshape(audio, (b, hops * hop)), extended[:, hops:]


class ConvNeXtBlock(nn.Module):
    """Residual block: a causal convolution of each channel by itself, then two linear layers at each frame."""

    config: SpectralConfig
    dtype: str = "float32"  # of the linear layers

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns `[b, t, c]` and the context for the block that follows; a `context` of None is silence."""
        taps = self.config.kernel_size
        t, c = x.shape[1:]
        kernel = self.param("kernel", nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"), (taps, c))
        # A sum of shifted products is one pass over memory; convolutions in groups of one channel are slow in XLA.
        extended = extend(x, context, taps - 1)
        y = sum(kernel[k] * extended[:, k : k + t] for k in range(taps))
        y = nn.LayerNorm(name="norm")(y)
        y = nn.Dense(self.config.expansion * c, dtype=self.dtype, name="up")(y)
        y = nn.Dense(c, dtype=self.dtype, name="down")(nn.gelu(y)).astype(jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.config.layer_scale), (c,))
        return x + scale * y, extended[:, t:]


class SpectralEncoder(nn.Module):
    """Audio `[b, samples]` -> embeddings `[b, samples // frame_size, embedding_dim]`."""

    config: SpectralConfig
    embedding_dim: int
    dtype: str = "float32"  # of the linear layers

    @nn.compact
    def __call__(self, audio: jax.Array) -> jax.Array:
        """Returns the embeddings of the whole audio; silence lies before and after it."""
        config = self.config
        chain = Chain(None)
        padded = jnp.pad(audio, ((0, 0), (0, config.lookahead)))
        magnitude = spectrogram.magnitude(padded, config.fft_size, config.hop)
        windows = spectrogram.frame(padded, config.fft_size, config.hop)
        # The level is in the magnitudes; here is the course of the samples, as loud in quiet places as in loud ones.
        windows = windows * np.hanning(config.fft_size + 1)[:-1].astype(np.float32)
        windows /= jnp.sqrt(jnp.mean(windows**2, axis=-1, keepdims=True) + RMS_FLOOR**2)
        x = nn.Dense(config.encoder_width, dtype=self.dtype, name="windows_in")(windows).astype(jnp.float32)
        # Roughly -1.5 to 1.5.
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
        """Returns the audio and the context for the embeddings that follow; a `context` of None is silence."""
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
        # Real and imaginary parts as they are. In trials of 100 to 300 steps the waveform was not found from magnitude
        # and phase (Vocos) or with a predicted gain for each bin.
        spectrum = nn.Dense(config.fft_size + 2, name="out")(x) * head_scale(config.fft_size)
        # In full precision also on accelerators, as the STFT: the noise of less is heard in quiet bins.
        basis = inverse_basis(config.fft_size, config.hop)
        segments = jnp.matmul(spectrum, basis, precision=jax.lax.Precision.HIGHEST)
        audio, following = overlap_add(segments, None if context is None else context[-1], config.hop)
        return audio, (*chain.new, following)
