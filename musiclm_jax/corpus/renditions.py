"""Training data of the melody model: renditions of a passage that share its melody and differ in everything else.

MusicLM's pairs (section 3.3, arXiv 2301.11325) are covers, instrumentals, vocals and humming of the same pieces. Here
they are generated from scores. Each rendition has its own player (an instrument, singing or whistling), tempo, key,
accompaniment, loudness and room.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from musiclm_jax.corpus import harmony, instruments, rendering, voices
from musiclm_jax.corpus.excerpts import UnsuitableError
from musiclm_jax.corpus.instruments import Instrument
from musiclm_jax.corpus.scores import TUNE_BOOKS, Score

SECONDS = 4.0  # per rendition: the melody model's window
TEMPI = (76.0, 132.0)  # bpm of a passage
FASTER = 1.15  # largest factor between the tempo of a rendition and that of its passage
KEYS = (-5, 6)  # semitones, both included
PLAYERS = {"instrument": 0.6, "sung": 0.25, "whistled": 0.15}
ACCOMPANIED = 0.5  # share of the instrumental and sung renditions that have accompaniment
MIN_NOTES = 6  # per passage, of at least MIN_PITCHES pitches
MIN_PITCHES = 3


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage of a tune.

    Attributes:
      score: the composition.
      start: in quarter notes.
      per_quarter: duration of a quarter note in seconds, at the passage's tempo.
      notes: float32 `[n, 4]`, onset and duration in quarter notes, MIDI pitch, velocity; monophonic. There are enough
        for the fastest rendition.
    """

    score: Score
    start: float
    per_quarter: float
    notes: np.ndarray


class Rendition(NamedTuple):
    """A rendition: its player (one of PLAYERS) and its audio, float32 `[samples]` at 24 kHz, SECONDS long."""

    player: str
    audio: np.ndarray


def passage(rng: np.random.Generator, score: Score, seconds: float = SECONDS) -> Passage:
    """Draws a passage from a tune, starting at a bar, for renditions of `seconds`.

    Raises:
      UnsuitableError: if it has too few notes or pitches, or the score is not from a tune book.
    """
    if score.source not in TUNE_BOOKS:
        raise UnsuitableError(f"{score.id} is not from a tune book")
    per_quarter = 60.0 / float(rng.uniform(*TEMPI)) / harmony.beat_quarters(score.meter)
    length = seconds * FASTER / per_quarter
    bars = max(int((score.quarters - score.pickup - length) / score.bar), 0)
    start = score.pickup + score.bar * int(rng.integers(bars + 1))
    notes = score.notes[(score.notes[:, 0] >= start - 1e-4) & (score.notes[:, 0] < start + length)]
    order = np.lexsort((-notes[:, 2], np.round(notes[:, 0], 2)))
    notes = notes[order][np.unique(np.round(notes[order, 0], 2), return_index=True)[1]]
    heard = notes[notes[:, 0] < start + seconds / FASTER / per_quarter]  # in the slowest rendition
    if len(heard) < MIN_NOTES or len(np.unique(heard[:, 2])) < MIN_PITCHES:
        raise UnsuitableError(f"{score.id} has fewer than {MIN_NOTES} notes from quarter {start:g} on")
    return Passage(score, float(start), per_quarter, notes[:, [0, 1, 2, 4]].astype(np.float32))


