"""Chooses where in a piece a clip lies: in its middle, at its start after a silence, or up to its last notes."""

import dataclasses

import numpy as np

from musiclm_jax.corpus import harmony
from musiclm_jax.corpus.scores import DRUMS, Score

CLIP_SECONDS = 10.0
PREROLL_SECONDS = 1.0  # rendered before the clip and cut, so that half of the clips begin in the middle of the music
START_SHARE, END_SHARE = 0.12, 0.08  # of clips with the start or the end of a piece
SILENCE_BEFORE = (0.3, 1.5)  # seconds before a piece's first note
SILENCE_AFTER = (0.8, 2.5)  # seconds after a piece's last notes, in which they ring out
_SPARE_SECONDS = 0.5  # notes beyond the clip's end, since a player may hurry
_NEAR = 1e-4  # quarters


class UnsuitableError(ValueError):
    """This passage does not make a clip (rests, range); the caller draws again."""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Where a clip lies in a piece.

    Attributes:
      score: the composition.
      per_quarter: seconds of a quarter.
      beat: quarters of a beat.
      start: in quarters: what sounds first.
      end: in quarters: notes from there on are not played.
      offset: seconds from the beginning of the rendered sound to `start`.
      preroll: seconds to cut from the beginning.
      piece: what of the piece is shown, "start", "middle" or "end".
      music_seconds: seconds of the clip between a silence before and one after it.
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
        """Beginning, in quarters, of the bar in which accompaniment enters; a pickup is played without it."""
        bars = np.floor((self.start - self.score.pickup) / self.score.bar + _NEAR)
        return self.score.pickup + self.score.bar * float(max(bars, 0.0) if self.piece == "start" else bars)

    def notes(self, of: np.ndarray) -> np.ndarray:
        """Of notes `[n, 5]` of the piece, those of the excerpt. A piece that is too short is played again."""
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
        """Of notes `[n, 4]` made for whole bars, those that are not before a beginning or after an end.

        Where the beginning is cut, notes of the bar before it go on sounding.
        """
        rows = rows[rows[:, 0] < self.end - _NEAR]
        return rows[rows[:, 0] >= self.start - _NEAR] if self.preroll == 0 or self.piece == "start" else rows


def draw(rng: np.random.Generator, score: Score, bpm: float) -> Excerpt:
    """Draws an excerpt of a piece at a tempo."""
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
    """Notes `[n, 5]` of a score without those of drum kits."""
    if DRUMS not in score.programs:
        return score.notes
    drums = [part for part, program in enumerate(score.programs) if program == DRUMS]
    return score.notes[~np.isin(score.notes[:, 3].astype(int), drums)]


def _period(score: Score) -> float:
    """Quarters after which a piece that is played again begins."""
    return max(float(np.ceil((score.quarters - score.pickup) / score.bar - 1e-3)), 1.0) * score.bar
