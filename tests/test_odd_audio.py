"""Sound files that are damaged, misnamed or badly recorded: read as they sound, or refused in one line."""

import struct
import subprocess
import tracemalloc

import numpy as np
import pytest
import soundfile

from musiclm_jax.data import audio, recordings, samples
from musiclm_jax.generation.request import check_recording

RATE = 24_000
SECONDS = 6
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, SECONDS * RATE).astype(np.float32)


def seconds_read(path):
    return len(audio.load(path)) / RATE


def encoded(path, sound=NOISE, rate=RATE):
    """Writes the samples in the format of the extension; returns the path."""
    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, sound, rate, **opus)
    return path


@pytest.fixture
def without_ffmpeg(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.parametrize("name", ["song.au", "song.gsm", "song.vox", "song.snd", "song.mp3", "song.raw", "song.wav"])
def test_the_name_does_not_decide_the_format(tmp_path, name, without_ffmpeg):
    path = tmp_path / name
    path.write_text("These are words, not samples. " * 500)
    with pytest.raises(audio.AudioError, match=r"not a sound file.*ffmpeg, which reads more formats, is not installed"):
        audio.load(path)
    wave = encoded(tmp_path / "real.wav")
    path.write_bytes(wave.read_bytes())
    np.testing.assert_array_equal(audio.load(path), audio.load(wave))


def test_aac_with_the_name_of_an_mp3_is_read_as_aac(tmp_path):
    path = tmp_path / "song.mp3"
    try:
        command = ["ffmpeg", "-v", "error", "-i", encoded(tmp_path / "song.wav"), "-f", "adts", path]
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("needs the program ffmpeg")
    assert seconds_read(path) == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au"])
def test_a_stream_without_its_end_or_middle_is_announced(tmp_path, extension, without_ffmpeg, capsys):
    whole = encoded(tmp_path / f"whole.{extension}")
    assert seconds_read(whole) == pytest.approx(SECONDS, abs=0.01)
    assert capsys.readouterr().err == ""
    content = whole.read_bytes()
    for name, left in [
        ("end", content[: int(len(content) * 0.6)]),
        ("middle", content[: int(len(content) * 0.4)] + content[int(len(content) * 0.6) :]),
    ]:
        path = tmp_path / f"no_{name}.{extension}"
        path.write_bytes(left)
        assert 1.5 < seconds_read(path) < 5
        message = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
        assert len(message) == 1 and "damaged or cut short" in message[0]


def test_a_header_without_the_length_is_no_damage(tmp_path, capsys):
    path = encoded(tmp_path / "stream.wav")
    content = path.read_bytes()
    for unknown in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):  # as ffmpeg and sox write them to a pipe
        path.write_bytes(content.replace(b"data" + (2 * len(NOISE)).to_bytes(4, "little"), b"data" + unknown))
        assert seconds_read(path) == SECONDS
    assert capsys.readouterr().err == ""


def test_channels_that_cancel_each_other_are_not_silence(tmp_path, capsys):
    for name, gains, expected in [
        ("inverted", (1, -1), 1),
        ("almost", (0.8, -1), -1),
        ("left", (1, 0), 0.5),
        ("four", (0, 0.9, 0, -1), -1),
    ]:
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, NOISE[:, None] * np.array(gains), RATE, "FLOAT")
        np.testing.assert_allclose(audio.load(path), NOISE * expected, atol=1e-6)
        assert ("cancel each other" in capsys.readouterr().err) == (name != "left")
    soundfile.write(tmp_path / "unrelated.wav", np.stack([NOISE, NOISE[::-1]], 1), RATE, "FLOAT")
    np.testing.assert_allclose(audio.load(tmp_path / "unrelated.wav"), (NOISE + NOISE[::-1]) / 2, atol=1e-6)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("sound", "rate", "message"),
    [
        (NOISE * 32768, RATE, r"samples up to 9830.* are they integers stored as floats"),
        (NOISE[:1000], 11, "sample rate of 11 Hz"),
    ],
)
def test_samples_that_cannot_be_audio_are_refused(tmp_path, sound, rate, message):
    soundfile.write(tmp_path / "a.wav", sound, rate, "FLOAT")
    with pytest.raises(audio.AudioError, match=message):
        audio.load(tmp_path / "a.wav")


