"""Chooses the excerpt of a piece for a clip: from its middle, its start after silence, or its end before silence."""

import dataclasses

import numpy as np

from musiclm_jax.corpus import harmony
from musiclm_jax.corpus.scores import DRUMS, Score

CLIP_SECONDS = 10.0
PREROLL_SECONDS = 1.0  # rendered before the clip and cut, so that a clip may begin while notes are sounding
START_SHARE, END_SHARE = 0.12, 0.08  # shares of clips with the start and the end of a piece
SILENCE_BEFORE = (0.3, 1.5)  # seconds before a piece's first note
SILENCE_AFTER = (0.8, 2.5)  # seconds after a piece's last notes, in which they ring out
_SPARE_SECONDS = 0.5  # extra notes after the clip's end, since a performance may speed up
_NEAR = 1e-4  # quarter notes


class UnsuitableError(ValueError):
    """Raised if a passage is unsuitable for a clip, for example because it rests; the caller draws again."""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """The part of a piece that a clip plays.

    Attributes:
      score: the composition.
      per_quarter: duration of a quarter note in seconds.
      beat: length of a beat in quarter notes.
      start: first position that is played, in quarter notes.
      end: end of the excerpt, in quarter notes; notes that begin there or later are not played.
      offset: seconds from the beginning of the rendered audio to `start`.
      preroll: seconds to cut from the beginning.
      piece: "start", "middle" or "end" of the piece.
      music_seconds: duration of the clip without silence before and after the music.
    """

    score: Score
    per_quarter: float
    beat: float
    start: float
    end: float
    offset: float
    preroll: float
    piece: str
    music_seconds: float

    @property
    def first_bar(self) -> float:
        """Start, in quarter notes, of the bar in which the accompaniment enters; a pickup has no accompaniment."""
        bars = np.floor((self.start - self.score.pickup) / self.score.bar + _NEAR)
        return self.score.pickup + self.score.bar * float(max(bars, 0.0) if self.piece == "start" else bars)

    def notes(self, of: np.ndarray) -> np.ndarray:
        """Selects the excerpt's notes from the piece's `[n, 5]`. A piece that is too short is repeated."""
        period = _period(self.score)
        last = 0 if self.piece == "end" else int(self.end // period)
        copies = []
        for turn in range(int(self.start // period), last + 1):
            copy = of.copy()
            copy[:, 0] += turn * period
            copies.append(copy)
        rows = np.concatenate(copies)
        rows = rows[(rows[:, 0] >= self.start - _NEAR) & (rows[:, 0] < self.end - _NEAR)]
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def within(self, rows: np.ndarray) -> np.ndarray:
        """Selects the excerpt's notes from `[n, 4]`, which were generated for whole bars.

        If the beginning is cut, earlier notes of its bar are kept, since they may still be sounding.
        """
        rows = rows[rows[:, 0] < self.end - _NEAR]
        return rows[rows[:, 0] >= self.start - _NEAR] if self.preroll == 0 or self.piece == "start" else rows


def draw(rng: np.random.Generator, score: Score, bpm: float) -> Excerpt:
    """Draws an excerpt of a piece at the given tempo."""
    beat = harmony.beat_quarters(score.meter) if not score.bpm else 1.0
    per_quarter = 60.0 / bpm / beat
    chance = rng.random()
    if chance < START_SHARE:
        start, offset = float(score.notes[:, 0].min()), float(rng.uniform(*SILENCE_BEFORE))
        end = start + (CLIP_SECONDS - offset + _SPARE_SECONDS) / per_quarter
        return Excerpt(score, per_quarter, beat, start, end, offset, 0.0, "start", CLIP_SECONDS - offset)
    if chance < START_SHARE + END_SHARE:
        end, silence = score.quarters, float(rng.uniform(*SILENCE_AFTER))
        start = end - (PREROLL_SECONDS + CLIP_SECONDS - silence) / per_quarter
        music = CLIP_SECONDS - silence
        return Excerpt(score, per_quarter, beat, start, end, 0.0, PREROLL_SECONDS, "end", music)
    bars = max(int((_period(score) - CLIP_SECONDS / per_quarter) / score.bar), 0)
    start, offset, preroll = score.pickup + score.bar * int(rng.integers(bars + 1)), float(rng.uniform(0.0, 0.2)), 0.0
    if rng.random() < 0.5:
        start, offset, preroll = start + float(rng.uniform(0.0, score.bar)), 0.0, PREROLL_SECONDS
    end = start + (CLIP_SECONDS + preroll + _SPARE_SECONDS) / per_quarter
    return Excerpt(score, per_quarter, beat, start, end, offset, preroll, "middle", CLIP_SECONDS)


def pitched(score: Score) -> np.ndarray:
    """Returns the notes `[n, 5]` of a score without drum kits."""
    if DRUMS not in score.programs:
        return score.notes
    drums = [part for part, program in enumerate(score.programs) if program == DRUMS]
    return score.notes[~np.isin(score.notes[:, 3].astype(int), drums)]


def _period(score: Score) -> float:
    """Returns the number of quarter notes after which a repeated piece begins again."""
    return max(float(np.ceil((score.quarters - score.pickup) / score.bar - 1e-3)), 1.0) * score.bar
