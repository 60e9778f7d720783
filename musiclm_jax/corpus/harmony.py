"""Simple accompaniment for melodies: key finding, chords, bass, drones and drum patterns.

Times are in quarter notes; notes are rows (onset, duration, MIDI pitch, velocity).
"""

import numpy as np

# Krumhansl and Kessler's probe-tone profiles (1982), as in music21 and most key finders.
_MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
_MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
# Both profiles on each tonic `[24, 12]`, centered, with unit norm: products with them rank keys by correlation.
_KEYS = np.array([np.roll(profile - profile.mean(), tonic) for profile in (_MAJOR, _MINOR) for tonic in range(12)])
_KEYS /= np.linalg.norm(_KEYS, axis=1, keepdims=True)
TONICS = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}
# Chords as offsets from the tonic, with a weight of preference.
_CHORDS = {
    "major": {(0, 4, 7): 1.0, (5, 9, 0): 0.8, (7, 11, 2): 0.9, (9, 0, 4): 0.5, (2, 5, 9): 0.45},
    "minor": {(0, 3, 7): 1.0, (5, 8, 0): 0.7, (7, 11, 2): 0.6, (10, 2, 5): 0.75, (8, 0, 3): 0.6, (3, 7, 10): 0.6},
    "mixolydian": {(0, 4, 7): 1.0, (10, 2, 5): 0.85, (5, 9, 0): 0.8, (7, 10, 2): 0.5},
    "dorian": {(0, 3, 7): 1.0, (10, 2, 5): 0.85, (5, 9, 0): 0.7, (7, 10, 2): 0.5, (3, 7, 10): 0.5},
}
KICK, SNARE, CLOSED_HAT, OPEN_HAT, RIDE = 36, 38, 42, 46, 51


def find_key(notes: np.ndarray) -> tuple[int, str]:
    """Finds the key of notes `[n, >= 3]` by correlating their durations per pitch class with the key profiles.

    Returns:
      (pitch class of the tonic, "major" or "minor").
    """
    histogram = np.bincount(notes[:, 2].astype(int) % 12, weights=notes[:, 1], minlength=12)
    best = int(np.argmax(_KEYS @ (histogram - histogram.mean())))  # the norm of the histogram does not matter
    return best % 12, "major" if best < 12 else "minor"


def key_name(tonic: int, mode: str) -> str:
    """Returns the name of a key: "G major", "F# minor", "A mixolydian"."""
    return f"{TONICS['major' if mode in ('major', 'lydian', 'mixolydian') else 'minor'][tonic % 12]} {mode}"


def is_compound(meter: tuple[int, int]) -> bool:
    """Returns whether beats have three parts (6/8, 9/8, 12/8)."""
    return meter[0] % 3 == 0 and meter[0] > 3 and meter[1] >= 8


def beat_quarters(meter: tuple[int, int]) -> float:
    """Returns the length of a beat in quarter notes: 1.5 (dotted) in compound meters, else 1."""
    return 1.5 if is_compound(meter) else 1.0


def chords(
    melody: np.ndarray, tonic: int, mode: str, start: float, end: float, step: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Chooses a chord for each `step` quarter notes from `start` to `end`.

    A chord's score is the time of the melody's notes that it contains, plus its weight in `_CHORDS`.

    Returns:
      [(onset, pitch classes, root first)].
    """
    table = _CHORDS.get(mode) or _CHORDS["minor" if mode in ("phrygian", "locrian") else "major"]
    result = []
    for onset in np.arange(start, end - 1e-6, step):
        overlap = np.minimum(melody[:, 0] + melody[:, 1], onset + step) - np.maximum(melody[:, 0], onset)
        weight = np.bincount(melody[:, 2].astype(int) % 12, weights=np.clip(overlap, 0, None), minlength=12)
        # The note on the beat has extra weight, since it determines the perceived harmony.
        sounding = (melody[:, 0] <= onset + 1e-3) & (melody[:, 0] + melody[:, 1] > onset + 1e-3)
        for pitch in melody[sounding, 2].astype(int):
            weight[pitch % 12] += 0.5 * step
        shifted = np.roll(weight, -tonic)
        best = max(table, key=lambda chord: shifted[list(chord)].sum() + 0.35 * step * table[chord])
        result.append((float(onset), tuple((pc + tonic) % 12 for pc in best)))
    return result


def _near(pitch_class: int, low: int) -> int:
    """Returns the lowest MIDI pitch of a pitch class that is at least `low`."""
    return low + (pitch_class - low) % 12


def bass_line(progression: list[tuple[float, tuple[int, ...]]], step: float, beat: float, low: int) -> np.ndarray:
    """Generates a bass line from MIDI pitch `low` upwards, one note per beat: alternating roots and fifths."""
    rows = []
    for onset, chord in progression:
        for index, time in enumerate(np.arange(onset, onset + step - 1e-6, beat)):
            rows.append((time, 0.9 * min(beat, onset + step - time), _near(chord[2 if index % 2 else 0], low), 90))
    return np.array(rows, np.float32).reshape(-1, 4)


def chord_part(
    progression: list[tuple[float, tuple[int, ...]]], step: float, beat: float, low: int, pattern: str
) -> np.ndarray:
    """Generates chords in close position above MIDI pitch `low`; `pattern` is "held", "beats" or "offbeats"."""
    rows = []
    for onset, chord in progression:
        pitches = [_near(pc, low) for pc in chord]
        if pattern == "held":
            times, length = np.array([onset]), 0.97 * step
        else:
            shift = beat / 2 if pattern == "offbeats" else 0.0
            times, length = np.arange(onset, onset + step - 1e-6, beat) + shift, 0.45 * beat
        rows += [(time, length, pitch, 80) for time in times for pitch in pitches]
    return np.array(rows, np.float32).reshape(-1, 4)


def drone(tonic: int, start: float, end: float, step: float, low: int) -> np.ndarray:
    """Generates a drone of tonic and fifth, restarted every `step` quarter notes."""
    pitches = [_near(tonic, low), _near(tonic, low) + 7]
    rows = [(t, min(step, end - t) * 1.0, p, 85) for t in np.arange(start, end - 1e-6, step) for p in pitches]
    return np.array(rows, np.float32).reshape(-1, 4)


def drum_pattern(meter: tuple[int, int], start: float, end: float, style: int) -> np.ndarray:
    """Generates a plain beat in the meter: style 0 uses closed hi-hats, 1 the ride cymbal, 2 has no snare."""
    bar, beat = 4.0 * meter[0] / meter[1], beat_quarters(meter)
    beats = max(round(bar / beat), 1)
    part = beat / 3 if is_compound(meter) else beat / 2
    cymbal = RIDE if style == 1 else CLOSED_HAT
    rows = []
    for onset in np.arange(start, end - 1e-6, bar):
        for index in range(beats):
            time = onset + index * beat
            strong = index % 2 == 0 if beats != 3 else index == 0
            if strong or style == 2:
                rows.append((time, 0.2, KICK, 110 if index == 0 else 95))
            if not strong and style != 2:
                rows.append((time, 0.2, SNARE, 95 if beats != 3 else 70))
            subdivisions = np.arange(time, min(time + beat, onset + bar) - 1e-6, part)
            rows += [(t, 0.1, cymbal, 80 if i == 0 else 60) for i, t in enumerate(subdivisions)]
    return np.array(rows, np.float32).reshape(-1, 4)
