"""A packed corpus equals the corpus: its scores, reduced sound fonts, and no further libraries."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import test_corpus

from musiclm_jax.corpus import compositions, instruments, pack, rendering, scores, soundfonts

ROOT = pathlib.Path(__file__).parent.parent
NOTES = np.array([[0.0, 0.6, 60, 70], [0.5, 0.9, 76, 115]])


@pytest.fixture(scope="module")
def timgm():
    pretty_midi = pytest.importorskip("pretty_midi")
    pytest.importorskip("tinysoundfont")
    return pathlib.Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"


def test_scores_are_restored_exactly(tmp_path):
    found = test_corpus._scores()
    rng = np.random.default_rng(0)
    for number, score in enumerate(found[:20]):
        rows = score.notes.astype(float)
        rows[:, :2] += rng.uniform(0, 900 * number, rows[:, :2].shape)
        # As in the cache of parsed scores: sorted, with four decimals.
        score.notes = np.round(rows[np.argsort(rows[:, 0])], 4).astype(np.float32)
    found[3].programs, found[3].meter, found[3].bpm = [scores.DRUMS, 30], (12, 8), 133.25
    compositions.group(found)
    pack.write_scores(tmp_path / "scores.npz", found)
    again = pack.read_scores(tmp_path / "scores.npz")
    assert len(again) == len(found)
    for one, other in zip(found, again, strict=True):
        assert one.notes.dtype == other.notes.dtype and np.array_equal(one.notes, other.notes)
        assert {**vars(one), "notes": 0} == {**vars(other), "notes": 0}


@pytest.mark.parametrize(("preset", "is_drums"), [((0, 73), False), ((0, 48), False), ((128, 0), True)])
def test_a_cut_font_sounds_like_the_whole(timgm, tmp_path, preset, is_drums):
    whole = timgm.read_bytes()
    cut = soundfonts.cut(whole, [preset, (0, 11)])
    assert len(cut) < (0.6 if is_drums else 0.2) * len(whole)
    (tmp_path / "cut.sf2").write_bytes(cut)
    track = [("font", preset[1], is_drums, NOTES)]
    expected, found = (
        rendering.Renderer({"font": path}).stem(track, 1.2) for path in (timgm, tmp_path / "cut.sf2")
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.01
    assert soundfonts.cut(cut, [preset, (0, 11)]) == cut


@pytest.mark.slow
def test_a_cut_font_with_vorbis_samples_sounds_like_the_whole(tmp_path):
    try:
        whole = rendering.font_paths()[instruments.MUSESCORE]
    except SystemExit as error:
        pytest.skip(str(error))
    (tmp_path / "cut.sf3").write_bytes(soundfonts.cut(whole.read_bytes(), [(0, 40), (0, 6)]))
    for program in (40, 6):
        track = [("font", program, False, NOTES)]
        expected, found = (
            rendering.Renderer({"font": path}).stem(track, 1.2) for path in (whole, tmp_path / "cut.sf3")
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_cut_font_names_what_it_lacks(timgm):
    cut = soundfonts.cut(timgm.read_bytes(), [(0, 73)])
    with pytest.raises(ValueError, match=r"lacks the presets \[\(0, 40\)\]"):
        soundfonts.cut(cut, [(0, 40), (0, 73)])
    with pytest.raises(ValueError, match="not a sound font"):
        soundfonts.cut(b"RIFFxxxxWAVE", [])


def test_a_pack_contains_everything_needed(timgm, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "load_scores", lambda folder: (test_corpus._scores(), {}))
    monkeypatch.setattr(
        rendering, "font_paths", lambda: {instruments.TIMGM: timgm, instruments.MUSESCORE: timgm}
    )  # fmt: skip
    pack.pack(tmp_path)
    found, fonts = pack.read_pack(tmp_path)
    assert len(found) == 300 and all(score.composition for score in found)
    renderer = rendering.Renderer(fonts)
    for lead in instruments.LEADS:
        notes = np.array([[0.0, 0.5, (lead.low + lead.high) // 2, 90]])
        for font, program in lead.sounds:
            assert renderer.stem([(font, program, False, notes)], 0.5).any()


def test_clips_need_no_tensorflow_no_jax_and_no_score_libraries():
    code = """
import sys
class Blocked:
    names = {"tensorflow", "seqio", "gin", "absl", "librosa", "soundfile", "music21", "pretty_midi", "jax", "flax"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from musiclm_jax.corpus import clips, compositions, leads, pack, render_worker, rendering, renditions, resident
print("imported", *sorted(Blocked.names & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "imported\n", done.stderr
