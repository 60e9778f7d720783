"""Leads performed alone: notes reconstructed from pitch classes, and voices that perform them."""

import librosa
import numpy as np

from musiclm_jax.corpus import leads, voices
from musiclm_jax.data.tokens import SAMPLE_RATE

# C for a second, a rest, D, a transition of one frame, and B, which is closest below D.
PITCH_CLASS = np.repeat([0, -1, 2, 5, 11], [25, 10, 20, 1, 44])


def test_notes_of_a_tune_are_runs_of_pitch_classes():
    notes = leads.tune(PITCH_CLASS)
    np.testing.assert_allclose(notes[:, :2], [[0, 1], [1.4, 2.2], [2.24, 4.0]])
    assert notes[:, 2].tolist() == [60, 62, 59]
    assert leads.tune(np.full(50, -1)).shape == (0, 4)


def sounding_pitch(audio):
    """Returns the MIDI pitch that librosa detects in most frames."""
    hz = librosa.yin(audio, fmin=60, fmax=2500, sr=SAMPLE_RATE)
    return int(np.bincount(np.round(69 + 12 * np.log2(hz / 440)).astype(int)).argmax())


def test_a_voice_performs_most_clips_in_their_pitch_classes():
    audio, own, heights = np.full(4 * SAMPLE_RATE, 0.25, np.float32), 0, []
    for number in range(24):
        heard = leads.performed(f"clip {number}", audio, PITCH_CLASS)
        assert heard.shape == audio.shape and heard.dtype == np.float32
        np.testing.assert_array_equal(heard, leads.performed(f"clip {number}", audio, PITCH_CLASS))
        if heard is audio:
            own += 1
        else:
            parts = [heard[:SAMPLE_RATE], heard[int(1.5 * SAMPLE_RATE) : int(2.2 * SAMPLE_RATE)], heard[-SAMPLE_RATE:]]
            pitches = [sounding_pitch(part) for part in parts]
            assert [pitch % 12 for pitch in pitches] == [0, 2, 11]
            heights.append(pitches[0])
            rest = heard[int(1.15 * SAMPLE_RATE) : int(1.3 * SAMPLE_RATE)]
            assert np.abs(rest).max() < 0.05 * np.abs(heard).max()
    assert 3 <= own <= 10
    sung = [pitch for pitch in heights if pitch < voices.WHISTLED_RANGE[0]]
    assert 3 <= len(sung) <= len(heights) - 3  # some are sung, some whistled, in different ranges
    assert min(sung) >= voices.SUNG_RANGE[0] and max(heights) <= voices.WHISTLED_RANGE[1]


def test_a_clip_without_a_lead_keeps_its_audio():
    audio = np.zeros(SAMPLE_RATE, np.float32)
    assert leads.performed("clip", audio, np.full(25, -1)) is audio
