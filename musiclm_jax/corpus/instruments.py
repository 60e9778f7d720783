"""Lead and accompanying instruments: sound font, program, range and names.

Only programs that independent taggers recognize are leads, so that captions can be checked.
"""

import dataclasses

TIMGM = "TimGM6mb"
MUSESCORE = "MuseScore General"


@dataclasses.dataclass(frozen=True)
class Instrument:
    """An instrument, played by one or more sound font programs.

    Attributes:
      name: plain name, the `instrument` field of records.
      font: TIMGM or MUSESCORE.
      program: General MIDI program.
      low: lowest MIDI pitch that sounds well.
      high: highest MIDI pitch that sounds well.
      chords: whether it can play several notes at once.
      words: names for captions, with an article if they need one.
      alternatives: (font, program) of other programs for it.
    """

    name: str
    font: str
    program: int
    low: int
    high: int
    chords: bool
    words: tuple[str, ...]
    alternatives: tuple[tuple[str, int], ...] = ()

    @property
    def sounds(self) -> tuple[tuple[str, int], ...]:
        """(font, program) of every program for it."""
        return (self.font, self.program), *self.alternatives


LEADS = (
    Instrument("piano", TIMGM, 0, 48, 96, True, ("a piano", "the piano", "an acoustic piano")),
    Instrument("church organ", TIMGM, 19, 43, 88, True,
               ("a church organ", "a pipe organ", "the organ"), ((MUSESCORE, 19),)),
    Instrument("string ensemble", TIMGM, 48, 48, 91, True, ("a string ensemble", "strings", "a string section")),
    Instrument("choir", TIMGM, 52, 48, 81, True, ("a choir", "choral voices", "a wordless choir")),
    Instrument("trumpet", TIMGM, 56, 55, 84, False, ("a trumpet", "a solo trumpet", "the trumpet"), ((MUSESCORE, 56),)),
    Instrument("trombone", TIMGM, 57, 40, 70, False,
               ("a trombone", "the trombone", "a brass trombone"), ((MUSESCORE, 57),)),
    Instrument("flute", TIMGM, 73, 60, 93, False, ("a flute", "the flute", "a concert flute"), ((MUSESCORE, 73),)),
    Instrument("acoustic guitar", TIMGM, 25, 45, 81, True,
               ("an acoustic guitar", "a steel-string guitar", "a steel string acoustic guitar"), ((MUSESCORE, 25),)),
    Instrument("vibraphone", TIMGM, 11, 53, 89, True, ("a vibraphone", "vibes", "the vibraphone"), ((MUSESCORE, 11),)),
    Instrument("celesta", TIMGM, 8, 60, 100, True,
               ("a celesta", "the celesta", "a music-box-like celesta"), ((MUSESCORE, 8),)),
    Instrument("tubular bells", TIMGM, 14, 55, 84, False,
               ("tubular bells", "orchestral chimes", "church bells"), ((MUSESCORE, 14),)),
    Instrument("synth lead", TIMGM, 81, 52, 88, False,
               ("a synth lead", "a sawtooth synthesizer", "an electronic synth lead"), ((MUSESCORE, 81),)),
    Instrument("synth bass", TIMGM, 38, 29, 55, False,
               ("a synth bass", "a bass synthesizer", "an electronic bass synth"), ((MUSESCORE, 38),)),
    Instrument("steel drums", TIMGM, 114, 55, 88, False,
               ("steel drums", "a steel pan", "Caribbean steel drums"), ((MUSESCORE, 114),)),
    Instrument("harpsichord", MUSESCORE, 6, 48, 86, True,
               ("a harpsichord", "the harpsichord", "a plucked harpsichord"), ((TIMGM, 6),)),
    Instrument("fiddle", MUSESCORE, 40, 55, 91, False, ("a fiddle", "a violin", "the fiddle"), ((TIMGM, 40),)),
    Instrument("sitar", MUSESCORE, 104, 48, 77, False, ("a sitar", "the sitar", "an Indian sitar")),
    Instrument("banjo", MUSESCORE, 105, 50, 84, False, ("a banjo", "the banjo", "a plucked banjo"), ((TIMGM, 105),)),
    Instrument("bagpipe", MUSESCORE, 109, 55, 81, False, ("bagpipes", "a bagpipe", "the bagpipes")),
    Instrument("electric piano", MUSESCORE, 4, 48, 89, True,
               ("an electric piano", "a mellow electric piano", "electric keys"), ((TIMGM, 4),)),
)  # fmt: skip
BY_NAME = {instrument.name: instrument for instrument in LEADS}

# Accompaniment. Names follow "over" or "with" in captions.
CHORD_PLAYERS = (
    Instrument("piano chords", TIMGM, 0, 48, 72, True, ("piano chords",)),
    Instrument("guitar chords", MUSESCORE, 24, 48, 72, True, ("strummed guitar chords",), ((TIMGM, 24),)),
    Instrument("organ chords", TIMGM, 19, 48, 72, True, ("organ chords",), ((MUSESCORE, 19),)),
    Instrument("string chords", TIMGM, 48, 48, 72, True, ("string chords",)),
)
DRONE_PLAYERS = (
    Instrument("string drone", TIMGM, 48, 43, 67, True, ("a string drone",)),
    Instrument("organ drone", TIMGM, 19, 43, 67, True, ("an organ drone",)),
    Instrument("bagpipe drone", MUSESCORE, 109, 45, 67, True, ("a bagpipe drone",)),
)
# Groups that play all lower voices of a chorale or a quartet.
CONSORTS = tuple(BY_NAME[name] for name in ("string ensemble", "church organ", "piano", "choir", "harpsichord"))
ACOUSTIC_BASS = Instrument("acoustic bass", MUSESCORE, 32, 33, 50, False, ("an upright bass",), ((TIMGM, 32),))
ELECTRIC_BASS = Instrument("electric bass", MUSESCORE, 33, 31, 50, False, ("a bass guitar",), ((TIMGM, 33),))


def programs(font: str) -> set[int]:
    """Returns the programs of a font that the instruments here use; game music may use others."""
    everyone = (*LEADS, *CHORD_PLAYERS, *DRONE_PLAYERS, ACOUSTIC_BASS, ELECTRIC_BASS)
    return {program for player in everyone for own, program in player.sounds if own == font}


# Names of General MIDI program families, for the accompaniment in game music.
_FAMILIES = (
    (range(0, 4), "piano"), (range(4, 6), "electric piano"), (range(6, 8), "harpsichord"), (range(8, 16), "mallets"),
    (range(16, 24), "organ"), (range(24, 26), "acoustic guitar"), (range(26, 29), "electric guitar"),
    (range(29, 32), "distorted electric guitar"), (range(32, 38), "bass"), (range(38, 40), "synth bass"),
    (range(40, 46), "strings"), (range(46, 47), "harp"), (range(47, 48), "timpani"), (range(48, 52), "strings"),
    (range(52, 55), "choir"), (range(55, 56), "orchestra hits"), (range(56, 64), "brass"), (range(64, 72), "reeds"),
    (range(72, 80), "flute"), (range(80, 88), "synth lead"), (range(88, 104), "synth pads"),
)  # fmt: skip


def family(program: int) -> str:
    """Returns the name of a General MIDI program's family; "" for ethnic instruments, percussion and effects."""
    return next((name for programs, name in _FAMILIES if program in programs), "")
