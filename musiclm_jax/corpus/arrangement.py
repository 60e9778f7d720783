"""Chooses what one clip plays and how: composition, lead instrument, tempo, key, texture, loudness, room; then the
notes.

Every choice comes from the clip's own random generator, so a clip depends on (seed, split, index) and on the
scores, never on the order in which clips are made.
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus import harmony, instruments
from musiclm_jax.corpus.instruments import Instrument
from musiclm_jax.corpus.rendering import ROOMS
from musiclm_jax.corpus.scores import DRUMS, TUNE_BOOKS, Score

CLIP_SECONDS = 10.0
PREROLL_SECONDS = 1.0  # rendered before the clip and cut, so that half of the clips begin in the middle of the music
TEXTURES = {"solo": 0.45, "drone and bass": 0.13, "with drums": 0.13, "ensemble": 0.14, "band": 0.15}
# Instrument x kind pairs that never meet in the training or validation split.
HELD_OUT_PAIRS = (
    ("banjo", "hornpipe"),
    ("trumpet", "jig"),
    ("vibraphone", "chorale"),
    ("flute", "reel"),
    ("sitar", "air"),
    ("church organ", "game music"),
)
HELD_OUT_SHARE = 0.2  # of the test split
# How often a kind is drawn before texture is considered; kinds not named share the weight of their compositions.
_KIND_WEIGHTS = {
    "jig": 1.0, "slip jig": 0.5, "reel": 1.0, "hornpipe": 0.9, "clog dance": 0.3, "strathspey": 0.6,
    "highland fling": 0.2, "air": 0.8, "waltz": 0.4, "march": 0.5, "dance tune": 0.2, "folk tune": 0.8,
    "minuet": 0.3, "gavotte": 0.1, "walkaround": 0.1, "chorale": 1.2, "string quartet movement": 1.0,
    "sonata movement": 0.15, "ragtime": 0.25, "game music": 1.6, "polonaise": 0.15, "mazurka": 0.08,
    "art song": 0.15, "opera aria": 0.12, "piano trio movement": 0.1, "trio sonata movement": 0.08,
    "concertino": 0.08, "song": 0.12, "hymn": 0.08,
}  # fmt: skip
# bpm per tempo class; the gaps keep the words apart. Fast compound metres stay below breathless.
TEMPI = {"slow": (54.0, 76.0), "moderate": (84.0, 110.0), "fast": (122.0, 176.0)}
FASTEST_COMPOUND = 145.0
TEMPO_LIMITS = (80.0, 116.0)  # bpm below the first is slow, above the second fast
_SLOW_KINDS = ("air", "chorale", "hymn", "art song", "opera aria")
GAIN_DB = (-10.0, 4.0)
MIN_LEAD_SHARE = 0.55  # of the clip's time in which the lead must sound


class UnsuitableError(ValueError):
    """This passage does not make a clip (rests, range); the caller draws again."""


@dataclasses.dataclass
class Arrangement:
    """What one clip plays.

    Attributes:
      score: the composition.
      lead: the lead instrument.
      texture: one of TEXTURES.
      voices: "single line" or "in harmony": how many notes the lead plays at once.
      companions: what is heard beside the lead, in words for captions ("piano chords").
      key: "G major".
      mode: "major", "minor" or "mixolydian" where it is beyond doubt, else "".
      bpm: beats per minute.
      tempo: "slow", "moderate" or "fast".
      gain_db: loudness asked for, against the nominal level.
      room: one of ROOMS.
      lead_tracks, other_tracks, drum_tracks: tracks for Renderer.stem.
      levels_db: levels of the three stems in the mix, in dB.
      preroll: seconds to cut from the beginning.
      pitch_class: int `[250]` at 25 Hz of the lead's highest note, -1 in rests.
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
    pitch_class: np.ndarray


def held_out(lead: str, kind: str) -> bool:
    """Whether an instrument x kind pair is kept for the test split."""
    return (lead, kind) in HELD_OUT_PAIRS


def suitable_kinds(texture: str, scores: list[Score]) -> dict[str, list[Score]]:
    """Scores by kind that can be played in a texture."""
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
    return by_kind


