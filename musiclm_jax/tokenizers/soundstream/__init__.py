"""SoundStream, the neural audio codec that makes the acoustic tokens (arXiv 2107.03312)."""

from musiclm_jax.tokenizers.soundstream.model import (
    SoundStreamConfig,
    decode,
    decode_streaming,
    encode,
    initial_decoder_context,
)

__all__ = [
    "SoundStreamConfig",
    "decode",
    "decode_streaming",
    "encode",
    "initial_decoder_context",
]