def render(rng: np.random.Generator, renderer: rendering.Renderer, played: Passage) -> Rendition:
    """Draws and renders one rendition.

    Raises:
      SilentError: if an instrument produces no sound.
    """
    player = str(rng.choice(list(PLAYERS), p=list(PLAYERS.values())))
    per_quarter = played.per_quarter * FASTER ** rng.uniform(-1.0, 1.0)
    shift, offset = int(rng.integers(KEYS[0], KEYS[1] + 1)), float(rng.uniform(0.0, 0.08))
    lead = instruments.LEADS[rng.integers(len(instruments.LEADS))]
    reach = {"sung": voices.SUNG_RANGE, "whistled": voices.WHISTLED_RANGE}.get(player, (lead.low, lead.high))
    tune = in_seconds(played.notes, played.start, per_quarter, offset)
    tune[:, 2] += shift
    tune[:, 2] += octaves(tune[:, 2], reach)
    if player == "instrument":
        audio = renderer.stem([(lead.font, lead.program, False, tune)], SECONDS)
    else:
        audio = (voices.sung if player == "sung" else voices.whistled)(tune, SECONDS, rng)
    stems, levels = [audio], [-20.0]
    if player != "whistled" and rng.random() < ACCOMPANIED:
        parts = accompaniment(rng, played, shift, per_quarter, offset)
        stems.append(renderer.stem(parts, SECONDS))
        levels.append(-20.0 - float(rng.uniform(4.0, 10.0)))
    mixed = rendering.mix(stems, levels)
    room = str(rng.choice(list(rendering.ROOMS)))
    audio, _ = rendering.set_loudness(rendering.add_room(mixed, room, rng), float(rng.uniform(-10.0, 4.0)))
    return Rendition(player, audio)


def in_seconds(notes: np.ndarray, start: float, per_quarter: float, offset: float) -> np.ndarray:
    """Converts notes `[n, 4]` of (onset, duration, pitch, velocity) in quarter notes to (start, end, ...) in seconds.

    A note ends before the next of the same pitch begins: the synthesizer's note-off would end both.
    """
    onset = (notes[:, 0] - start) * per_quarter + offset
    end = onset + np.maximum(0.92 * notes[:, 1] * per_quarter, 0.05)
    for pitch in np.unique(notes[:, 2]):
        same = np.flatnonzero(notes[:, 2] == pitch)
        end[same[:-1]] = np.minimum(end[same[:-1]], onset[same[1:]] - 0.01)
    return np.stack([onset, np.maximum(end, onset + 0.03), notes[:, 2], notes[:, 3]], axis=1).astype(np.float32)


def octaves(pitches: np.ndarray, reach: tuple[int, int]) -> int:
    """Returns the octaves, in semitones, that move most pitches into a range, and closest to its middle."""

    def cost(count: int) -> tuple[int, float]:
        moved = pitches + 12 * count
        outside = int(((moved < reach[0]) | (moved > reach[1])).sum())
        return outside, abs(float(np.median(moved)) - 0.5 * (reach[0] + reach[1]))

    return 12 * min(range(-5, 6), key=cost)


def accompaniment(
    rng: np.random.Generator, played: Passage, shift: int, per_quarter: float, offset: float
) -> list[tuple[str, int, bool, np.ndarray]]:
    """Draws tracks for `Renderer.stem`: a drone, or chords and a bass; with or without drums."""
    score, start = played.score, played.start
    end, beat = start + SECONDS / per_quarter, harmony.beat_quarters(score.meter)
    tonic = (score.tonic + shift) % 12
    moved = played.notes.copy()
    moved[:, 2] += shift

    def track(player: Instrument, rows: np.ndarray) -> tuple[str, int, bool, np.ndarray]:
        return player.font, player.program, False, in_seconds(rows, start, per_quarter, offset)

    if rng.random() < 0.25:
        player = instruments.DRONE_PLAYERS[rng.integers(len(instruments.DRONE_PLAYERS))]
        parts = [track(player, harmony.drone(tonic, start, end, 2 * score.bar, player.low))]
    else:
        step = score.bar
        progression = harmony.chords(moved, tonic, score.mode, start, end, step)
        player = instruments.CHORD_PLAYERS[rng.integers(len(instruments.CHORD_PLAYERS))]
        pattern = str(rng.choice(["beats", "offbeats", "held"]))
        bass = instruments.ACOUSTIC_BASS
        parts = [
            track(player, harmony.chord_part(progression, step, beat, player.low, pattern)),
            track(bass, harmony.bass_line(progression, step, step, bass.low)),
        ]
    if rng.random() < 0.5:
        beats = harmony.drum_pattern(score.meter, start, end, int(rng.integers(3)))
        parts.append((instruments.TIMGM, 0, True, in_seconds(beats, start, per_quarter, offset)))
    return parts
