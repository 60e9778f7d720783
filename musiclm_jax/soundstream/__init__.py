"""SoundStream, the neural audio codec whose codes are the acoustic tokens (arXiv 2107.03312)."""

from musiclm_jax.soundstream.model import SoundStreamConfig, decode, encode, encode_streaming

__all__ = ["SoundStreamConfig", "decode", "encode", "encode_streaming"]
