"""Renditions of a passage share its melody and differ in the rest."""

import numpy as np
import pytest

from musiclm_jax.corpus import instruments, rendering, renditions, voices
from musiclm_jax.corpus.arrangement import UnsuitableError
from musiclm_jax.corpus.scores import UNKNOWN_PROGRAM, Score

RATE = rendering.RATE
NOTES = np.array([[0.1, 0.9, 69, 100], [1.0, 1.9, 72, 100], [2.2, 2.9, 64, 100]], np.float32)


def hz_at(audio, second, low, high):
    """Returns the loudest frequency between two limits, in the 0.3 s around a time."""
    part = audio[round((second - 0.15) * RATE) : round((second + 0.15) * RATE)]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
    hz = np.fft.rfftfreq(1 << 17, 1 / RATE)
    spectrum[(hz < low) | (hz > high)] = 0
    return hz[np.argmax(spectrum)]


def semitones(a, b):
    return 12 * np.log2(a / b)


@pytest.mark.parametrize(("voice", "up"), [(voices.sung, 0), (voices.whistled, 12)])
def test_a_voice_has_the_pitches_and_rests_of_its_notes(voice, up):
    notes = NOTES + np.array([0, 0, up, 0], np.float32)
    audio = voice(notes, 3.0, np.random.default_rng(1))
    assert audio.shape == (3 * RATE,) and audio.dtype == np.float32 and np.isfinite(audio).all()
    for start, end, pitch, _ in notes:
        expected = 440 * 2 ** ((pitch - 69) / 12)
        # The fundamental or a harmonic, which a vowel may make louder.
        found = hz_at(audio, (start + end) / 2, 0.8 * expected, 3000)
        assert abs(semitones(found, expected * max(1, round(found / expected)))) < 0.8
    rest = audio[round(2.0 * RATE) : round(2.1 * RATE)]
    assert np.abs(rest).max() < 0.1 * np.abs(audio).max()


def test_a_whistle_is_nearly_a_sine_and_a_song_is_not():
    notes = NOTES + np.array([0, 0, 12, 0], np.float32)

    def share(audio):
        spectrum = np.abs(np.fft.rfft(audio[: RATE // 2] * np.hanning(RATE // 2))) ** 2
        hz = np.fft.rfftfreq(RATE // 2, 1 / RATE)
        return spectrum[(hz > 800) & (hz < 960)].sum() / spectrum.sum()

    assert share(voices.whistled(notes, 3.0, np.random.default_rng(0))) > 0.9
    assert share(voices.sung(notes - np.array([0, 0, 12, 0]), 3.0, np.random.default_rng(0))) < 0.7


def tune(source="ryansMammoth"):
    rng = np.random.default_rng(0)
    scale = np.array([67, 69, 71, 72, 74, 76, 78, 79])
    pitches = scale[np.abs(np.cumsum(rng.integers(-2, 3, 96))) % 8]
    notes = np.array([[0.5 * i, 0.5, pitch, 0, 100] for i, pitch in enumerate(pitches)], np.float32)
    return Score(f"{source}/1", source, "A tune", "reel", "", (4, 4), 0.0, 7, "major", 0.0, [UNKNOWN_PROGRAM], notes)


class Recorder:
    """A fake synthesizer that records what it is asked to play."""

    def __init__(self):
        self.tracks = []

    def stem(self, tracks, seconds):
        self.tracks.append(tracks)
        return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_renditions_share_steps_and_rhythm_and_differ_in_key_tempo_and_player():
    score = tune()
    played = renditions.passage(np.random.default_rng(3), score)
    renderer, leads = Recorder(), []
    for seed in range(40):
        player, audio = renditions.render(np.random.default_rng(seed), renderer, played)
        assert player in renditions.PLAYERS and audio.shape == (round(renditions.SECONDS * RATE),)
    for [(font, program, is_drums, notes), *more] in renderer.tracks:
        if not more and not is_drums and len(notes) == len(played.notes):
            steps, expected = np.diff(notes[:, 2]), np.diff(played.notes[:, 2])
            np.testing.assert_array_equal(steps, expected)
            onsets, quarters = np.diff(notes[:, 0]), np.diff(played.notes[:, 0])
            np.testing.assert_allclose(onsets / onsets[0], quarters / quarters[0], rtol=1e-3)
            leads.append((font, program, notes[0, 2] % 12, round(float(onsets[0]), 3)))
    assert len({lead[:2] for lead in leads}) > 5 and len({lead[2] for lead in leads}) > 5
    tempi = [lead[3] for lead in leads]
    assert 1.1 < max(tempi) / min(tempi) <= renditions.FASTER**2 + 0.01
    assert len(leads) < 40  # others are sung and whistled
    assert any(is_drums for tracks in renderer.tracks for _, _, is_drums, _ in tracks)


def test_the_same_generator_makes_the_same_rendition():
    played = renditions.passage(np.random.default_rng(3), tune())
    first, again, other = (renditions.render(np.random.default_rng(s), Recorder(), played) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.audio, again.audio)
    assert (first.audio != other.audio).any()


def test_pitches_move_by_octaves_into_range():
    flute = instruments.BY_NAME["flute"]
    assert renditions.octaves(np.array([40, 45, 50]), (flute.low, flute.high)) == 36
    assert renditions.octaves(np.array([70, 75, 80]), (flute.low, flute.high)) == 0


def test_unsuitable_passages_are_named():
    with pytest.raises(UnsuitableError, match="bach/1 is not from a tune book"):
        renditions.passage(np.random.default_rng(0), tune("bach"))
    score = tune()
    score.notes = score.notes[::40]
    with pytest.raises(UnsuitableError, match="fewer than 6 notes"):
        renditions.passage(np.random.default_rng(0), score)
