"""Expressive performance: dynamics by phrase, metrical accents, tempo drift and small timing deviations.

All players of a clip share one performance, so that their dynamics and tempo change together.
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus.excerpts import Excerpt

SOFTEST = (55.0, 88.0)  # range of a clip's minimum MIDI velocity; its maximum is higher, up to LOUDEST
LOUDEST = 120.0
LEAST_RANGE = 15.0  # between minimum and maximum
PHRASE_BARS = (2, 3, 4, 4)
RUBATO = 0.03  # largest relative deviation of the tempo
DRUMS_RUBATO = 0.3  # factor for RUBATO if there are drums
JITTER_SECONDS = (0.002, 0.008)  # standard deviation of onsets
SPREAD = (2.0, 7.0)  # standard deviation of velocities
HELD = (0.88, 0.98)  # share of its written length that a note is held
RING_SECONDS = 0.4  # by which a piece's last notes are held longer
_VELOCITIES = (25.0, 127.0)
_MARGIN = 16  # quarter notes before and after the excerpt that are also mapped to seconds


@dataclasses.dataclass(frozen=True)
class Performance:
    """One way of playing an excerpt.

    Attributes:
      excerpt: what is played.
      quarters, seconds: increasing, of equal length: positions in the piece and the times at which they are played.
      softest, loudest: range of the lead's velocities within a phrase.
      phrase: length of a phrase in quarter notes.
      peak: position of a phrase's loudest point, 0 to 1.
      jitter: standard deviation of onsets in seconds.
      spread: standard deviation of velocities.
      held: share of its written length that a note is held.
    """

    excerpt: Excerpt
    quarters: np.ndarray
    seconds: np.ndarray
    softest: float
    loudest: float
    phrase: float
    peak: float
    jitter: float
    spread: float
    held: float

    def loudness(self, onsets: np.ndarray) -> np.ndarray:
        """Returns the loudness from 0 to 1: two thirds from the phrase's arc, one third from metrical accents."""
        since = onsets - self.excerpt.score.pickup
        passed = (since / self.phrase) % 1.0
        arc = np.sin(np.pi * passed ** (np.log(0.5) / np.log(self.peak)))
        accent = np.where(_on(since, self.excerpt.score.bar), 1.0, np.where(_on(since, self.excerpt.beat), 0.6, 0.0))
        return (2 * arc + accent) / 3

    def lead_velocities(self, onsets: np.ndarray) -> np.ndarray:
        """Returns the lead's velocities, before random deviations."""
        return self.softest + (self.loudest - self.softest) * self.loudness(onsets)

    def companion_velocities(self, onsets: np.ndarray, written: np.ndarray) -> np.ndarray:
        """Returns the companions' velocities: the written ones, plus half of the lead's dynamics."""
        return written + 0.5 * (self.loudest - self.softest) * (self.loudness(onsets) - 0.5)

    def play(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """Converts notes from quarter notes to seconds, with random deviations.

        Args:
          rng: the clip's generator.
          rows: `[n, 4]`, onset, duration, MIDI pitch, velocity.

        Returns:
          float32 `[n, 4]`: start, end, MIDI pitch, velocity.
        """
        if not len(rows):
            return np.zeros((0, 4), np.float32)
        onset = np.interp(rows[:, 0], self.quarters, self.seconds)
        written = np.interp(rows[:, 0] + rows[:, 1], self.quarters, self.seconds)
        end = onset + np.maximum((written - onset) * self.held, 0.05)
        if self.excerpt.piece == "end":
            last = float(np.interp(self.excerpt.end, self.quarters, self.seconds))
            # Notes that would sound beyond the end stop with the last notes.
            end = np.where(written > last - 0.02, last + RING_SECONDS, end)
        onset = np.maximum(onset + rng.normal(0.0, self.jitter, len(rows)), 0.0)
        velocity = np.clip(rows[:, 3] + rng.normal(0.0, self.spread, len(rows)), *_VELOCITIES)
        notes = np.stack([onset, np.maximum(end, onset + 0.03), rows[:, 2], velocity], axis=1)
        _release(notes)
        return notes[notes[:, 1] > notes[:, 0]].astype(np.float32)


def draw(rng: np.random.Generator, excerpt: Excerpt, drums: bool) -> Performance:
    """Draws a performance of an excerpt; with drums, the tempo hardly drifts."""
    softest = float(rng.uniform(*SOFTEST))
    phrase = excerpt.score.bar * float(rng.choice(PHRASE_BARS))
    quarters, seconds = _timing(rng, excerpt, phrase, RUBATO * rng.random() * (DRUMS_RUBATO if drums else 1.0))
    return Performance(
        excerpt=excerpt,
        quarters=quarters,
        seconds=seconds,
        softest=softest,
        loudest=float(rng.uniform(softest + LEAST_RANGE, LOUDEST)),
        phrase=phrase,
        peak=float(rng.uniform(0.45, 0.7)),
        jitter=float(rng.uniform(*JITTER_SECONDS)),
        spread=float(rng.uniform(*SPREAD)),
        held=float(rng.uniform(*HELD)),
    )


def _timing(rng: np.random.Generator, excerpt: Excerpt, phrase: float, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws a tempo that drifts between half phrases; returns quarter notes and the seconds when they are played."""
    quarters = np.arange(excerpt.start - _MARGIN, excerpt.end + _MARGIN)
    turns = np.arange(quarters[0], quarters[-1] + phrase, phrase / 2)
    slower = np.interp(quarters, turns, rng.uniform(-depth, depth, len(turns)))
    inside = (quarters >= excerpt.start) & (quarters <= excerpt.end)
    slower = np.clip(slower - slower[inside].mean(), -RUBATO, RUBATO)  # the mean tempo is the stated one
    seconds = np.cumsum(excerpt.per_quarter * (1.0 + slower))
    if excerpt.piece == "end":  # align the end of the excerpt, not its start
        stop = excerpt.offset + (excerpt.end - excerpt.start) * excerpt.per_quarter
        return quarters, seconds - np.interp(excerpt.end, quarters, seconds) + stop
    return quarters, seconds - np.interp(excerpt.start, quarters, seconds) + excerpt.offset


def _on(since: np.ndarray, length: float) -> np.ndarray:
    """Returns whether times are whole multiples of a length, both in quarter notes."""
    return np.abs(since - length * np.round(since / length)) < 0.02


def _release(notes: np.ndarray) -> None:
    """Ends each note before the next of the same pitch: the synthesizer's note-off would end both."""
    order = np.lexsort((notes[:, 0], notes[:, 2]))
    before, after = order[:-1], order[1:]
    same = notes[before, 2] == notes[after, 2]
    before, after = before[same], after[same]
    notes[before, 1] = np.minimum(notes[before, 1], notes[after, 0] - 0.005)
