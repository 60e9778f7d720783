"""SoundStream: a causal convolutional encoder and decoder around a residual vector quantizer (arXiv 2107.03312).

Every layer is a causal convolution of stride 1: a strided convolution with kernel size 2s folds s frames into the
channels and reads the previous folded frame too, and a transposed convolution does the reverse. Layers carry their left
context explicitly, so that decoding block by block equals decoding the whole (`decode_streaming`).

With `SoundStreamConfig.spectral`, encoder and decoder work on short-time spectra instead (`spectral`), with the same
quantizer.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.quantization import RVQConfig
from musiclm_jax.tokenizers.soundstream.causal import CausalConv, Chain, Context, fold, unfold
from musiclm_jax.tokenizers.soundstream.spectral import SpectralConfig, SpectralDecoder, SpectralEncoder

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class SoundStreamConfig:
    """SoundStream as in MusicLM: 50 frames of 12 x 1024 codes per second of 24 kHz audio."""

    sample_rate: int = 24_000  # Hz
    patch_size: int = 1  # samples folded into the channels before the first convolution (1 in the paper)
    channels: int = 32  # C, channels of the first convolution; doubles with each block
    strides: tuple[int, ...] = (3, 4, 5, 8)  # of the encoder's blocks; the paper does not say how 480 is split
    dilations: tuple[int, ...] = (1, 3, 9)  # of a block's residual units
    kernel_size: int = 7  # of the first, the last and the dilated convolutions
    embedding_dim: int = 256  # D, dimensions of the quantized vectors; not given in the paper
    num_quantizers: int = 12  # levels of the residual quantizer
    codebook_size: int = 1024  # codes per level
    ema_decay: float = 0.99  # of the codebooks
    dead_code_threshold: float = 2.0  # a code with fewer vectors per step is replaced
    quantizer_dropout: bool = True  # train some samples with fewer levels
    dropout_share: float = 1.0  # share of samples that quantizer dropout applies to
    discriminator_channels: int = 32  # of the first convolution of the STFT discriminator
    wave_discriminator_channels: int = 16  # of the first convolution of the waveform discriminators
    wave_discriminator_max_channels: int = 1024  # channels grow fourfold per layer up to this
    wave_discriminator_groups: int = 4  # input channels per group of their strided convolutions
    wave_discriminators: bool = True  # False: use only STFT discriminators
    discriminator_windows: tuple[int, ...] = (1024,)  # samples; one discriminator per STFT window, the hop is a quarter
    # Encoder and decoder on spectra, which replace patch_size, channels, strides, dilations and kernel_size. A mapping
    # of its fields is accepted too, as in JSON and gin files.
    spectral: SpectralConfig | None = None
    # dtype of matrix products in the discriminators and the spectral networks during training, one of DTYPES: bfloat16
    # is twice as fast on accelerators. `encode` and `decode` always use float32.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.spectral, Mapping):
            object.__setattr__(self, "spectral", SpectralConfig(**self.spectral))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {DTYPES}")
        if not self.discriminator_windows and not self.wave_discriminators:
            raise ValueError("no discriminators: discriminator_windows is empty and wave_discriminators is False")
        if self.patch_size < 1 or not self.strides or min(self.strides) < 1:
            raise ValueError(f"patch_size {self.patch_size} and strides {self.strides} must be at least 1")

    @property
    def total_stride(self) -> int:
        """Samples per frame."""
        if self.spectral is not None:
            return self.spectral.frame_size
        return self.patch_size * math.prod(self.strides)

    @property
    def rvq(self) -> RVQConfig:
        """Config of the quantizer."""
        return RVQConfig(
            num_quantizers=self.num_quantizers,
            codebook_size=self.codebook_size,
            dim=self.embedding_dim,
            ema_decay=self.ema_decay,
            dead_code_threshold=self.dead_code_threshold,
            quantizer_dropout=self.quantizer_dropout,
            dropout_share=self.dropout_share,
        )


def _inlined(parent: nn.Module, child: nn.Module) -> nn.Module:
    """Makes the child's parameters siblings of the parent's own, with flat names such as "block0_unit1_dilated".

    Bundles and checkpoints have these names.
    """
    nn.share_scope(parent, child)
    return child


class ResidualUnit(nn.Module):
    """A dilated convolution and one with kernel size 1, added to the input."""

    kernel_size: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, chain: Chain) -> jax.Array:
        """Maps `[b, t, c]` to the same shape."""
        channels = x.shape[-1]
        dilated = CausalConv(channels, self.kernel_size, self.dilation, name=f"{self.name}_dilated")
        # Units start as the identity. Without normalisation, their sum would grow with depth, and a decoder that starts
        # loud spends its first thousand steps on becoming silent, while the codebooks collapse.
        pointwise = CausalConv(channels, 1, init_gain=0.0, name=f"{self.name}_pointwise")
        return x + chain(pointwise, nn.elu(chain(dilated, nn.elu(x))))


class EncoderBlock(nn.Module):
    """Residual units with increasing dilation, then a strided convolution with kernel size `2 * stride`."""

    config: SoundStreamConfig
    channels: int  # of the output
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, chain: Chain) -> jax.Array:
        """Maps `[b, t, c]` to `[b, t // stride, channels]`."""
        for i, dilation in enumerate(self.config.dilations):
            x = _inlined(self, ResidualUnit(self.config.kernel_size, dilation, name=f"{self.name}_unit{i}"))(x, chain)
        down = CausalConv(self.channels, 2, name=f"{self.name}_down")
        return chain(down, fold(nn.elu(x), self.stride))


class DecoderBlock(nn.Module):
    """A transposed convolution with kernel size `2 * stride`, then residual units with increasing dilation."""

    config: SoundStreamConfig
    channels: int  # of the output
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, chain: Chain) -> jax.Array:
        """Maps `[b, t, c]` to `[b, t * stride, channels]`."""
        # Each input frame contributes to its own and the next folded output frame.
        up = CausalConv(self.stride * self.channels, 2, name=f"{self.name}_up")
        x = unfold(chain(up, nn.elu(x)), self.stride)
        for i, dilation in enumerate(self.config.dilations):
            x = _inlined(self, ResidualUnit(self.config.kernel_size, dilation, name=f"{self.name}_unit{i}"))(x, chain)
        return x


class Encoder(nn.Module):
    """Audio `[b, samples]` -> embeddings `[b, samples // total_stride, embedding_dim]`."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, audio: jax.Array) -> jax.Array:
        """Returns the embeddings."""
        config = self.config
        chain = Chain(None)
        x = fold(audio[..., None], config.patch_size)
        x = chain(CausalConv(config.channels, config.kernel_size, name="conv_in"), x)
        for i, stride in enumerate(config.strides):
            x = _inlined(self, EncoderBlock(config, config.channels * 2 ** (i + 1), stride, name=f"block{i}"))(x, chain)
        return chain(CausalConv(config.embedding_dim, 3, name="conv_out"), nn.elu(x))


