"""Tunes as if sung or whistled: synthesized from notes, with glides, vibrato and breath, without a sound font.

Not meant to pass for a singer: a melody model shall hear pitch the way people give it, gliding and a little off. Vowels
are formants (mean frequencies of Peterson and Barney, 1952) over the falling spectrum of a glottis.
"""

import numpy as np
import scipy.signal

from musiclm_jax.data.tokens import SAMPLE_RATE

STEP = 120  # samples between points of the curves: 5 ms
GLIDE = 0.06  # seconds in which a voice goes from note to note
# Frequencies in Hz of the first three formants; their bandwidths and levels are the same for all.
VOWELS = {"a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010), "o": (570, 840, 2410)}
BANDWIDTHS = (90.0, 110.0, 170.0)
LEVELS_DB = (0.0, -7.0, -16.0)
SUNG_RANGE = (45, 76)  # MIDI pitches
WHISTLED_RANGE = (76, 100)


def pitch_curve(
    notes: np.ndarray, seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch and loudness of one voice, every STEP samples.

    Args:
      notes: float `[n, 4]`, start and end in seconds, MIDI pitch, velocity; one at a time.
      seconds: length.
      rng: of vibrato and of how far notes are off.

    Returns:
      MIDI pitch and amplitude (0 in rests), float64 `[points]`; number of the note that sounds or sounded last, in the
      order of their starts, int `[points]`.
    """
    times = np.arange(0, round(seconds * SAMPLE_RATE), STEP) / SAMPLE_RATE
    notes = notes[np.argsort(notes[:, 0], kind="stable")]
    sung = notes[:, 2] + rng.normal(0.0, 0.12, len(notes))
    # Between notes the pitch stays where it was, so that each glides from the one before.
    current = np.clip(np.searchsorted(notes[:, 0], times, side="right") - 1, 0, None)
    sounding = (times >= notes[current, 0]) & (times < notes[current, 1])
    smooth = round(GLIDE * SAMPLE_RATE / STEP)
    pitch = scipy.signal.lfilter([3 / smooth], [1, 3 / smooth - 1], sung[current], zi=[sung[0] * (1 - 3 / smooth)])[0]
    rate, depth, phase = rng.uniform(4.8, 6.2), rng.uniform(0.1, 0.4), rng.uniform(0, 2 * np.pi)
    since = times - notes[current, 0]  # vibrato comes when a note is held
    pitch = pitch + depth * np.clip((since - 0.15) / 0.2, 0, 1) * np.sin(2 * np.pi * rate * times + phase)
    loud = np.where(sounding, 10 ** ((notes[current, 3] - 100) / 40), 0.0)
    window = np.hanning(2 * round(0.03 * SAMPLE_RATE / STEP) + 1)
    return pitch, np.convolve(loud, window / window.sum(), mode="same"), current


def sung(notes: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A tune on changing vowels: float32 `[samples]`; arguments as in `pitch_curve`, in SUNG_RANGE."""
    pitch, loud, current = pitch_curve(notes, seconds, rng)
    hz = 440 * 2 ** ((pitch - 69) / 12)
    formants = np.array(list(VOWELS.values()), float)[rng.integers(0, len(VOWELS), len(notes))][current]
    formants *= rng.uniform(0.92, 1.18)  # the length of a throat
    phase = 2 * np.pi * np.cumsum(_samples(hz, seconds)) / SAMPLE_RATE
    audio = np.zeros(len(phase))
    # Sines of the harmonics follow from the two before: sin(n x) = 2 cos(x) sin((n - 1) x) - sin((n - 2) x).
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
    """A tune whistled with the lips, nearly a sine: float32 `[samples]`; as `sung`, in WHISTLED_RANGE."""
    pitch, loud, _ = pitch_curve(notes, seconds, rng)
    hz = 440 * 2 ** ((pitch - 69) / 12)
    phase = 2 * np.pi * np.cumsum(_samples(hz, seconds)) / SAMPLE_RATE
    tone = np.sin(phase) + 0.03 * np.sin(2 * phase)
    # Air is noise around the pitch: a slowly changing amplitude and phase.
    air = scipy.signal.lfilter([0.02], [1, -0.98], rng.standard_normal((2, len(tone))))
    tone = tone + 0.8 * (air[0] * np.cos(phase) + air[1] * np.sin(phase)) + 0.01 * rng.standard_normal(len(tone))
    return _level(tone * _samples(loud, seconds))


# Who gives a tune by itself, and in which range.
VOICES = ((sung, SUNG_RANGE), (whistled, WHISTLED_RANGE))


def _samples(curve: np.ndarray, seconds: float) -> np.ndarray:
    """A curve of every STEP samples at every sample, in straight lines; the last value stays."""
    rise = np.diff(curve, append=curve[-1])
    lines = curve[:, None] + rise[:, None] * (np.arange(STEP) / STEP)
    return lines.ravel()[: round(seconds * SAMPLE_RATE)]


def _level(audio: np.ndarray) -> np.ndarray:
    """Root mean square of 0.1."""
    return (0.1 * audio / max(np.sqrt(np.mean(np.square(audio))), 1e-9)).astype(np.float32)
