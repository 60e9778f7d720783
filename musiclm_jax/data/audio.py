"""Reads and writes sound files; the only module that imports librosa or soundfile.

Throughout the project, audio is mono float32 in [-1, 1] at 24 kHz.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
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
LOUDEST = 100.0  # times full scale (40 dB): samples beyond it cannot be audio in -1..1
CANCELLED = 0.1  # of the power that unrelated channels would leave: a mix below it has cancelled itself
LOWEST_RATE = 1000  # Hz; nothing below is music
TOLERANCE = 0.1  # seconds: encoders pad a stream by less, so a longer gap is a loss
HIGHEST_RATE = 96_000  # Hz; at higher rates, recordings may have as many samples as at this one
LONGEST = 2 * 3600.0  # seconds of a recording: a gigabyte at 48 kHz
BLOCK = 1 << 14  # sampling instants decoded at once
_ANY_LENGTH = 0x7FFF0000  # sizes in headers from here on mean "unknown": the file was written as a stream


class AudioError(ValueError):
    """Raised if a sound file cannot be read or written; the message is one line for the user."""


class ExistsError(AudioError):
    """Raised if a file to be written exists."""


def load(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE, longest: float = LONGEST) -> np.ndarray:
    """Reads a sound file of any rate, channel count and format as mono audio.

    libsndfile reads wav, flac, ogg, opus, mp3 and aiff; the program ffmpeg reads anything else, if it is installed. The
    content decides the format, not the name. A line on standard error says if the end or a part of the file is
    missing, or if its channels cancel each other and only the loudest is used.

    Args:
      path: the file.
      sample_rate: rate of the result in Hz.
      longest: seconds; decoding ends with an error there, before the rest takes memory.

    Returns:
      float32 `[samples]`: the mean of the channels.

    Raises:
      AudioError: if the file is missing, is not a sound file, or holds no samples, NaN, infinity or integers that were
        stored as floats, or if its sample rate is below `LOWEST_RATE`, or if it is longer than `longest`.
    """
    path = files.local_path(path)
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not a sound file")
    if not path.is_file():
        raise AudioError(f"{path}: no such sound file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    decoded = _decode(path, longest)
    if decoded.rate < LOWEST_RATE:
        raise AudioError(f"{path}: a sample rate of {decoded.rate} Hz, expected {LOWEST_RATE} or more: is it damaged?")
    if decoded.lost:
        seconds = len(decoded.audio) / decoded.rate
        print(f"{path}: damaged or cut short ({decoded.lost}): read {seconds:.1f} s", file=sys.stderr)
    channels = len(decoded.power)
    if np.square(decoded.audio).mean() < CANCELLED * decoded.power.mean() / channels:
        loudest = int(decoded.power.argmax())
        print(f"{path}: the channels cancel each other: read channel {loudest + 1} of {channels}", file=sys.stderr)
        decoded = _decode(path, longest, loudest)
    if not np.isfinite(decoded.audio).all():
        raise AudioError(f"{path}: the file holds NaN or infinite samples")
    if (peak := float(np.abs(decoded.audio).max())) > LOUDEST:
        raise AudioError(f"{path}: samples up to {peak:g}, expected -1..1: are they integers stored as floats?")
    return resample(decoded.audio, decoded.rate, sample_rate)


@dataclasses.dataclass
class _Decoded:
    """A decoded file.

    Attributes:
      audio: float32 `[samples]`, one channel or the mean of all; never empty.
      rate: in Hz.
      power: mean square of each channel, `[channels]`.
      lost: what is missing; "" if nothing is.
    """

    audio: np.ndarray
    rate: int
    power: np.ndarray
    lost: str


def _decode(path: pathlib.Path, longest: float, channel: int | None = None) -> _Decoded:
    """Decodes one channel, or the mean of all, with libsndfile, or with ffmpeg what libsndfile cannot read."""
    try:
        with _opened(path) as sound:
            if decoded := _read(path, sound, longest, channel):
                decoded.lost = decoded.lost or _missing(path, sound, len(decoded.audio))
                return decoded
            reason = "it holds no samples"
    except soundfile.LibsndfileError as error:
        reason = _reason(error)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from error
    return _decode_with_ffmpeg(path, longest, channel, reason)


class _Forward(soundfile.SoundFile):
    """A sound file that is only read forwards: soundfile seeks after each block, which spoils the samples of MP3."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[soundfile.SoundFile]:
    """Opens a file for libsndfile, which does not get its name: it would take the extension for the format."""
    with open(path, "rb") as file, _Forward(file.fileno(), closefd=False) as sound:
        yield sound


def _read(path: pathlib.Path, sound: soundfile.SoundFile, longest: float, channel: int | None) -> _Decoded | None:
    """Reads one channel, or the mean of all, to the end or to the first damage; None if nothing can be read."""
    block = np.empty((BLOCK, sound.channels), np.float32)
    energy, mixed, lost = np.zeros(sound.channels), [], ""
    rate = min(max(sound.samplerate, LOWEST_RATE), HIGHEST_RATE)
    try:
        while len(read := sound.read(out=block)):
            energy += np.square(read, dtype=np.float64).sum(axis=0)
            mixed.append(read.mean(axis=1) if channel is None else read[:, channel].copy())
            if (len(mixed) - 1) * BLOCK > longest * rate:
                seconds = longest * rate / max(sound.samplerate, LOWEST_RATE)
                raise AudioError(f"{path}: the recording is longer than {seconds:g} s: give an excerpt")
    except soundfile.LibsndfileError as error:
        lost = _reason(error)
    if not mixed:
        return None
    audio = np.concatenate(mixed)
    return _Decoded(audio, int(sound.samplerate), energy / len(audio), lost)


