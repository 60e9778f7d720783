"""Chooses what a clip plays and how: composition, lead, tempo, key, texture, loudness, room and, from these, the notes.

Every choice comes from the clip's own random generator. A clip depends on (seed, split, index) and the scores, not on
the order in which clips are generated.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from musiclm_jax.corpus import companions, excerpts, harmony, instruments, performance
from musiclm_jax.corpus.excerpts import CLIP_SECONDS, Excerpt, UnsuitableError
from musiclm_jax.corpus.instruments import Instrument
from musiclm_jax.corpus.rendering import ROOMS
from musiclm_jax.corpus.scores import DRUMS, TUNE_BOOKS, Score

TEXTURES = {"solo": 0.5, "drone and bass": 0.12, "with drums": 0.12, "ensemble": 0.13, "band": 0.13}
# Instrument x kind pairs that do not occur in the training and validation splits.
HELD_OUT_PAIRS = (
    ("banjo", "hornpipe"),
    ("trumpet", "jig"),
    ("vibraphone", "chorale"),
    ("flute", "reel"),
    ("sitar", "air"),
    ("church organ", "game music"),
)
HELD_OUT_SHARE = 0.2  # of the test split
# Sampling weight of each kind, among the kinds that suit the texture.
_KIND_WEIGHTS = {
    "jig": 1.0, "slip jig": 0.5, "reel": 1.0, "hornpipe": 0.9, "clog dance": 0.3, "strathspey": 0.6,
    "highland fling": 0.2, "air": 0.8, "waltz": 0.4, "march": 0.5, "dance tune": 0.2, "folk tune": 0.8,
    "minuet": 0.3, "gavotte": 0.1, "walkaround": 0.1, "chorale": 1.2, "string quartet movement": 1.0,
    "sonata movement": 0.15, "ragtime": 0.25, "game music": 1.6, "polonaise": 0.15, "mazurka": 0.08,
    "art song": 0.15, "opera aria": 0.12, "piano trio movement": 0.1, "trio sonata movement": 0.08,
    "concertino": 0.08, "song": 0.12, "hymn": 0.08,
}  # fmt: skip
# bpm by tempo class; the gaps keep the classes distinct. Fast tunes in compound meters have a lower limit.
TEMPI = {"slow": (54.0, 76.0), "moderate": (84.0, 110.0), "fast": (122.0, 176.0)}
FASTEST_COMPOUND = 145.0
TEMPO_LIMITS = (80.0, 116.0)  # bpm below the first is slow, above the second is fast
_SLOW_KINDS = ("air", "chorale", "hymn", "art song", "opera aria")
GAIN_DB = (-10.0, 4.0)
MIN_LEAD_SHARE = 0.55  # minimum share of the music's time in which the lead sounds
FEWEST_NOTES = 8  # per excerpt


@dataclasses.dataclass
class Arrangement:
    """The musical content of one clip.

    Attributes:
      score: the composition.
      lead: the lead instrument.
      texture: one of TEXTURES.
      voices: "single line" if the lead plays one note at a time, "in harmony" if it plays several.
      companions: the other instruments, in words for captions ("piano chords").
      key: such as "G major".
      mode: "major", "minor" or "mixolydian" if it is certain, else "".
      bpm: beats per minute.
      tempo: "slow", "moderate" or "fast".
      gain_db: intended loudness in dB relative to the nominal level.
      room: one of ROOMS.
      lead_tracks, other_tracks, drum_tracks: tracks for Renderer.stem.
      levels_db: levels of the three stems in the mix, in dB.
      preroll: seconds to cut from the beginning.
      piece: part of the piece that is heard: its "start" after silence, its "middle", or its "end" followed by silence.
      pitch_class: int `[250]` at 25 Hz, pitch class of the lead's highest note; -1 in rests.
    """

    score: Score
    lead: Instrument
    texture: str
    voices: str
    companions: list[str]
    key: str
    mode: str
    bpm: float
    tempo: str
    gain_db: float
    room: str
    lead_tracks: list
    other_tracks: list
    drum_tracks: list
    levels_db: tuple[float, float, float]
    preroll: float
    piece: str
    pitch_class: np.ndarray


def held_out(lead: str, kind: str) -> bool:
    """Returns whether an instrument x kind pair is reserved for the test split."""
    return (lead, kind) in HELD_OUT_PAIRS


# Cache of suitable_kinds, with its input: sorting thousands of scores for each clip would take as long as its reverb.
_suitable: dict[tuple[int, int, str], tuple[list[Score], dict[str, list[Score]]]] = {}


def suitable_kinds(texture: str, scores: list[Score]) -> dict[str, list[Score]]:
    """Returns the scores that can be played in a texture, by kind."""
    key = (id(scores), len(scores), texture)
    if key in _suitable:  # the entry holds the list, so that its id is not reused
        return _suitable[key][1]
    by_kind: dict[str, list[Score]] = {}
    for score in scores:
        if score.source in TUNE_BOOKS:
            suits = True
        elif score.kind == "game music":
            suits = texture == ("band" if DRUMS in score.programs else "ensemble")
        else:
            suits = texture == "solo" or (texture == "ensemble" and len(score.programs) > 1)
        if suits:
            by_kind.setdefault(score.kind, []).append(score)
    _suitable[key] = scores, by_kind
    return by_kind


def choose(
    rng: np.random.Generator, scores: list[Score], test: bool, lead: Instrument
) -> tuple[Score, str, Instrument]:
    """Draws composition and texture for a lead instrument; in the test split, some clips are held-out pairs.

    Args:
      rng: the clip's generator.
      scores: the split's scores.
      test: whether held-out pairs are allowed.
      lead: scheduled instrument; replaced if a held-out pair is drawn.

    Returns:
      (score, texture, lead instrument).
    """
    if test and rng.random() < HELD_OUT_SHARE:
        name, kind = HELD_OUT_PAIRS[rng.integers(len(HELD_OUT_PAIRS))]
        found = [(s, t) for t in TEXTURES for s in suitable_kinds(t, scores).get(kind, [])]
        if found:
            score, texture = found[rng.integers(len(found))]
            return score, texture, instruments.BY_NAME[name]
    texture = str(rng.choice(list(TEXTURES), p=np.array(list(TEXTURES.values()))))
    by_kind = suitable_kinds(texture, scores)
    kinds = [kind for kind in sorted(by_kind) if test or not held_out(lead.name, kind)]
    weights = np.array([_KIND_WEIGHTS[kind] for kind in kinds])
    if texture == "band":
        weights[[kind == "game music" for kind in kinds]] *= 4.0  # prefer real bands to arranged tunes
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    return by_kind[kind][rng.integers(len(by_kind[kind]))], texture, lead


def _tempo(rng: np.random.Generator, score: Score) -> float:
    """Draws the bpm of a performance."""
    if score.bpm:
        return float(score.bpm * rng.uniform(0.85, 1.15))
    shares = (0.45, 0.4, 0.15) if score.kind in _SLOW_KINDS else (0.2, 0.35, 0.45)
    name = str(rng.choice(list(TEMPI), p=shares))
    low, high = TEMPI[name]
    if harmony.is_compound(score.meter):
        high = min(high, FASTEST_COMPOUND)
    return float(np.round(rng.uniform(low, high), 1))


def _tempo_class(bpm: float) -> str:
    return "slow" if bpm < TEMPO_LIMITS[0] else "fast" if bpm > TEMPO_LIMITS[1] else "moderate"


def _lead_part(score: Score, notes: np.ndarray) -> int:
    """Returns the part with the melody: the first one in scores; in MIDI, a high and busy part that is not a bass."""
    if score.kind != "game music":
        return int(notes[np.argmin(notes[:, 3]), 3])
    best, chosen = -np.inf, None
    for part in np.unique(notes[:, 3]).astype(int):
        program, rows = score.programs[part], notes[notes[:, 3] == part]
        if program == DRUMS or program in range(32, 40) or len(rows) < 8:
            continue
        onsets = len(np.unique(np.round(rows[:, 0], 2)))
        # Melodies are high, busy, and rarely chords.
        merit = np.median(rows[:, 2]) / 12 + min(onsets, 40) / 20 - 2.0 * (len(rows) / onsets - 1)
        if merit > best:
            best, chosen = merit, part
    if chosen is None:
        raise UnsuitableError("no part has a melody here")
    return chosen


def _octave(notes: np.ndarray, lead: Instrument, shift: int) -> int:
    """Returns `shift` plus the octaves that move most notes into the instrument's range, and closest to its middle."""
    pitches = notes[:, 2]

    def cost(octaves: int) -> tuple[int, float]:
        moved = pitches + shift + 12 * octaves
        outside = int(((moved < lead.low) | (moved > lead.high)).sum())
        return outside, abs(float(np.median(moved)) - 0.5 * (lead.low + lead.high))

    return shift + 12 * min(range(-4, 5), key=cost)