class Decoder(nn.Module):
    """Embeddings `[b, frames, embedding_dim]` -> audio `[b, frames * total_stride]`."""

    config: SoundStreamConfig

    @nn.compact
    def __call__(self, x: jax.Array, context: Context | None = None) -> tuple[jax.Array, Context]:
        """Returns the audio and the context for the next block of embeddings; a `context` of None is silence."""
        config = self.config
        chain = Chain(context)
        x = chain(CausalConv(config.channels * 2 ** len(config.strides), config.kernel_size, name="conv_in"), x)
        for i, stride in reversed(list(enumerate(config.strides))):
            x = _inlined(self, DecoderBlock(config, config.channels * 2**i, stride, name=f"block{i}"))(x, chain)
        x = chain(CausalConv(config.patch_size, config.kernel_size, init_gain=0.01, name="conv_out"), nn.elu(x))
        return unfold(x, config.patch_size)[..., 0], tuple(chain.new)


def _encoder(config: SoundStreamConfig) -> nn.Module:
    if config.spectral is not None:
        return SpectralEncoder(config.spectral, config.embedding_dim, config.dtype)
    return Encoder(config)


def _decoder(config: SoundStreamConfig) -> nn.Module:
    return Decoder(config) if config.spectral is None else SpectralDecoder(config.spectral, config.dtype)


