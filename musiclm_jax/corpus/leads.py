"""Performs a clip's lead alone, sung or whistled, from the pitch classes in the corpus's records.

A stage that should follow a voice (`--melody`) is trained with voices. Melody tokens of the clip's own audio would also
encode accompaniment, bass and drums.
"""

import zlib

import numpy as np

from musiclm_jax.corpus import voices
from musiclm_jax.corpus.renditions import octaves
from musiclm_jax.data.tokens import MISSING_PITCH, PITCH_CLASS_RATE, SAMPLE_RATE

SHORTEST = 2  # minimum frames of a note; shorter runs are transitions between notes
WANDERS = 7  # semitones; notes further outside a voice's range are moved by octaves
FIRST_PITCH = 62  # a tune begins close to this MIDI pitch
VELOCITY = 96
OWN_SHARE = 0.25  # share of clips that keep their own audio, since users may give a full recording as the melody


def tune(pitch_class: np.ndarray) -> np.ndarray:
    """Reconstructs the notes of a lead; each takes the octave closest to the note before.

    Args:
      pitch_class: int `[frames]`, as in audio records (`records.audio_example`).

    Returns:
      float `[n, 4]`: start and end in seconds, MIDI pitch, velocity.
    """
    changes = np.flatnonzero(np.diff(pitch_class)) + 1
    notes: list[tuple[float, float, float, float]] = []
    pitch = FIRST_PITCH
    for start, end in zip([0, *changes], [*changes, len(pitch_class)], strict=True):
        if pitch_class[start] != MISSING_PITCH and end - start >= SHORTEST:
            pitch += (int(pitch_class[start]) - pitch + 6) % 12 - 6
            notes.append((start / PITCH_CLASS_RATE, end / PITCH_CLASS_RATE, pitch, VELOCITY))
    return np.array(notes, float).reshape(-1, 4)


def performed(clip_id: str, audio: np.ndarray, pitch_class: np.ndarray) -> np.ndarray:
    """Returns the audio for a clip's melody tokens: its lead performed by a voice, or the clip itself.

    Args:
      clip_id: id of the clip; seeds the choice.
      audio: float32 `[samples]`, 24 kHz.
      pitch_class: as in `tune`.

    Returns:
      float32 `[samples]`.
    """
    notes, rng = tune(pitch_class), np.random.default_rng(zlib.crc32(clip_id.encode()))
    if not len(notes) or rng.random() < OWN_SHARE:
        return audio
    voice, reach = voices.VOICES[rng.integers(len(voices.VOICES))]
    notes[:, 2] += octaves(notes[:, 2], reach)
    # Leaps of more than half an octave are folded, so the pitch may drift out of the voice's range.
    notes[:, 2] += 12 * np.ceil(np.maximum(reach[0] - WANDERS - notes[:, 2], 0) / 12)
    notes[:, 2] -= 12 * np.ceil(np.maximum(notes[:, 2] - reach[1] - WANDERS, 0) / 12)
    return voice(notes, len(audio) / SAMPLE_RATE, rng)