def lead_pitch_class(notes: np.ndarray, preroll: float) -> np.ndarray:
    """Returns the pitch class `[250]` of the highest note per 25 Hz frame, -1 in rests; notes `[n, 4]` in seconds."""
    times = (np.arange(round(CLIP_SECONDS * 25)) + 0.5) / 25 + preroll
    sounding = (notes[None, :, 0] <= times[:, None]) & (notes[None, :, 1] > times[:, None])
    top = np.where(sounding, notes[None, :, 2], -1.0).max(axis=1, initial=-1.0).astype(int)
    return np.where(top >= 0, top % 12, -1)


class Key(NamedTuple):
    """The key of a performance.

    Attributes:
      shift: semitones from the written key to this one.
      tonic: pitch class, 0 to 11.
      mode: "major", "minor" or another notated mode.
      known_mode: the mode again if it is certain, else "".
    """

    shift: int
    tonic: int
    mode: str
    known_mode: str


def _key(rng: np.random.Generator, score: Score, notes: np.ndarray) -> Key:
    """Draws the key of a performance.

    A major or minor mode is certain if the notation, the whole piece and the excerpt agree on it.

    Args:
      rng: the clip's generator.
      score: the composition.
      notes: notes of the excerpt, `[n, 5]`.
    """
    whole = harmony.find_key(excerpts.pitched(score))
    tonic, mode = (score.tonic, score.mode) if score.tonic >= 0 else whole
    if score.tonic >= 0 and mode not in ("major", "minor"):
        known_mode = mode if mode == "mixolydian" else ""
    else:
        known_mode = mode if harmony.find_key(notes) == (tonic, mode) == whole else ""
    shift = int(rng.integers(-5, 7))
    return Key(shift, (tonic + shift) % 12, mode, known_mode)