def choose(
    rng: np.random.Generator, scores: list[Score], test: bool, lead: Instrument
) -> tuple[Score, str, Instrument]:
    """Draws composition and texture for a lead instrument; in the test split a share of clips is drawn from the
    held-out pairs.

    Args:
      rng: the clip's generator.
      scores: the split's scores.
      test: whether held-out pairs are allowed.
      lead: instrument that is due; replaced where a held-out pair is drawn.

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
        weights[[kind == "game music" for kind in kinds]] *= 4.0  # real bands before arranged tunes
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    return by_kind[kind][rng.integers(len(by_kind[kind]))], texture, lead


def _tempo(rng: np.random.Generator, score: Score) -> float:
    """bpm of a performance."""
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


def _window(notes: np.ndarray, start: float, end: float, period: float) -> np.ndarray:
    """Notes `[n, 5]` whose onset lies in [start, end) quarters, of a piece that repeats after `period`."""
    copies = []
    for turn in range(int(start // period), int(end // period) + 1):
        copy = notes.copy()
        copy[:, 0] += turn * period
        copies.append(copy)
    notes = np.concatenate(copies)
    notes = notes[(notes[:, 0] >= start - 1e-4) & (notes[:, 0] < end)]
    return notes[np.argsort(notes[:, 0], kind="stable")]


def _lead_part(score: Score, notes: np.ndarray) -> int:
    """The part that carries the tune: the first in scores; in MIDI the highest busy part that is not a bass."""
    if score.kind != "game music":
        return int(notes[np.argmin(notes[:, 3]), 3])
    best, chosen = -np.inf, None
    for part in np.unique(notes[:, 3]).astype(int):
        program, rows = score.programs[part], notes[notes[:, 3] == part]
        if program == DRUMS or program in range(32, 40) or len(rows) < 8:
            continue
        onsets = len(np.unique(np.round(rows[:, 0], 2)))
        # Tunes are high, busy, and rarely chords.
        merit = np.median(rows[:, 2]) / 12 + min(onsets, 40) / 20 - 2.0 * (len(rows) / onsets - 1)
        if merit > best:
            best, chosen = merit, part
    if chosen is None:
        raise UnsuitableError("no part carries a tune here")
    return chosen


def _octave(notes: np.ndarray, lead: Instrument, shift: int) -> int:
    """`shift` plus the octaves that bring most notes into the instrument's range, then nearest to its middle."""
    pitches = notes[:, 2]

    def cost(octaves: int) -> tuple[int, float]:
        moved = pitches + shift + 12 * octaves
        outside = int(((moved < lead.low) | (moved > lead.high)).sum())
        return outside, abs(float(np.median(moved)) - 0.5 * (lead.low + lead.high))

    return shift + 12 * min(range(-4, 5), key=cost)


def _seconds(
    rng: np.random.Generator, notes: np.ndarray, start: float, per_quarter: float, offset: float
) -> np.ndarray:
    """Turns (onset, duration, pitch, velocity) in quarters into (start, end, pitch, velocity) in seconds, unevenly."""
    if not len(notes):
        return np.zeros((0, 4), np.float32)
    onset = (notes[:, 0] - start) * per_quarter + offset
    end = onset + np.maximum(notes[:, 1] * per_quarter * 0.95, 0.05)
    onset = np.maximum(onset + rng.normal(0.0, 0.006, len(notes)), 0.0)
    velocity = np.clip(notes[:, 3] + rng.normal(0.0, 6.0, len(notes)), 25, 127)
    result = np.stack([onset, np.maximum(end, onset + 0.03), notes[:, 2], velocity], axis=1)
    # A key that is struck again is released first: the synthesizer's note-off would end both.
    for pitch in np.unique(result[:, 2]):
        same = np.flatnonzero(result[:, 2] == pitch)
        same = same[np.argsort(result[same, 0], kind="stable")]
        result[same[:-1], 1] = np.minimum(result[same[:-1], 1], result[same[1:], 0] - 0.005)
    return result[result[:, 1] > result[:, 0]].astype(np.float32)


