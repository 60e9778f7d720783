"""Reading, writing and joining audio."""

import resource
import subprocess

import numpy as np
import pytest
import soundfile

from musiclm_jax.data import audio


def tone(hz=440.0, seconds=1.0, rate=24_000, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def frequency(signal, rate=24_000):
    return np.abs(np.fft.rfft(signal)).argmax() * rate / len(signal)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_what_is_written_is_read_back(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    assert audio.write(path, tone()) == 1.0
    assert soundfile.info(path).samplerate == 24_000
    np.testing.assert_allclose(audio.load(path), tone(), atol=0.03 if extension == "ogg" else 1e-4)
    assert list(tmp_path.iterdir()) == [path]  # no partial file is left


def test_load_mixes_channels_and_resamples(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(rate=96_000), 0 * tone(rate=96_000)], axis=1), 96_000)
    loaded = audio.load(path)
    assert loaded.dtype == np.float32 and loaded.shape == (24_000,)
    assert frequency(loaded) == 440
    np.testing.assert_allclose(np.abs(loaded).max(), 0.25, atol=0.01)


@pytest.mark.parametrize("extension", ["mp3", "m4a"])
def test_load_reads_compressed_formats(tmp_path, extension):
    audio.write(tmp_path / "a.wav", tone())
    path = tmp_path / f"a.{extension}"
    try:
        subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", path], check=True)
    except FileNotFoundError:
        pytest.skip("needs the program ffmpeg")
    assert abs(frequency(audio.load(path)[:24_000]) - 440) < 2


def test_load_says_what_is_wrong_with_a_file(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not sound" * 100)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 24_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 24_000, "FLOAT")
    for name, message in [
        ("missing.wav", "no such sound file"),
        ("empty.wav", "0 bytes"),
        ("text.wav", "not a sound file"),
        ("none.wav", "no samples"),
        ("nan.wav", "NaN"),
    ]:
        with pytest.raises(audio.AudioError, match=message) as raised:
            audio.load(tmp_path / name)
        assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_loud_audio_is_scaled_and_not_clipped(tmp_path, extension):
    path = tmp_path / f"loud.{extension}"
    noise = np.random.default_rng(0).normal(0, 1, 24_000).astype(np.float32)
    gain = audio.write(path, noise)
    assert gain < 1
    written = audio.load(path)
    assert np.abs(written).max() <= 1 and (np.abs(written) > 0.985).sum() < 3
    if extension != "ogg":
        np.testing.assert_allclose(written, noise * gain, atol=1e-3)


def test_write_never_overwrites_unless_forced(tmp_path):
    path = tmp_path / "a.wav"
    audio.write(path, tone(440))
    with pytest.raises(audio.AudioError, match=r"exists already.*--force"):
        audio.write(path, tone(880))
    assert frequency(audio.load(path)) == 440
    audio.write(path, tone(880), force=True)
    assert frequency(audio.load(path)) == 880


def test_check_writable_finds_bad_targets(tmp_path):
    for path, message in [
        (tmp_path / "a.mp3", "cannot write .mp3: use .wav, .flac, .ogg"),
        (tmp_path / "a", "without extension"),
        (tmp_path / "nowhere" / "a.wav", "there is no folder"),
        ("/proc/a.wav", "cannot write into"),
    ]:
        with pytest.raises(audio.AudioError, match=message):
            audio.check_writable(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros((2, 5)), np.array([np.nan])])
def test_write_refuses_what_is_not_audio(tmp_path, bad):
    with pytest.raises(audio.AudioError):
        audio.write(tmp_path / "a.wav", bad)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_is_clipped_and_keeps_what_was_written_before_an_error(tmp_path):
    loud = np.array([0.5, 2.0, -3.0], np.float32)

    def blocks():
        yield loud
        yield loud / 4
        raise RuntimeError("no more")

    for name in ("a.wav", "a.flac", "a.raw"):
        with pytest.raises(RuntimeError):
            audio.write_stream(tmp_path / name, blocks())
        assert audio.write_stream(tmp_path / f"b{name}", iter([loud, loud / 4])) == 2
        assert (tmp_path / f"b{name}").read_bytes() == (tmp_path / name).read_bytes()
    samples = np.frombuffer((tmp_path / "a.raw").read_bytes(), "<i2") / 32767
    np.testing.assert_allclose(samples, [0.5, 1, -1, 0.125, 0.5, -0.75], atol=1e-4)
    np.testing.assert_allclose(audio.load(tmp_path / "a.wav"), samples, atol=1e-4)
    full = tmp_path / "full.raw"
    full.symlink_to("/dev/full")
    with pytest.raises(audio.AudioError, match=r"could not be written to the end \(.*No space left"):
        audio.write_stream(full, [loud], force=True)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_a_full_disk_is_named_with_its_file(tmp_path, extension):
    """A limit on the size of files stands in for the full disk: writes fail in the same places."""
    path, noise = tmp_path / f"a.{extension}", np.random.default_rng(0).uniform(-0.5, 0.5, 240_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(audio.AudioError, match=rf"a\.{extension}: could not be written \(File too large\)"):
            audio.write(path, noise)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(
            audio.AudioError, match=rf"a\.{extension}: could not be written to the end \(File too large\)"
        ):
            audio.write_stream(path, np.split(noise, 10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
