"""Clips in a folder: matched by id; every problem is counted and named."""

import numpy as np
import pytest
import soundfile

from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import clips


def test_segments_of_long_and_short_clips():
    assert [len(part) for part in clips.segments(np.zeros(30 * SAMPLE_RATE))] == [10 * SAMPLE_RATE] * 3
    assert [len(part) for part in clips.segments(np.zeros(18 * SAMPLE_RATE))] == [10 * SAMPLE_RATE, 8 * SAMPLE_RATE]
    assert [len(part) for part in clips.segments(np.zeros(14 * SAMPLE_RATE))] == [10 * SAMPLE_RATE]
    assert [len(part) for part in clips.segments(np.zeros(2 * SAMPLE_RATE))] == [2 * SAMPLE_RATE]
    audio = np.arange(25 * SAMPLE_RATE)
    np.testing.assert_array_equal(np.concatenate(clips.segments(audio)), audio)


def test_a_folder_with_every_fault(tmp_path):
    rng = np.random.default_rng(0)
    loud = 0.1 * rng.standard_normal(SAMPLE_RATE)
    soundfile.write(tmp_path / "good.wav", loud, SAMPLE_RATE)
    soundfile.write(tmp_path / "other rate.flac", 0.1 * rng.standard_normal(2 * 44_100), 44_100)
    soundfile.write(tmp_path / "silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "stranger.wav", loud, SAMPLE_RATE)
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(
        tmp_path / "not a number.wav", np.where(np.arange(SAMPLE_RATE) == 7, np.nan, 0.1), SAMPLE_RATE, "FLOAT"
    )
    soundfile.write(tmp_path / "integers.wav", 32768 * loud, SAMPLE_RATE, "FLOAT")
    soundfile.write(tmp_path / "loud.wav", 20 * loud, SAMPLE_RATE, "FLOAT")
    soundfile.write(tmp_path / "eight.wav", np.tile(rng.normal(0, 0.1, (96_000, 1)), 8), 96_000)
    soundfile.write(tmp_path / "good.ogg", loud, SAMPLE_RATE)
    unreadable = ["broken", "empty", "folder", "not a number", "integers"]
    ids = ["good", "other rate", "silent", "loud", "eight", *unreadable, "gone", "lost"]
    found = clips.folder_clips(tmp_path, ids)
    heard = dict(found.read())
    assert list(heard) == ["good", "other rate", "silent", "loud", "eight"]
    np.testing.assert_allclose(heard["loud"], 20 * loud, atol=1e-4)
    assert len(heard["eight"]) == SAMPLE_RATE and heard["eight"].std() > 0.01
    assert abs(len(heard["other rate"]) - 2 * SAMPLE_RATE) < 3
    assert found.missing == ["gone", "lost"] and list(found.broken) == unreadable
    assert "holds NaN" in found.broken["not a number"] and "integers stored as floats" in found.broken["integers"]
    assert found.silent == ["silent"] and found.strangers == ["stranger.wav"]
    assert [name for name, _ in found.read()] == list(heard)  # again: nothing is counted twice
    assert found.rates == {SAMPLE_RATE: 3, 44_100: 1, 96_000: 1} and found.silent == ["silent"]
    text = "\n".join(found.problems())
    for part in (
        "2 clips are missing: gone, lost",
        "5 clips cannot be read",
        "the file is empty",
        "folder.wav: is a folder, not a sound file",
        "1 clips are silent (they are scored): silent",
        "1 file names match no id: stranger.wav",
        "1 clips exceed full scale (they are scored): loud",
        "1 files are ignored, another has the same id: good.wav",
        "2 clips were resampled to 24000 Hz: 1 at 44100 Hz, 1 at 96000 Hz",
        "clips differ in length: 1.00 to 2.00 s",
    ):
        assert part in text


def test_a_folder_without_faults_has_no_problems(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * (-1.0) ** np.arange(SAMPLE_RATE), SAMPLE_RATE)
    found = clips.folder_clips(tmp_path, ["a", "b"])
    assert len(list(found.read())) == 2 and found.problems() == []


def test_a_folder_without_matching_clips_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        clips.folder_clips(tmp_path / "nowhere", ["a"])
    with pytest.raises(ValueError, match=r"contains no sound files: expected names such as a\.wav"):
        clips.folder_clips(tmp_path, ["a"])
    soundfile.write(tmp_path / "song.wav", np.zeros(100), SAMPLE_RATE)
    with pytest.raises(ValueError, match=r"contains 1 sound files, but none is named after an id .* a\.wav"):
        clips.folder_clips(tmp_path, ["a"])