def lead_pitch_class(notes: np.ndarray, preroll: float) -> np.ndarray:
    """Pitch class `[250]` of the highest sounding note of `[n, 4]` (in seconds) per 25 Hz frame, -1 in rests."""
    times = (np.arange(round(CLIP_SECONDS * 25)) + 0.5) / 25 + preroll
    sounding = (notes[None, :, 0] <= times[:, None]) & (notes[None, :, 1] > times[:, None])
    top = np.where(sounding, notes[None, :, 2], -1.0).max(axis=1, initial=-1.0).astype(int)
    return np.where(top >= 0, top % 12, -1)


def _mode(score: Score, window: np.ndarray, tonic: int, mode: str) -> str:
    """The mode, where the notation, the whole piece and the passage agree on it; else ""."""
    if score.tonic >= 0 and score.mode not in ("major", "minor"):
        return score.mode if score.mode == "mixolydian" else ""
    found = harmony.find_key(window)
    return mode if found == (tonic, mode) and harmony.find_key(score.notes) == found else ""


def _pitched(score: Score, notes: np.ndarray) -> np.ndarray:
    drums = [part for part, program in enumerate(score.programs) if program == DRUMS]
    return notes[~np.isin(notes[:, 3].astype(int), drums)]


def arrange(rng: np.random.Generator, score: Score, texture: str, lead: Instrument) -> Arrangement:
    """Draws the performance and writes out its notes.

    Raises:
      UnsuitableError: if the passage drawn does not make a clip.
    """
    bpm = _tempo(rng, score)
    beat = harmony.beat_quarters(score.meter) if not score.bpm else 1.0
    per_quarter = 60.0 / bpm / beat
    needed = CLIP_SECONDS / per_quarter
    period = max(np.ceil((score.quarters - score.pickup) / score.bar - 1e-3), 1.0) * score.bar
    bars = max(int((period - needed) / score.bar), 0)
    start = score.pickup + score.bar * int(rng.integers(bars + 1))
    preroll, offset = 0.0, float(rng.uniform(0.0, 0.2))
    if rng.random() < 0.5:
        preroll = PREROLL_SECONDS
        start, offset = start + float(rng.uniform(0.0, score.bar)), 0.0
    end = start + (CLIP_SECONDS + preroll) / per_quarter
    pitched = _window(_pitched(score, score.notes), start, end, period)
    if len(pitched) < 8:
        raise UnsuitableError("fewer than eight notes")
    whole_tonic, whole_mode = harmony.find_key(_pitched(score, score.notes))
    tonic, mode = (score.tonic, score.mode) if score.tonic >= 0 else (whole_tonic, whole_mode)
    shift = int(rng.integers(-5, 7))
    known_mode = _mode(dataclasses.replace(score, notes=_pitched(score, score.notes)), pitched, tonic, mode)

    part = _lead_part(score, pitched)
    melody = pitched[pitched[:, 3] == part]
    others = pitched[pitched[:, 3] != part]
    voices, companions, other_tracks, drum_tracks = "single line", [], [], []
    tune = score.source in TUNE_BOOKS

    def track(instrument: Instrument, rows: np.ndarray) -> tuple:
        return instrument.font, instrument.program, False, _seconds(rng, rows, start, per_quarter, offset)

    if not tune and texture == "solo" and lead.chords and rng.random() < 0.65:
        melody, voices = pitched, "in harmony"
    elif score.kind != "game music":
        # One voice plays one note at a time: of double stops the highest stays.
        order = np.lexsort((-melody[:, 2], np.round(melody[:, 0], 2)))
        melody = melody[order][np.unique(np.round(melody[order, 0], 2), return_index=True)[1]]
    move = _octave(melody, lead, shift)
    lead_rows = melody[:, [0, 1, 2, 4]].copy()
    lead_rows[:, 2] = np.clip(lead_rows[:, 2] + move, 21, 108)
    on_beat = np.abs((lead_rows[:, 0] - score.pickup) / beat - np.round((lead_rows[:, 0] - score.pickup) / beat)) < 0.02
    lead_rows[:, 3] = np.where(on_beat, 104, 92)
    key_tonic = (tonic + shift) % 12

    if tune and texture != "solo":
        first = score.pickup + np.floor((start - score.pickup) / score.bar) * score.bar
        step = score.bar / 2 if score.meter[0] % 4 == 0 or score.meter == (2, 2) or score.meter[0] == 12 else score.bar
        moved = melody.copy()
        moved[:, 2] += shift
        progression = harmony.chords(moved, key_tonic, mode, first, end, step)

        def clip(rows: np.ndarray) -> np.ndarray:
            return rows[rows[:, 0] >= start - 1e-4] if preroll == 0 else rows

        if texture in ("with drums", "band"):
            beats = harmony.drum_pattern(score.meter, first, end, int(rng.integers(3)))
            drum_tracks = [(instruments.TIMGM, 0, True, _seconds(rng, clip(beats), start, per_quarter, offset))]
        if texture == "drone and bass":
            player = instruments.DRONE_PLAYERS[rng.integers(len(instruments.DRONE_PLAYERS))]
            held = harmony.drone(key_tonic, first, end, 2 * score.bar, player.low)
            other_tracks = [track(player, clip(held))]
            companions = [*player.words, *instruments.ACOUSTIC_BASS.words]
        if texture in ("ensemble", "band"):
            player = instruments.CHORD_PLAYERS[rng.integers(len(instruments.CHORD_PLAYERS))]
            sustains = player.name in ("organ chords", "string chords")
            pattern = "held" if sustains else str(rng.choice(["beats", "offbeats", "held"]))
            other_tracks = [track(player, clip(harmony.chord_part(progression, step, beat, player.low, pattern)))]
            companions = [*player.words]
        if texture != "with drums":
            bass = instruments.ELECTRIC_BASS if texture == "band" else instruments.ACOUSTIC_BASS
            line = harmony.bass_line(progression, step, beat if texture == "band" else step, bass.low)
            other_tracks.append(track(bass, clip(line)))
            companions += [] if bass.words[0] in companions else bass.words
    elif score.kind == "game music":
        for other in np.unique(others[:, 3]).astype(int):
            rows = others[others[:, 3] == other][:, [0, 1, 2, 4]].copy()
            rows[:, 2] = np.clip(rows[:, 2] + shift, 21, 108)
            other_tracks.append((instruments.TIMGM, score.programs[other], False,
                                 _seconds(rng, rows, start, per_quarter, offset)))  # fmt: skip
            name = instruments.family(score.programs[other])
            companions += [name] if name and name not in companions and len(rows) >= 6 else []
        drums = _window(score.notes, start, end, period)
        drums = drums[[score.programs[int(p)] == DRUMS for p in drums[:, 3]]]
        if texture == "band" and len(drums) < 12:
            raise UnsuitableError("the drums rest")
        if len(drums):
            drum_tracks = [(instruments.TIMGM, 0, True,
                            _seconds(rng, drums[:, [0, 1, 2, 4]], start, per_quarter, offset))]  # fmt: skip
    elif texture == "ensemble":
        choices = [player for player in instruments.CONSORTS if player.name != lead.name]
        consort = choices[rng.integers(len(choices))]
        rows = others[:, [0, 1, 2, 4]].copy()
        if len(rows) < 8:
            raise UnsuitableError("the other voices rest")
        rows[:, 2] += shift
        other_tracks, companions = [track(consort, rows)], [consort.words[0]]

    lead_notes = _seconds(rng, lead_rows, start, per_quarter, offset)
    pitch_class = lead_pitch_class(lead_notes, preroll)
    if np.mean(pitch_class >= 0) < MIN_LEAD_SHARE:
        raise UnsuitableError("the lead rests too long")
    below = float(rng.uniform(5.0, 10.0))
    return Arrangement(
        score=score,
        lead=lead,
        texture=texture,
        voices=voices,
        companions=companions,
        key=harmony.key_name(key_tonic, mode),
        mode=known_mode,
        bpm=bpm,
        tempo=_tempo_class(bpm),
        gain_db=float(rng.uniform(*GAIN_DB)),
        room=str(rng.choice(list(ROOMS), p=(0.45, 0.35, 0.2))),
        lead_tracks=[(lead.font, lead.program, False, lead_notes)],
        other_tracks=[t for t in other_tracks if len(t[3])],
        drum_tracks=[t for t in drum_tracks if len(t[3])],
        levels_db=(-20.0, -20.0 - below, -20.0 - float(rng.uniform(5.0, 9.0))),
        preroll=preroll,
        pitch_class=pitch_class,
    )