def _reason(error: soundfile.LibsndfileError) -> str:
    """Returns libsndfile's message without the decoration."""
    message = error.error_string.removeprefix("Error : ").rstrip(".")
    return "its header makes no sense" if "SF_INFO" in message else message  # its word for a sample rate of 0


def _missing(path: pathlib.Path, sound: soundfile.SoundFile, read: int) -> str:
    """Says what is missing of a file from which libsndfile read `read` samples without an error; "" if nothing is."""
    tolerance = TOLERANCE * sound.samplerate
    if sound.frames - read > tolerance:
        return f"its header promises {sound.frames / sound.samplerate:.1f} s"
    # libsndfile corrects sizes beyond the end of the file and notes this in its log.
    for size, there in re.findall(r": (\d+) \(should be (\d+)\)", sound.extra_info):
        if int(size) < _ANY_LENGTH and read * (int(size) / max(int(there), 1) - 1) > tolerance:
            return f"its header promises {size} bytes, {there} are there"
    if sound.format == "OGG":
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 1 << 17), os.SEEK_END)
            tail = file.read()
        last = tail.rfind(b"OggS")  # byte 5 of a page holds its flags, of which 4 marks the last page
        if last >= 0 and len(tail) > last + 5 and not tail[last + 5] & 4:
            return "its last page is missing"
    return ""


def _decode_with_ffmpeg(path: pathlib.Path, longest: float, channel: int | None, reason: str) -> _Decoded:
    # Without the protocol "file:", a colon in a name would be a protocol; with others, a playlist could read URLs.
    command = ["ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    command += ["-vn", "-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
    decoded, advice = None, "Is it damaged?"
    with tempfile.TemporaryFile() as log:
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as ffmpeg:
                assert ffmpeg.stdout is not None
                with (
                    contextlib.suppress(soundfile.LibsndfileError),  # nothing came: the log says why
                    _Forward(ffmpeg.stdout.fileno(), closefd=False) as sound,
                ):
                    decoded = _read(path, sound, longest, channel)
        except FileNotFoundError:
            advice = "The program ffmpeg, which reads more formats, is not installed"
        log.seek(0)
        errors = log.read().decode(errors="replace").strip().splitlines()
    if decoded is None:
        with path.open("rb") as file:
            if file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
                reason, advice = "it is a web page", "Download the recording itself"
        raise AudioError(f"{path}: not a sound file that can be read ({reason}. {advice})")
    if errors or ffmpeg.returncode:
        decoded.lost = re.sub(r"\[[^]]*\] ", "", errors[-1]) if errors else "ffmpeg failed"
    return decoded


def sample_rate_of(path: str | os.PathLike) -> int | None:
    """Returns the sample rate of a sound file in Hz, or None if libsndfile cannot read it."""
    try:
        with _opened(path) as sound:
            return int(sound.samplerate)
    except (OSError, soundfile.LibsndfileError):
        return None


def seconds_of(path: str | os.PathLike) -> float | None:
    """Returns the length of a sound file in seconds, from its header, or None if libsndfile cannot read it."""
    try:
        with _opened(path) as sound:
            return sound.frames / sound.samplerate
    except (OSError, soundfile.LibsndfileError):
        return None


def read_pcm(path: str | os.PathLike) -> np.ndarray:
    """Reads a sound file without any conversion: int16 `[samples]`, or `[samples, channels]` if it is not mono."""
    return soundfile.read(path, dtype="int16")[0]


def write_opus(path: str | os.PathLike, blocks: Iterable[np.ndarray]) -> None:
    """Writes consecutive blocks of audio, each float `[samples]`, to a small Ogg Opus file."""
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "OPUS", format="OGG", compression_level=0.8) as sound:
        for block in blocks:
            sound.write(block)


def wav_bytes(audio: np.ndarray) -> bytes:
    """Returns a 16-bit wav file of audio, float `[samples]` at 24 kHz, scaled down if its peak is above 1."""
    file = io.BytesIO()
    soundfile.write(file, audio / max(1.0, float(np.abs(audio).max())), SAMPLE_RATE, "PCM_16", format="WAV")
    return file.getvalue()


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
        # Permission bits do not tell the truth for root or on read-only mounts, nor that the disk is full; a file does.
        with tempfile.TemporaryFile(dir=folder, prefix=".", buffering=0) as file:
            file.write(bytes(1 << 16))
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
        raise AudioError(f"{path}: could not be written ({_write_failure(error, partial)})") from error
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
        raise AudioError(f"{name}: could not be written to the end ({_write_failure(error, path)})") from error


def _write_failure(error: Exception, path: str | os.PathLike) -> str:
    """Returns the operating system's reason; libsndfile says only "System error", so a write of ours finds it out."""
    if isinstance(error, soundfile.LibsndfileError):
        try:
            with open(path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    _write_all(file, bytes(1 << 16))
                finally:
                    with contextlib.suppress(OSError):  # a pipe
                        file.truncate(size)
        except OSError as found:
            error = found
    return str(getattr(error, "strerror", None) or error)


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
