"""Measures of what the tokens carry, on audio of known similarity; both arms of the study, and resuming."""

import types

import numpy as np
import pytest

from benchmarks import token_roles
from benchmarks.token_roles import chroma, chroma_similarity, onset_strength, rhythm_similarity

RATE = 24_000
TUNE = (60, 64, 67, 72, 69, 65, 62, 71)


def played(notes, harmonics=1, step=0.25, shift=0.0, semitones=0):
    """Returns decaying notes, one every `step` seconds, starting after `shift` seconds."""
    length = round(RATE * step)
    time = np.arange(length) / RATE
    audio = [np.zeros(round(RATE * shift))]
    for note in notes:
        hz = 440 * 2 ** ((note + semitones - 69) / 12)
        tone = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, harmonics + 1))
        audio.append(0.2 * tone * np.exp(-6 * time) * np.minimum(time / 0.005, 1))
    return np.concatenate(audio)[: round(RATE * step * len(notes))]


def test_chroma_names_the_pitch_class():
    for note in (57, 60, 69, 78):
        heard = chroma(played([note] * 4)).mean(axis=0)
        assert np.argmax(heard) == note % 12 and heard.max() > 3 * np.sort(heard)[-3]


def test_chroma_similarity_follows_the_melody_and_not_the_sound():
    tune, bright, other = (chroma(played(*a)) for a in ((TUNE,), (TUNE, 2), (TUNE[::-1],)))
    moved = chroma(played(TUNE, semitones=1))
    assert chroma_similarity(tune, tune) == pytest.approx(1)
    assert chroma_similarity(tune, bright) > 0.9 > 0.4 > chroma_similarity(tune, other)
    assert chroma_similarity(tune, moved) < 0.4
    assert chroma_similarity(tune, 0 * tune) == 0


def test_rhythm_similarity_follows_the_onsets_and_not_the_pitch():
    tune, other = (onset_strength(played(notes)) for notes in (TUNE, TUNE[::-1]))
    late = onset_strength(played(TUNE, shift=0.125))
    assert rhythm_similarity(tune, tune) == pytest.approx(1)
    assert rhythm_similarity(tune, other) > 0.7
    assert rhythm_similarity(tune, late) < 0.2
    assert rhythm_similarity(tune, np.zeros_like(tune)) == 0


def features(value):
    """Returns pieces for one caption: embedding, chroma and onset strength that depend only on a number."""
    rng = np.random.default_rng(value)
    return dict(zip(token_roles.MEASURES, (rng.normal(size=8), rng.random((50, 12)), rng.random(50)), strict=True))


def test_pairs_share_a_caption_and_controls_do_not():
    fixed = [[features(caption)] * 3 for caption in range(6)]
    free = [[features(10 + 3 * caption + sample) for sample in range(3)] for caption in range(6)]
    found = token_roles.compare(dict(zip(token_roles.ARMS, (fixed, free), strict=True)))
    for name, alike in (("MuLan distance", 0), ("chroma similarity", 1), ("rhythm similarity", 1)):
        same, different, control = found[name].values()
        np.testing.assert_allclose(same, alike, atol=1e-9)
        assert np.abs(different - alike).min() > 0.3 and control.shape == (6,)
        measure = token_roles.MEASURES[name]
        expected = [measure(free[5][i][name], free[0][i][name]) for i in range(3)]
        assert control[5] == pytest.approx(np.mean(expected))
        pairs = [measure(free[2][i][name], free[2][j][name]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert different[2] == pytest.approx(np.mean(pairs))
    lines = {line.name: line for line in token_roles.figures(found, 0)}
    assert all(lines[f"{name}, difference"].passed for name in token_roles.MEASURES)
    swapped = token_roles.compare(dict(zip(token_roles.ARMS, (free, fixed), strict=True)))
    lines = {line.name: line for line in token_roles.figures(swapped, 0)}
    assert not any(lines[f"{name}, difference"].passed for name in token_roles.MEASURES)


def test_pieces_are_generated_once_in_both_arms_and_kept(tmp_path, monkeypatch):
    asked = []

    def generate(bundle, prompts, **options):
        asked.append((*prompts, options["vary"], options["num_samples"]))
        return [types.SimpleNamespace(audio=np.full(RATE, 0.1 * len(asked))) for _ in range(2)]

    monkeypatch.setattr(token_roles.generate, "generate", generate)
    bundle = types.SimpleNamespace(sha256="0")
    args = types.SimpleNamespace(work=str(tmp_path), samples=2, seconds=1.0, seed=0)
    first = token_roles.make_pieces(bundle, ["one", "two"], args)
    assert asked == [(text, vary, 2) for text in ("one", "two") for vary in ("acoustics", "all")]
    (tmp_path / "001-all-1.flac").unlink()  # as after an interrupted run
    again = token_roles.make_pieces(bundle, ["one", "two"], args)
    assert asked[4:] == [("two", "all", 2)]
    for arm in token_roles.ARMS:
        np.testing.assert_array_equal(first[arm][0], again[arm][0])
    args.seed = 1
    with pytest.raises(ValueError, match="was made with other settings \\(seed\\)"):
        token_roles.make_pieces(bundle, ["one", "two"], args)


def test_hearing_returns_what_the_measures_compare(monkeypatch):
    monkeypatch.setattr(token_roles.mulan, "embed_audio", lambda config, variables, clips: clips[:, 2000:2008])
    bundle = types.SimpleNamespace(mulan=lambda: types.SimpleNamespace(config=None, variables=None))
    one, other = token_roles.hear(bundle, [played(TUNE), played(TUNE[::-1])])
    for name, measure in token_roles.MEASURES.items():
        assert measure(one[name], one[name]) == pytest.approx(0 if name == "MuLan distance" else 1, abs=1e-6)
        assert abs(measure(one[name], other[name]) - measure(one[name], one[name])) > 1e-3


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="--prompts 1 --samples 4: give 2 or more of both"):
        token_roles.main(["--corpus", "-", "--work", "-", "--prompts", "1"])
