"""Reads and writes sound files; the only module that imports librosa or soundfile.

Throughout the project, audio is mono float32 in [-1, 1] at 24 kHz.
"""

import contextlib
import io
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import soundfile

from musiclm_jax.data import files
from musiclm_jax.data.samples import to_pcm16
from musiclm_jax.data.tokens import SAMPLE_RATE

# Container and sample encoding by file name extension.
WRITABLE = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
# Extensions of the files to read when the user names a folder; `load` itself tries any file.
READABLE = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au", ".m4a", ".aac", ".webm", ".wma")
RAW = (".pcm", ".raw")  # 16-bit little-endian samples without a header, for `write_stream`
STANDARD_OUTPUT = "-"  # as a path, tells `write_stream` to write raw samples to standard output
SAFE_PEAK = 0.99  # audio louder than full scale is scaled down to this


class AudioError(ValueError):
    """Raised if a sound file cannot be read or written; the message is one line for the user."""


class ExistsError(AudioError):
    """Raised if a file to be written exists."""


def load(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a sound file of any rate, channel count and format as mono audio.

    libsndfile reads wav, flac, ogg, opus, mp3 and aiff. librosa reads anything else with ffmpeg, if it is installed.

    Args:
      path: the file.
      sample_rate: rate of the result in Hz.

    Returns:
      float32 `[samples]`: the mean of the channels.

    Raises:
      AudioError: if the file is missing, is not a sound file, or holds no samples, NaN or infinity.
    """
    path = files.local_path(path)
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not a sound file")
    if not path.is_file():
        raise AudioError(f"{path}: no such sound file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        audio = samples.mean(axis=1)
    except soundfile.LibsndfileError as sndfile_error:
        audio, rate = _load_with_ffmpeg(path, sndfile_error)
    if audio.size == 0:
        raise AudioError(f"{path}: the file holds no samples")
    if not np.isfinite(audio).all():
        raise AudioError(f"{path}: the file holds NaN or infinite samples")
    return resample(audio, int(rate), sample_rate)


def sample_rate_of(path: str | os.PathLike) -> int | None:
    """Returns the sample rate of a sound file in Hz, or None if libsndfile cannot read it."""
    try:
        return int(soundfile.info(path).samplerate)
    except soundfile.LibsndfileError:
        return None


def seconds_of(path: str | os.PathLike) -> float | None:
    """Returns the length of a sound file in seconds, from its header, or None if libsndfile cannot read it."""
    try:
        return float(soundfile.info(path).duration)
    except soundfile.LibsndfileError:
        return None


def read_pcm(path: str | os.PathLike) -> np.ndarray:
    """Reads a sound file without any conversion: int16 `[samples]`, or `[samples, channels]` if it is not mono."""
    return soundfile.read(path, dtype="int16")[0]


def write_opus(path: str | os.PathLike, blocks: Iterable[np.ndarray]) -> None:
    """Writes consecutive blocks of audio, each float `[samples]`, to a small Ogg Opus file."""
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "OPUS", format="OGG", compression_level=0.8) as sound:
        for block in blocks:
            sound.write(block)


def _load_with_ffmpeg(path: pathlib.Path, sndfile_error: Exception) -> tuple[np.ndarray, float]:
    import librosa  # here: it takes a second to import, and writing does not need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa announces that it passes the file on to audioread
            return librosa.load(path, sr=None, mono=True)
    except Exception as error:  # audioread's back ends raise their own unrelated types
        reason = str(sndfile_error).removeprefix(f"Error opening {str(path)!r}: ")
        raise AudioError(f"{path}: not a sound file that can be read ({reason} Is it damaged?)") from error


def resample(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resamples `[..., samples]` from `rate` to `new_rate` in Hz (soxr, high quality): float32 `[..., new_samples]`."""
    if rate == new_rate:
        return np.ascontiguousarray(audio, dtype=np.float32)
    import librosa

    return librosa.resample(audio, orig_sr=rate, target_sr=new_rate, res_type="soxr_hq").astype(np.float32)


def check_writable(path: str | os.PathLike, force: bool = False, stream: bool = False) -> None:
    """Checks, before any work is done, that `write` (or `write_stream`) can write to `path`.

    Raises:
      AudioError: if the extension is unknown, the folder is missing or not writable, or the file exists and `force` is
        not set.
    """
    if stream and str(path) == STANDARD_OUTPUT:
        return
    path = files.local_path(path)
    known = [*WRITABLE, *(RAW if stream else ())]
    if path.suffix.lower() not in known:
        raise AudioError(f"{path}: cannot write {path.suffix or 'a file without extension'}: use {', '.join(known)}")
    check_output(path, force)


def check_output(path: str | os.PathLike, force: bool = False) -> None:
    """Does the checks of `check_writable` that apply to any kind of file."""
    path = files.local_path(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # the name is too long
        raise AudioError(f"{path}: cannot be written ({error.strerror}): choose another name") from error
    if is_folder:
        raise AudioError(f"{path}: is a folder: give the name of a file")
    if exists and not force:
        raise ExistsError(f"{path}: exists already: choose another name or add --force")
    folder = path.parent
    if not folder.is_dir():
        raise AudioError(f"{path}: there is no folder {folder}: create it first")
    try:
        # Permission bits do not tell the truth for root or on read-only mounts; a real file does.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AudioError(f"{path}: cannot write into {folder} ({error.strerror})") from error


def write(path: str | os.PathLike, audio: np.ndarray, force: bool = False) -> float:
    """Writes a 24 kHz wav, flac or ogg file, chosen by the extension; the file appears only when it is complete.

    Samples beyond full scale would clip, so the whole piece is scaled down if its peak is above 1. Ogg Vorbis changes
    peaks a little, so the encoded file is decoded again and scaled down further if it exceeds full scale.

    Args:
      path: file to write.
      audio: float `[samples]`.
      force: overwrite an existing file.

    Returns:
      The gain that was applied: 1.0, or less when the audio was too loud.

    Raises:
      ExistsError: if the file exists and `force` is not set, also if another process has written it meanwhile.
      AudioError: as `check_writable`, and if `audio` is empty, not one-dimensional or not finite.
    """
    path = files.local_path(path)
    check_writable(path, force)
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 1 or audio.size == 0:
        raise AudioError(f"{path}: expected audio [samples], got an array of shape {audio.shape}")
    if not np.isfinite(audio).all():
        raise AudioError(f"{path}: the audio holds NaN or infinite samples")
    container, encoding = WRITABLE[path.suffix.lower()]
    peak = float(np.abs(audio).max())
    gain = SAFE_PEAK / peak if peak > 1 else 1.0
    partial = files.partial_path(path)
    try:
        _encode(partial, audio * gain, container, encoding)
        while encoding == "VORBIS" and (decoded := float(np.abs(soundfile.read(partial)[0]).max())) > 1:
            gain *= 0.97 / decoded
            _encode(partial, audio * gain, container, encoding)
        files.give_name(partial, path, force)
    except FileExistsError as error:
        raise ExistsError(f"{path}: another process has written it meanwhile: choose another name") from error
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"{path}: could not be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return gain


def write_stream(path: str | os.PathLike, blocks: Iterable[np.ndarray], force: bool = False) -> int:
    """Writes audio block by block as it arrives; the blocks already written stay in the file if a later one fails.

    Samples beyond full scale are clipped, since the peak of the whole is not known.

    Args:
      path: a wav, flac, ogg or raw (.pcm, .raw) file by its extension, or "-" for raw samples on standard output. Raw
        samples are 16-bit little-endian, mono, 24 kHz.
      blocks: float `[samples]` each.
      force: overwrite an existing file.

    Returns:
      The number of samples that were clipped.

    Raises:
      AudioError: as `check_writable`, and if the file or standard output cannot be written to the end.
    """
    check_writable(path, force, stream=True)
    clipped = 0
    with contextlib.ExitStack() as stack:
        with _one_line(path):
            write = stack.enter_context(_sink(path, force))
        for block in blocks:
            clipped += int((np.abs(block) > 1).sum())
            with _one_line(path):
                write(np.clip(block, -1, 1))
    return clipped


@contextlib.contextmanager
def _one_line(path: str | os.PathLike) -> Iterator[None]:
    """Turns write errors into an `AudioError` of one line."""
    try:
        yield
    except (OSError, soundfile.LibsndfileError) as error:
        name = "standard output" if str(path) == STANDARD_OUTPUT else path
        raise AudioError(f"{name}: could not be written to the end ({error})") from error


@contextlib.contextmanager
def _sink(path: str | os.PathLike, force: bool) -> Iterator[Callable[[np.ndarray], object]]:
    """Yields a function that writes a block of samples in [-1, 1] without buffering it."""
    suffix = pathlib.Path(path).suffix.lower()
    if str(path) != STANDARD_OUTPUT:
        # A file of its own: another process that writes to this name, too, keeps its own one.
        path = files.local_path(path)
        if force and path.is_file():
            path.unlink()
        if not (force and path.exists()):  # with force: a pipe
            path.open("xb").close()
    if suffix in WRITABLE:
        container, encoding = WRITABLE[suffix]
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, encoding, format=container) as sound:
            yield lambda block: (sound.write(block), sound.flush())
    else:  # unbuffered: a listener hears each block at once
        target = 1 if str(path) == STANDARD_OUTPUT else path
        with open(target, "wb", buffering=0, closefd=target != 1) as raw:
            yield lambda block: _write_all(raw, to_pcm16(block).tobytes())


def _write_all(raw: io.RawIOBase, data: bytes) -> None:
    """Writes all bytes; an unbuffered pipe may accept only a part of them per call."""
    view = memoryview(data)
    while view:
        view = view[raw.write(view) or 0 :]


def _encode(path: pathlib.Path, audio: np.ndarray, container: str, encoding: str) -> None:
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, encoding, format=container) as sound:
        for start in range(0, len(audio), SAMPLE_RATE):  # libsndfile overflows its stack on long Vorbis blocks
            sound.write(audio[start : start + SAMPLE_RATE])
