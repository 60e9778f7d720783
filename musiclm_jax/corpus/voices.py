"""Synthesizes sung and whistled tunes from notes, with glides, vibrato and breath, without a sound font.

The aim is not a realistic singer: the melody model should hear pitch as people produce it, gliding and slightly off.
Vowels are formants (mean frequencies from Peterson and Barney, 1952) on the falling spectrum of a glottal source.
"""

import numpy as np
import scipy.signal

from musiclm_jax.data.tokens import SAMPLE_RATE

STEP = 120  # samples between points of the control curves: 5 ms
GLIDE = 0.06  # duration in seconds of a glide from note to note
# Frequencies in Hz of the first three formants; bandwidths and levels are the same for all vowels.
VOWELS = {"a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010), "o": (570, 840, 2410)}
BANDWIDTHS = (90.0, 110.0, 170.0)
LEVELS_DB = (0.0, -7.0, -16.0)
SUNG_RANGE = (45, 76)  # MIDI pitches
WHISTLED_RANGE = (76, 100)


def pitch_curve(
    notes: np.ndarray, seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes pitch and loudness of one voice, every STEP samples.

    Args:
      notes: float `[n, 4]`, start and end in seconds, MIDI pitch, velocity; monophonic.
      seconds: length.
      rng: for vibrato and mistuning.

    Returns:
      MIDI pitch and amplitude (0 in rests), both float64 `[points]`, and the index of the current or latest note in
      order of onset, int `[points]`.
    """
    times = np.arange(0, round(seconds * SAMPLE_RATE), STEP) / SAMPLE_RATE
    notes = notes[np.argsort(notes[:, 0], kind="stable")]
    sung = notes[:, 2] + rng.normal(0.0, 0.12, len(notes))
    # The pitch is held between notes, so that each note glides from the one before.
    current = np.clip(np.searchsorted(notes[:, 0], times, side="right") - 1, 0, None)
    sounding = (times >= notes[current, 0]) & (times < notes[current, 1])
    smooth = round(GLIDE * SAMPLE_RATE / STEP)
    pitch = scipy.signal.lfilter([3 / smooth], [1, 3 / smooth - 1], sung[current], zi=[sung[0] * (1 - 3 / smooth)])[0]
    rate, depth, phase = rng.uniform(4.8, 6.2), rng.uniform(0.1, 0.4), rng.uniform(0, 2 * np.pi)
    since = times - notes[current, 0]  # vibrato sets in when a note is held
    pitch = pitch + depth * np.clip((since - 0.15) / 0.2, 0, 1) * np.sin(2 * np.pi * rate * times + phase)
    loud = np.where(sounding, 10 ** ((notes[current, 3] - 100) / 40), 0.0)
    window = np.hanning(2 * round(0.03 * SAMPLE_RATE / STEP) + 1)
    return pitch, np.convolve(loud, window / window.sum(), mode="same"), current


def sung(notes: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Sings a tune on changing vowels: float32 `[samples]`; arguments as in `pitch_curve`, pitches in SUNG_RANGE."""
    pitch, loud, current = pitch_curve(notes, seconds, rng)
    hz = 440 * 2 ** ((pitch - 69) / 12)
    formants = np.array(list(VOWELS.values()), float)[rng.integers(0, len(VOWELS), len(notes))][current]
    formants *= rng.uniform(0.92, 1.18)  # length of the vocal tract
    phase = 2 * np.pi * np.cumsum(_samples(hz, seconds)) / SAMPLE_RATE
    audio = np.zeros(len(phase))
    # Recurrence for the harmonics: sin(n x) = 2 cos(x) sin((n - 1) x) - sin((n - 2) x).
    before, sine, twice_cosine = np.zeros(len(phase)), np.sin(phase), 2 * np.cos(phase)
    for number in range(1, int(5000 / hz.min()) + 1):
        part = number * hz
        gain = sum(
            10 ** (level / 20) / (1 + ((part - formants[:, i]) / width) ** 2)
            for i, (width, level) in enumerate(zip(BANDWIDTHS, LEVELS_DB, strict=True))
        )
        gain = np.where(part < 5000, (0.03 + gain) / number, 0.0)
        audio += _samples(gain * loud, seconds) * sine
        before, sine = sine, twice_cosine * sine - before
    breath = scipy.signal.lfilter([1.0, -0.9], [1.0], rng.standard_normal(len(audio)))
    return _level(audio + 0.01 * breath * _samples(loud, seconds))


def whistled(notes: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Whistles a tune, almost a sine: float32 `[samples]`; arguments as in `pitch_curve`, pitches in WHISTLED_RANGE."""
    pitch, loud, _ = pitch_curve(notes, seconds, rng)
    hz = 440 * 2 ** ((pitch - 69) / 12)
    phase = 2 * np.pi * np.cumsum(_samples(hz, seconds)) / SAMPLE_RATE
    tone = np.sin(phase) + 0.03 * np.sin(2 * phase)
    # Breath is noise around the pitch: slowly varying amplitude and phase.
    air = scipy.signal.lfilter([0.02], [1, -0.98], rng.standard_normal((2, len(tone))))
    tone = tone + 0.8 * (air[0] * np.cos(phase) + air[1] * np.sin(phase)) + 0.01 * rng.standard_normal(len(tone))
    return _level(tone * _samples(loud, seconds))


# Voices for a melody without accompaniment, and their ranges.
VOICES = ((sung, SUNG_RANGE), (whistled, WHISTLED_RANGE))


def _samples(curve: np.ndarray, seconds: float) -> np.ndarray:
    """Interpolates a control curve linearly to every sample; the last value is held."""
    rise = np.diff(curve, append=curve[-1])
    lines = curve[:, None] + rise[:, None] * (np.arange(STEP) / STEP)
    return lines.ravel()[: round(seconds * SAMPLE_RATE)]


def _level(audio: np.ndarray) -> np.ndarray:
    """Scales audio to an RMS of 0.1."""
    return (0.1 * audio / max(np.sqrt(np.mean(np.square(audio))), 1e-9)).astype(np.float32)