def test_a_constant_offset_is_silence(tmp_path, capsys):
    assert samples.is_silent(np.full(RATE, 0.5, np.float32)) and samples.is_silent(np.zeros(0))
    assert not samples.is_silent(0.5 + 0.001 * NOISE)
    with pytest.raises(audio.AudioError, match="the recording is silent"):
        check_recording(np.full(RATE, 0.5, np.float32), "--like")
    song = np.concatenate([np.zeros(2 * RATE), np.full(2 * RATE, 0.5), NOISE[: 2 * RATE]])
    soundfile.write(tmp_path / "song.wav", song, RATE)
    clips = list(recordings.clips([tmp_path / "song.wav"], tmp_path, 2.0, recordings.Rejected(tmp_path)))
    assert [clip["id"] for clip in clips] == ["song.wav@4"]
    assert "left out: 2 of 3 clips" in capsys.readouterr().err


def test_blocks_of_mp3_are_what_the_whole_file_is(tmp_path):
    path = encoded(tmp_path / "a.mp3", np.stack([NOISE, NOISE[::-1]], 1))
    whole = soundfile.read(path, dtype="float32")[0]
    np.testing.assert_allclose(audio.load(path), whole.mean(axis=1), atol=1e-6)


def test_what_is_no_sound_is_called_so(tmp_path):
    (tmp_path / "page.mp3").write_text("<!DOCTYPE html><html><body>Video unavailable</body></html>")
    (tmp_path / "tag.mp3").write_bytes(b"ID3\x03\x00\x00\x00\x00\x0f\x76" + bytes(2038))
    for name, message in [("page.mp3", "web page"), ("tag.mp3", "not a sound file")]:
        with pytest.raises(audio.AudioError, match=message) as raised:
            audio.load(tmp_path / name)
        assert "does not exist" not in str(raised.value)


@pytest.mark.parametrize("name", ["long.flac", "long.mka"])  # libsndfile, ffmpeg
def test_hours_are_refused_before_they_are_decoded(tmp_path, monkeypatch, name):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8000, 1) as sound:
        for _ in range(30):
            sound.write(np.full(60 * 8000, 0.25))
    if name.endswith("mka"):
        convert = ["ffmpeg", "-v", "error", "-i", tmp_path / "long.flac", "-c:a", "copy", tmp_path / name]
        subprocess.run(convert, check=True)
    tracemalloc.start()
    with pytest.raises(audio.AudioError, match=r"the recording is longer than 100 s: give an excerpt"):
        audio.load(tmp_path / name, longest=100)
    assert tracemalloc.get_traced_memory()[1] < 100 * 8000 * 4 * 3  # bytes; of all 30 minutes, 57.6 MB
    tracemalloc.stop()
    assert len(audio.load(tmp_path / name, 8000, longest=1800)) == 1800 * 8000


@pytest.mark.parametrize("rate", [0, 1, 44_100, 2**31, 2**32 - 1])
@pytest.mark.parametrize("channels", [0, 1, 2, 1024, 65_535])
@pytest.mark.parametrize("size", [0, 48_000, 2**31, 2**32 - 1])
def test_headers_that_make_no_sense_are_one_line_at_most(tmp_path, rate, channels, size):
    block = 2 * channels
    header = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * block % 2**32, block % 2**16, 16)
    content = (
        b"RIFF" + struct.pack("<I", (size + 36) % 2**32) + b"WAVEfmt " + header + b"data" + struct.pack("<I", size)
    )
    (tmp_path / "a.wav").write_bytes(content + b"\0\1" * 24_000)
    tracemalloc.start()
    try:
        assert len(audio.load(tmp_path / "a.wav")) < 2 * RATE
    except audio.AudioError as error:
        assert "\n" not in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
