"""The lead of a clip by itself, sung or whistled, from the pitch classes that the corpus tells.

A stage that is to follow a voice (`--melody`) is trained with voices. The melody of the clip would be that of its
whole mixture: accompaniment, bass and drums are heard with it.
"""

import zlib

import numpy as np

from musiclm_jax.corpus import voices
from musiclm_jax.corpus.renditions import octaves
from musiclm_jax.data.tokens import MISSING_PITCH, PITCH_CLASS_RATE, SAMPLE_RATE

SHORTEST = 2  # frames of a note; less is where one note goes over into the next
WANDERS = 7  # semitones out of a voice's range from which on a note is sung an octave or more nearer to it
FIRST_PITCH = 62  # MIDI pitch near which a tune begins
VELOCITY = 96
OWN_SHARE = 0.25  # of clips whose melody is that of the clip itself, as that of a recording may be


def tune(pitch_class: np.ndarray) -> np.ndarray:
    """Notes of a lead, each in the octave that is nearest to the note before.

    Args:
      pitch_class: int `[frames]` as audio records have it (`records.audio_example`).

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
    """What the melody of a clip is heard from: its lead by a voice, drawn by the clip's name, or the clip itself.

    Args:
      clip_id: names the clip.
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
    # The steps of a lead that leaps by more than half octaves add up: it can end where nobody sings.
    notes[:, 2] += 12 * np.ceil(np.maximum(reach[0] - WANDERS - notes[:, 2], 0) / 12)
    notes[:, 2] -= 12 * np.ceil(np.maximum(notes[:, 2] - reach[1] - WANDERS, 0) / 12)
    return voice(notes, len(audio) / SAMPLE_RATE, rng)
