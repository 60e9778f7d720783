"""What is played beside the lead: accompaniment made by rule for tunes, the other parts of what has several."""

import dataclasses

import numpy as np

from musiclm_jax.corpus import harmony, instruments
from musiclm_jax.corpus.excerpts import Excerpt, UnsuitableError
from musiclm_jax.corpus.instruments import Instrument
from musiclm_jax.corpus.performance import Performance
from musiclm_jax.corpus.scores import DRUMS

FEWEST_NOTES = 8  # of a group that is told to accompany
FEWEST_DRUM_NOTES = 12  # of a band's drums
Track = tuple[str, int, bool, np.ndarray]  # as Renderer.stem takes it


@dataclasses.dataclass
class Companions:
    """Those beside the lead.

    Attributes:
      tracks: without drums.
      drum_tracks: drums.
      words: who they are, for captions ("piano chords").
    """

    tracks: list[Track] = dataclasses.field(default_factory=list)
    drum_tracks: list[Track] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)

    def name(self, *words: str) -> None:
        """Adds to `words` what is not among them."""
        self.words += [word for word in words if word not in self.words]


def sound(rng: np.random.Generator, instrument: Instrument) -> tuple[str, int]:
    """Draws a font and a program of an instrument."""
    return instrument.sounds[rng.integers(len(instrument.sounds))]


def _track(rng: np.random.Generator, performance: Performance, player: Instrument, rows: np.ndarray) -> Track:
    font, program = sound(rng, player)
    return font, program, False, _played(rng, performance, rows)


def _drums(rng: np.random.Generator, performance: Performance, rows: np.ndarray) -> Track:
    return instruments.TIMGM, 0, True, _played(rng, performance, rows)


def _played(rng: np.random.Generator, performance: Performance, rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[:, 3] = performance.companion_velocities(rows[:, 0], rows[:, 3])
    return performance.play(rng, rows)


def accompany_tune(
    rng: np.random.Generator, performance: Performance, melody: np.ndarray, tonic: int, mode: str, texture: str
) -> Companions:
    """Accompaniment by rule for a single melody.

    Args:
      rng: the clip's generator.
      performance: how the clip is played.
      melody: notes `[n, >= 3]` in quarters, in the clip's key.
      tonic: pitch class of the clip's key.
      mode: its mode.
      texture: one of arrangement.TEXTURES.
    """
    excerpt, result = performance.excerpt, Companions()
    score, first = excerpt.score, excerpt.first_bar
    if texture in ("with drums", "band"):
        beats = harmony.drum_pattern(score.meter, first, excerpt.end, int(rng.integers(3)))
        result.drum_tracks.append(_drums(rng, performance, excerpt.within(beats)))
    if texture == "drone and bass":
        player = instruments.DRONE_PLAYERS[rng.integers(len(instruments.DRONE_PLAYERS))]
        held = harmony.drone(tonic, first, excerpt.end, 2 * score.bar, player.low)
        result.tracks.append(_track(rng, performance, player, excerpt.within(held)))
        result.name(*player.words)
    if texture in ("drone and bass", "ensemble", "band"):
        step = _chord_step(excerpt)
        progression = harmony.chords(melody, tonic, mode, first, excerpt.end, step)
        if texture != "drone and bass":
            _add_chords(rng, performance, result, progression, step)
        bass = instruments.ELECTRIC_BASS if texture == "band" else instruments.ACOUSTIC_BASS
        line = harmony.bass_line(progression, step, excerpt.beat if texture == "band" else step, bass.low)
        result.tracks.append(_track(rng, performance, bass, excerpt.within(line)))
        result.name(*bass.words)
    return result


def _chord_step(excerpt: Excerpt) -> float:
    """Quarters that a chord lasts: half a bar where bars have two halves."""
    score = excerpt.score
    halves = score.meter[0] % 4 == 0 or score.meter == (2, 2)
    return score.bar / 2 if halves else score.bar


def _add_chords(
    rng: np.random.Generator, performance: Performance, result: Companions, progression: list, step: float
) -> None:
    player = instruments.CHORD_PLAYERS[rng.integers(len(instruments.CHORD_PLAYERS))]
    sustains = player.name in ("organ chords", "string chords")
    pattern = "held" if sustains else str(rng.choice(["beats", "offbeats", "held"]))
    excerpt = performance.excerpt
    rows = harmony.chord_part(progression, step, excerpt.beat, player.low, pattern)
    result.tracks.append(_track(rng, performance, player, excerpt.within(rows)))
    result.name(*player.words)


def accompany_game_music(
    rng: np.random.Generator, performance: Performance, others: np.ndarray, shift: int, texture: str
) -> Companions:
    """The other parts of a piece of game music, with the programs that its file asks for.

    Args:
      rng: the clip's generator.
      performance: how the clip is played.
      others: notes `[n, 5]` of the excerpt without the lead's and drums.
      shift: semitones from the written to the clip's key.
      texture: "band" if there have to be drums.

    Raises:
      UnsuitableError: if there are none.
    """
    excerpt, result = performance.excerpt, Companions()
    programs = excerpt.score.programs
    for part in np.unique(others[:, 3]).astype(int):
        rows = others[others[:, 3] == part][:, [0, 1, 2, 4]]
        rows[:, 2] = np.clip(rows[:, 2] + shift, 21, 108)
        result.tracks.append((instruments.TIMGM, programs[part], False, _played(rng, performance, rows)))
        name = instruments.family(programs[part])
        if name and len(rows) >= 6:
            result.name(name)
    drums = [part for part, program in enumerate(programs) if program == DRUMS]
    rows = excerpt.notes(excerpt.score.notes) if drums else others[:0]
    rows = rows[np.isin(rows[:, 3].astype(int), drums)]
    if texture == "band" and len(rows) < FEWEST_DRUM_NOTES:
        raise UnsuitableError("the drums rest")
    if len(rows):
        result.drum_tracks.append(_drums(rng, performance, rows[:, [0, 1, 2, 4]]))
    return result


def consort(
    rng: np.random.Generator, performance: Performance, others: np.ndarray, shift: int, lead: Instrument
) -> Companions:
    """All other voices of a chorale or a movement on one instrument or group, another than the lead.

    Args:
      rng: the clip's generator.
      performance: how the clip is played.
      others: notes `[n, 5]` of the excerpt without the lead's.
      shift: semitones from the written to the clip's key.
      lead: the lead instrument.

    Raises:
      UnsuitableError: if the other voices rest.
    """
    choices = [player for player in instruments.CONSORTS if player.name != lead.name]
    player = choices[rng.integers(len(choices))]
    rows = others[:, [0, 1, 2, 4]]
    if len(rows) < FEWEST_NOTES:
        raise UnsuitableError("the other voices rest")
    rows[:, 2] += shift
    return Companions([_track(rng, performance, player, rows)], [], [player.words[0]])
