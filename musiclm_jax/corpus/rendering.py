"""Renders arrangements: sound fonts with `tinysoundfont`, a synthetic room, loudness.

All audio is 24 kHz. Stems are mono float32 `[samples]`.
"""

import pathlib
import subprocess
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.fft
import scipy.signal

from musiclm_jax.corpus import instruments
from musiclm_jax.data import tokens
from musiclm_jax.data.samples import level_db

RATE = tokens.SAMPLE_RATE
NOMINAL_RMS_DB = -20.0  # dBFS of a clip with gain_db = 0
RMS_RANGE_DB = (-38.0, -9.0)  # allowed levels of a clip
SILENT_STEM_DB = -60.0  # a stem below this level comes from a program that produces no sound
MAX_PEAK = 0.98
# Room: (reverberation time RT60 in seconds, level of the reverb relative to the direct sound).
ROOMS = {"dry": (0.0, 0.0), "room": (0.5, 0.25), "hall": (2.2, 0.6)}
_MUSESCORE_PACKAGE = "musescore-general-soundfont-small"


class SilentError(ValueError):
    """Raised if a stem or a clip is outside the allowed range of loudness."""


def font_paths() -> dict[str, pathlib.Path]:
    """Finds both sound fonts.

    Raises:
      SystemExit: if one is missing; the message says what to install.
    """
    try:
        import pretty_midi
    except ImportError as error:
        raise SystemExit(
            "musiclm corpus needs pretty_midi: pip install '.[corpus]' in a checkout of the repository"
        ) from error
    paths = {instruments.TIMGM: pathlib.Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"}
    try:
        listing = subprocess.run(["dpkg", "-L", _MUSESCORE_PACKAGE], capture_output=True, text=True).stdout.split("\n")
    except FileNotFoundError:
        listing = []
    candidates = [*listing, "/usr/share/sounds/sf3/MuseScore_General_Lite.sf3"]
    found = next((p for p in map(pathlib.Path, candidates) if p.suffix == ".sf3" and p.is_file()), None)
    if found is None:
        raise SystemExit(f"musiclm corpus needs MuseScore's sound font: apt install {_MUSESCORE_PACKAGE}")
    paths[instruments.MUSESCORE] = found
    return paths


class Renderer:
    """A synthesizer with both sound fonts; loading takes seconds. Each render starts from silence."""

    def __init__(self, fonts: Mapping[str, pathlib.Path] | None = None):
        """Loads the fonts.

        Args:
          fonts: font name to path; None uses the installed ones.
        """
        try:
            import tinysoundfont
        except ImportError as error:
            raise SystemExit(
                "musiclm corpus needs tinysoundfont: pip install --no-deps tinysoundfont "
                "(--no-deps skips pyaudio, which is only for playback and needs a compiler and portaudio)"
            ) from error
        self._synth = tinysoundfont.Synth(samplerate=RATE)
        self._fonts = {name: self._synth.sfload(str(path)) for name, path in (fonts or font_paths()).items()}

    def _silence(self) -> None:
        self._synth.sounds_off()
        for _ in range(100):
            if np.abs(np.frombuffer(self._synth.generate(2048), np.float32)).max() == 0.0:
                return
        raise RuntimeError("the synthesizer is still not silent 8 s after all sounds were turned off")

    def stem(self, tracks: Sequence[tuple[str, int, bool, np.ndarray]], seconds: float) -> np.ndarray:
        """Renders tracks together.

        Args:
          tracks: (font, program, is drum kit, notes `[n, 4]`: start and end in seconds, MIDI pitch, velocity).
          seconds: length of the result.

        Returns:
          float32 `[samples]`, mean of the two channels, at the font's own level.

        Raises:
          SilentError: if there are notes, but the result is silent.
        """
        synth = self._synth
        self._silence()
        melodic = [channel for channel in range(16) if channel != 9]
        events = []
        for index, (font, program, is_drums, notes) in enumerate(tracks):
            channel = 9 if is_drums else melodic[index % len(melodic)]
            bank = 128 if is_drums else 0
            synth.program_select(channel, self._fonts[font], bank, program, is_drums)
            for start, end, pitch, velocity in notes.tolist():
                key, on = int(pitch), max(round(start * RATE), 0)
                # Order: at the same sample, notes end before others start.
                events.append((on, 1, channel, key, int(min(max(velocity, 1), 127))))
                events.append((max(round(end * RATE), on + 1), 0, channel, key, 0))
        total, now, blocks = round(seconds * RATE), 0, []
        for sample, is_on, channel, key, velocity in sorted(events):
            if sample >= total:
                break
            if sample > now:
                blocks.append(np.frombuffer(synth.generate(sample - now), np.float32))
                now = sample
            if is_on:
                synth.noteon(channel, key, velocity)
            else:
                synth.noteoff(channel, key)
        blocks.append(np.frombuffer(synth.generate(total - now), np.float32))
        both = np.concatenate(blocks)
        audio = 0.5 * (both[::2] + both[1::2])  # several times faster than a mean over an axis of two
        if events and level_db(audio) < SILENT_STEM_DB:
            names = ", ".join(f"{font} program {program}" for font, program, _, _ in tracks)
            raise SilentError(f"{names}: {level_db(audio):.0f} dB, expected at least {SILENT_STEM_DB} dB")
        return audio


def mix(stems: Sequence[np.ndarray], levels_db: Sequence[float]) -> np.ndarray:
    """Mixes stems `[samples]`, each scaled to its RMS level in dBFS."""
    result = np.zeros_like(stems[0])
    for stem, level in zip(stems, levels_db, strict=True):
        result += stem * np.float32(10 ** ((level - level_db(stem)) / 20))
    return result


def add_room(audio: np.ndarray, room: str, rng: np.random.Generator) -> np.ndarray:
    """Convolves audio `[samples]` with exponentially decaying noise; "dry" returns it unchanged.

    ROOMS sets the level of the reverb relative to the direct sound. A low-pass filter mimics the room's absorption.
    """
    decay, share = ROOMS[room]
    if decay == 0.0:
        return audio
    time = np.arange(round(decay * 0.8 * RATE), dtype=np.float32) / RATE
    noise = rng.standard_normal(time.size, np.float32) * np.exp(np.float32(-3.0 * np.log(10) / decay) * time)
    noise[: round(0.012 * RATE)] = 0.0  # the first reflection comes later than the direct sound
    noise = scipy.signal.lfilter(np.array([0.45], np.float32), np.array([1.0, -0.55], np.float32), noise)
    # One long transform in single precision: a hall's tail is too long for block convolution to be faster.
    length = scipy.fft.next_fast_len(audio.size + noise.size - 1, real=True)
    spectrum = scipy.fft.rfft(audio, length) * scipy.fft.rfft(noise, length)
    reverb = scipy.fft.irfft(spectrum, length)[: audio.size]
    energy = max(float(np.dot(reverb, reverb)), 1e-12 * audio.size)
    reverb *= np.float32(share * np.sqrt(float(np.dot(audio, audio)) / energy))
    return (audio + reverb).astype(np.float32)


def set_loudness(audio: np.ndarray, gain_db: float) -> tuple[np.ndarray, float]:
    """Scales a clip to NOMINAL_RMS_DB + gain_db, or lower if its peak would exceed MAX_PEAK.

    Returns:
      (audio `[samples]`, final gain in dB).

    Raises:
      SilentError: if the final level is outside RMS_RANGE_DB.
    """
    level = level_db(audio)
    scaled = audio * np.float32(10 ** ((NOMINAL_RMS_DB + gain_db - level) / 20))
    peak = float(np.abs(scaled).max())
    if peak > MAX_PEAK:
        scaled *= np.float32(MAX_PEAK / peak)
    reached = level_db(scaled)
    if not RMS_RANGE_DB[0] <= reached <= RMS_RANGE_DB[1]:
        raise SilentError(f"the clip's level is {reached:.1f} dB: expected {RMS_RANGE_DB[0]}..{RMS_RANGE_DB[1]} dB")
    return scaled.astype(np.float32), reached - NOMINAL_RMS_DB