def _exact(config: SoundStreamConfig) -> SoundStreamConfig:
    # A bundle has the config of its training, but is used on all kinds of machines.
    return dataclasses.replace(config, dtype="float32")


def init_params(config: SoundStreamConfig, key: jax.Array) -> dict[str, Any]:
    """Returns initial parameters {"encoder": ..., "decoder": ...}, float32."""
    encoder_key, decoder_key = jax.random.split(key)
    audio = jnp.zeros((1, config.total_stride))
    embeddings = jnp.zeros((1, 1, config.embedding_dim))
    return {
        "encoder": _encoder(config).init(encoder_key, audio)["params"],
        "decoder": _decoder(config).init(decoder_key, embeddings)["params"],
    }


def _check_audio(config: SoundStreamConfig, audio: jax.Array) -> None:
    if audio.ndim != 2 or audio.shape[1] == 0 or audio.shape[1] % config.total_stride:
        raise ValueError(
            f"audio of shape {audio.shape}: expected [batch, samples] with samples a positive multiple of "
            f"{config.total_stride} (one frame): crop or pad it"
        )


def embed(config: SoundStreamConfig, params: Mapping[str, Any], audio: jax.Array) -> jax.Array:
    """Computes the encoder's output before quantization: float32 `[b, samples // total_stride, embedding_dim]`.

    Raises:
      ValueError: if `audio` is not `[b, samples]` with a whole number of frames.
    """
    _check_audio(config, audio)
    return _encoder(config).apply({"params": params["encoder"]}, audio)


def synthesize(config: SoundStreamConfig, params: Mapping[str, Any], embeddings: jax.Array) -> jax.Array:
    """Runs the decoder on embeddings `[b, frames, embedding_dim]`: audio float32 `[b, frames * total_stride]`."""
    return _decoder(config).apply({"params": params["decoder"]}, embeddings)[0]


def encode(config: SoundStreamConfig, variables: Mapping[str, Any], audio: jax.Array) -> jax.Array:
    """Encodes audio as codes.

    Args:
      config: the model.
      variables: {"params", "codebooks"} from `SoundStreamLearner.variables`.
      audio: float32 `[b, samples]` at 24 kHz in [-1, 1], samples a multiple of the total stride.

    Returns:
      int32 `[b, samples // total_stride, quantizers]`.

    Raises:
      ValueError: if `audio` is not `[b, samples]` with a whole number of frames.
    """
    return quantization.encode(variables["codebooks"], embed(_exact(config), variables["params"], audio))


def decode(config: SoundStreamConfig, variables: Mapping[str, Any], codes: jax.Array) -> jax.Array:
    """Decodes codes, int `[b, frames, q]` with q <= quantizers, to float32 `[b, frames * total_stride]`, not clipped.

    Raises:
      ValueError: if there are more levels than codebooks.
    """
    return synthesize(_exact(config), variables["params"], quantization.decode(variables["codebooks"], codes))


def initial_decoder_context(config: SoundStreamConfig, params: Mapping[str, Any], batch: int) -> Context:
    """Returns the context of silence for `decode_streaming`."""
    embeddings = jnp.zeros((batch, 1, config.embedding_dim))
    _, shapes = jax.eval_shape(lambda: _decoder(config).apply({"params": params["decoder"]}, embeddings))
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def decode_streaming(
    config: SoundStreamConfig, variables: Mapping[str, Any], codes: jax.Array, context: Context
) -> tuple[jax.Array, Context]:
    """Decodes the next block of a stream; the concatenated audio of all blocks equals `decode` of the whole.

    Args:
      config: the model.
      variables: as for `encode`.
      codes: int `[b, frames, q]`, q <= quantizers, any number of frames.
      context: from `initial_decoder_context` or the previous block.

    Returns:
      float32 `[b, frames * total_stride]` and the context for the next block.

    Raises:
      ValueError: if there are more levels than codebooks.
    """
    embeddings = quantization.decode(variables["codebooks"], codes)
    return _decoder(_exact(config)).apply({"params": variables["params"]["decoder"]}, embeddings, context)