def _lead_melody(
    rng: np.random.Generator, score: Score, notes: np.ndarray, texture: str, lead: Instrument
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the lead's notes, the other parts' notes (both `[n, 5]`), and "single line" or "in harmony"."""
    part = _lead_part(score, notes)
    melody, others = notes[notes[:, 3] == part], notes[notes[:, 3] != part]
    if score.source not in TUNE_BOOKS and texture == "solo" and lead.chords and rng.random() < 0.65:
        return notes, others, "in harmony"
    if score.kind != "game music":
        # One voice plays one note at a time: keep the highest note of double stops.
        order = np.lexsort((-melody[:, 2], np.round(melody[:, 0], 2)))
        melody = melody[order][np.unique(np.round(melody[order, 0], 2), return_index=True)[1]]
    return melody, others, "single line"


def _lead_track(
    rng: np.random.Generator, played: performance.Performance, melody: np.ndarray, lead: Instrument, shift: int
) -> companions.Track:
    """Returns the lead's track: its notes, transposed by `shift` semitones and octaves into its range, with a sound."""
    rows = melody[:, [0, 1, 2, 4]]
    rows[:, 2] = np.clip(rows[:, 2] + _octave(melody, lead, shift), 21, 108)
    rows[:, 3] = played.lead_velocities(rows[:, 0])
    font, program = companions.sound(rng, lead)
    return font, program, False, played.play(rng, rows)


def _companions(
    rng: np.random.Generator,
    played: performance.Performance,
    melody: np.ndarray,
    others: np.ndarray,
    key: Key,
    texture: str,
    lead: Instrument,
) -> companions.Companions:
    """Draws the lead's companions: the other parts of game music and scores, or rule-based accompaniment for tunes.

    Args:
      rng: the clip's generator.
      played: how the clip is played.
      melody: the lead's notes of the excerpt, `[n, 5]` in the written key.
      others: the other parts' notes of the excerpt, `[n, 5]` in the written key.
      key: key of the performance.
      texture: one of TEXTURES.
      lead: the lead instrument.

    Raises:
      UnsuitableError: if parts that the texture needs rest.
    """
    score = played.excerpt.score
    if texture == "solo":
        return companions.Companions()
    if score.kind == "game music":
        return companions.accompany_game_music(rng, played, others, key.shift, texture)
    if score.source not in TUNE_BOOKS:
        return companions.consort(rng, played, others, key.shift, lead)
    moved = melody.copy()
    moved[:, 2] += key.shift
    return companions.accompany_tune(rng, played, moved, key.tonic, key.mode, texture)


def _levels_db(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draws the levels in the mix, in dB, of the lead, the other instruments and the drums."""
    others_below, drums_below = float(rng.uniform(5.0, 10.0)), float(rng.uniform(5.0, 9.0))
    return -20.0, -20.0 - others_below, -20.0 - drums_below


def _check_lead(excerpt: Excerpt, pitch_class: np.ndarray) -> None:
    """Raises UnsuitableError if the lead rests for too long."""
    if np.mean(pitch_class >= 0) < MIN_LEAD_SHARE * excerpt.music_seconds / CLIP_SECONDS:
        raise UnsuitableError("the lead rests too long")


def arrange(rng: np.random.Generator, score: Score, texture: str, lead: Instrument) -> Arrangement:
    """Draws a performance and its notes.

    Raises:
      UnsuitableError: if the drawn passage is unsuitable for a clip.
    """
    bpm = _tempo(rng, score)
    excerpt = excerpts.draw(rng, score, bpm)
    notes = excerpt.notes(excerpts.pitched(score))
    if len(notes) < FEWEST_NOTES:
        raise UnsuitableError(f"fewer than {FEWEST_NOTES} notes")
    key = _key(rng, score, notes)
    played = performance.draw(rng, excerpt, texture in ("with drums", "band"))
    melody, others, voices = _lead_melody(rng, score, notes, texture, lead)
    beside = _companions(rng, played, melody, others, key, texture, lead)
    lead_track = _lead_track(rng, played, melody, lead, key.shift)
    pitch_class = lead_pitch_class(lead_track[3], excerpt.preroll)
    _check_lead(excerpt, pitch_class)
    levels_db = _levels_db(rng)
    return Arrangement(
        score=score,
        lead=lead,
        texture=texture,
        voices=voices,
        companions=beside.words,
        key=harmony.key_name(key.tonic, key.mode),
        mode=key.known_mode,
        bpm=bpm,
        tempo=_tempo_class(bpm),
        gain_db=float(rng.uniform(*GAIN_DB)),
        room=str(rng.choice(list(ROOMS), p=(0.45, 0.35, 0.2))),
        lead_tracks=[lead_track],
        other_tracks=[track for track in beside.tracks if len(track[3])],
        drum_tracks=[track for track in beside.drum_tracks if len(track[3])],
        levels_db=levels_db,
        preroll=excerpt.preroll,
        piece=excerpt.piece,
        pitch_class=pitch_class,
    )
