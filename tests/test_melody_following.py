"""Measures of how well music follows its melody, on tunes of known similarity, and resuming."""

import types

import numpy as np
import pytest

pytest.importorskip("music21")
pytest.importorskip("tinysoundfont")

from benchmarks import melody_following
from benchmarks.melody_following import above_shuffled, agreements, figures, in_best_key
from benchmarks.token_roles import chroma

RATE = 24_000
TUNES = ((60, 64, 67, 72, 69, 65, 62, 71), (60, 60, 67, 67, 69, 69, 67, 65), (72, 71, 69, 67, 65, 64, 62, 60))


def played(notes, semitones=0):
    time = np.arange(RATE // 4) / RATE
    hertz = [440 * 2 ** ((note + semitones - 69) / 12) for note in notes]
    return np.concatenate([0.3 * np.sin(2 * np.pi * hz * time) * np.exp(-4 * time) for hz in hertz])


def test_a_tune_agrees_with_itself_in_any_key():
    tune, other = chroma(played(TUNES[0])), chroma(played(TUNES[2]))
    for key in (0, 3, 7, 11):
        moved = chroma(played(TUNES[0], key))
        assert in_best_key(tune, moved) > 0.9 > 0.5 > in_best_key(other, moved)
        assert in_best_key(tune, moved) == pytest.approx(in_best_key(moved, tune), abs=1e-9)


@pytest.mark.parametrize("name, key", [("pitch agreement", 0), ("pitch agreement in the best key", 4)])
def test_music_that_follows_its_melody_scores_above_shuffled_music(name, key):
    melodies = [played(tune) for tune in TUNES]
    following = [played(tune, key) for tune in TUNES]
    found = {name: {melody_following.ARMS[1]: agreements(melodies, following, name)}}
    own, more = figures(found, seed=0)
    assert own.value.value > 0.9 and more.passed and more.value.low > 0.3
    shifted = agreements(melodies, following[1:] + following[:1], name)
    assert not figures({name: {melody_following.ARMS[1]: shifted}}, seed=0)[1].passed


def test_another_key_is_other_pitches():
    tune = [played(TUNES[0])]
    assert agreements(tune, [played(TUNES[0], 4)], "pitch agreement")[0, 0] < 0.5


def test_above_shuffled_is_own_minus_the_mean_of_the_others():
    matrix = np.array([[0.9, 0.1, 0.3], [0.0, 0.5, 0.2], [0.4, 0.4, 0.4]])
    np.testing.assert_allclose(above_shuffled(matrix), [0.7, 0.4, 0.0], atol=1e-12)


def test_pieces_are_generated_once_each_with_its_own_melody(tmp_path, monkeypatch):
    asked = []

    def generate(bundle, prompts, melody, **options):
        asked.append((*prompts, None if melody is None else melody[0]))
        return [types.SimpleNamespace(audio=np.full(RATE, 0.1 * len(asked)))]

    monkeypatch.setattr(melody_following.generate, "generate", generate)
    melodies = [np.full(4, 0.5), np.full(4, 0.25)]
    first = melody_following.make_pieces(None, ["a", "b"], melodies, tmp_path / "arm", 0)
    assert asked == [("a", 0.5), ("b", 0.25)]
    (tmp_path / "arm" / "001.flac").unlink()  # as after an interrupted run
    again = melody_following.make_pieces(None, ["a", "b"], melodies, tmp_path / "arm", 0)
    assert asked[2:] == [("b", 0.25)]
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_allclose(again[1], 0.3, atol=1e-4)
