"""Encodes audio as token streams with SoundStream, w2v-BERT, MuLan and, if there is one, the melody model."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax.bundles import Bundle, Part
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SAMPLE_RATE, SEMANTIC
from musiclm_jax.tokenizers import melody, mulan, soundstream, w2v_bert

MADE_BY = {SEMANTIC.name: "w2v_bert", ACOUSTIC.name: "soundstream", MULAN.name: "mulan", MELODY.name: "melody"}
# A whole number of semantic frames is also a whole number of acoustic frames.
SAMPLES_PER_SEMANTIC_FRAME = SAMPLE_RATE // SEMANTIC.frame_rate


@dataclasses.dataclass(frozen=True)
class Tokenizers:
    """Configs and variables of the tokenizers."""

    soundstream: Part
    w2v_bert: Part
    mulan: Part
    melody: Part | None = None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "Tokenizers":
        """Reads the tokenizers of a bundle.

        Raises:
          BundleError: if one is missing or damaged.
        """
        own = bundle.part("melody") if bundle.has("melody") else None
        return cls(bundle.part("soundstream"), bundle.part("w2v_bert"), bundle.mulan(), own)

    def tokenize(self, audio: np.ndarray, known: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Encodes clips of equal length as token streams; compiles once per shape.

        Args:
          audio: float32 `[batch, samples]`, 24 kHz; samples is a multiple of 960 (one semantic frame).
          known: names of streams to leave out.

        Returns:
          int32 codes: "semantic" `[batch, t]`, "acoustic" `[batch, 2 t, 12]`, "mulan" `[batch, 12]` and, with a melody
          model, "melody" `[batch, 72]` of the first 10 s.

        Raises:
          ValueError: if `audio` does not have this shape.
        """
        if audio.ndim != 2 or audio.shape[1] == 0 or audio.shape[1] % SAMPLES_PER_SEMANTIC_FRAME:
            raise ValueError(
                f"audio has shape {audio.shape}: expected [batch, samples] with samples a positive multiple of "
                f"{SAMPLES_PER_SEMANTIC_FRAME} (one semantic frame); crop it first"
            )
        encoders = {
            SEMANTIC.name: (encode_semantic, self.w2v_bert),
            ACOUSTIC.name: (encode_acoustic, self.soundstream),
            MULAN.name: (encode_mulan, self.mulan),
            MELODY.name: (encode_melody, self.melody),
        }
        return {
            name: np.asarray(encode(part, audio))
            for name, (encode, part) in encoders.items()
            if part is not None and name not in known
        }

    def caption_codes(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts as MuLan codes: int32 `[texts, 12]`."""
        config, variables = self.mulan
        return np.asarray(mulan.tokens(config, variables, mulan.embed_text(config, variables, texts), "text"))


def encode_semantic(part: Part, audio: np.ndarray) -> jax.Array:
    """Encodes audio `[batch, samples]` as semantic codes, int32 `[batch, t]`."""
    return _semantic(part.config, part.variables, audio)


def encode_acoustic(part: Part, audio: np.ndarray) -> jax.Array:
    """Encodes audio `[batch, samples]` as acoustic codes, int32 `[batch, 2 t, 12]`."""
    return _acoustic(part.config, part.variables, audio)


def encode_mulan(part: Part, audio: np.ndarray) -> jax.Array:
    """Encodes audio `[batch, samples]` as MuLan codes, int32 `[batch, 12]`."""
    return _mulan(part.config, part.variables, audio)


def encode_melody(part: Part, audio: np.ndarray) -> jax.Array:
    """Encodes the first 10 s of audio `[batch, samples]` as melody codes, int32 `[batch, 72]`."""
    return melody.tokens(part.config, part.variables, audio)


# Configs are hashable (frozen dataclasses), so these compile once per config and shape, not once per object.
@functools.partial(jax.jit, static_argnums=0)
def _semantic(config: w2v_bert.W2vBertConfig, variables: Any, audio: jax.Array) -> jax.Array:
    return w2v_bert.semantic_tokens(config, variables, audio)


@functools.partial(jax.jit, static_argnums=0)
def _acoustic(config: soundstream.SoundStreamConfig, variables: Any, audio: jax.Array) -> jax.Array:
    return soundstream.encode(config, variables, audio)


@functools.partial(jax.jit, static_argnums=0)
def _mulan(config: mulan.MulanConfig, variables: Any, audio: jax.Array) -> jax.Array:
    return mulan.tokens(config, variables, mulan.embed_audio(config, variables, audio), "audio")
