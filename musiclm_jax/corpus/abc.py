"""Parses tunes in ABC notation: title, kind, meter, key and the notes of the first voice.

Covers the notation of the three tune books used here (ABC 1.6 to 2.0: accidentals, ties, tuplets, broken rhythm,
chords, changes of key and unit length). Grace notes and ornaments are ignored, repeats are played once.
Source: the ABC music standard 2.1, https://abcnotation.com/wiki/abc:standard:v2.1.
"""

import dataclasses
import re
from fractions import Fraction

_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SHARP_ORDER = "FCGDAEB"
_FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
# Sharps that a mode has more (or fewer, if negative) than major on the same tonic.
_MODE_FIFTHS = {"major": 0, "minor": -3, "mixolydian": -1, "dorian": -2, "phrygian": -4, "lydian": 1, "locrian": -5}
_MODE_WORDS = {
    "": "major",
    "maj": "major",
    "ion": "major",
    "m": "minor",
    "min": "minor",
    "aeo": "minor",
    "mix": "mixolydian",
    "dor": "dorian",
    "phr": "phrygian",
    "lyd": "lydian",
    "loc": "locrian",
}
# (3 means three notes in the time of two: default time of tuplets without an explicit count.
_TUPLETS = {2: 3, 3: 2, 4: 3, 5: 2, 6: 2, 7: 2, 8: 3, 9: 2}
_TOKEN = re.compile(
    r"""(?P<inline>\[[A-Za-z]:[^\]]*\])|(?P<skip>"[^"]*"|![^!]*!|\{[^}]*\})
    |(?P<bar>\[?\|[|\]:]*|:+\|?[|\]]*|\|\])
    |\((?P<p>\d)(?::(?P<q>\d?))?(?::(?P<r>\d?))?
    |(?P<chord>\[(?=[^\]|:]*[A-Ga-g]))|(?P<endchord>\](?P<clen>\d*/*\d*))
    |(?P<acc>\^{1,2}|_{1,2}|=)?(?P<note>[A-Ga-gzx])(?P<octave>[,']*)(?P<len>\d*/*\d*)
    |(?P<tie>-)|(?P<broken>[<>]+)""",
    re.VERBOSE,
)


@dataclasses.dataclass
class Tune:
    """One tune as printed in the book.

    Attributes:
      number: the X: field.
      title: the first T: field.
      rhythm: the R: field in lower case, or "".
      meter: (numerator, denominator).
      tonic: pitch class of the key.
      mode: name of the mode ("major", "dorian", ...).
      notes: (onset, duration, MIDI pitch), times in quarter notes.
      bars: onsets of the bar lines, in quarter notes.
    """

    number: str
    title: str
    rhythm: str
    meter: tuple[int, int]
    tonic: int
    mode: str
    notes: list[tuple[float, float, int]]
    bars: list[float]


def parse_length(text: str) -> Fraction:
    """Parses a note length ("", "2", "/", "3/2", "//") to a multiple of the unit length."""
    head, slash, tail = text.partition("/")
    value = Fraction(int(head) if head else 1)
    if slash:
        extra = tail.count("/")
        digits = tail.replace("/", "")
        value /= int(digits) if digits else 2 ** (1 + extra)
    return value


def parse_key(text: str) -> tuple[int, str, dict[str, int]]:
    """Parses a K: field to (tonic pitch class, mode, {letter: -1 | 1} for the key signature).

    Raises:
      ValueError: if the field is not a key.
    """
    text = text.strip()
    if text.lower().startswith("hp"):  # Highland pipes: A mixolydian in all but name
        text = "Amix"
    match = re.match(r"([A-G])([#b]?)\s*([A-Za-z]*)", text)
    mode = _MODE_WORDS.get(match.group(3).lower()[:3]) if match else None
    if not match or mode is None:
        raise ValueError(f"key field {text!r}: expected a tonic and a mode, as in 'Am' or 'D mixolydian'")
    letter, accidental = match.group(1), {"#": 1, "b": -1, "": 0}[match.group(2)]
    fifths = _FIFTHS[letter] + 7 * accidental + _MODE_FIFTHS[mode]
    order = _SHARP_ORDER[:fifths] if fifths > 0 else _SHARP_ORDER[::-1][: -fifths or 0] if fifths < 0 else ""
    signature = {step: (1 if fifths > 0 else -1) for step in order}
    return (_STEPS[letter] + accidental) % 12, mode, signature


def parse_meter(text: str) -> tuple[int, int]:
    """Parses an M: field to (numerator, denominator); C is 4/4, C| is 2/2."""
    text = text.split("%")[0].strip()
    if text.startswith("C"):
        return (2, 2) if "|" in text else (4, 4)
    match = re.match(r"(\d+)/(\d+)", text)
    if not match:
        raise ValueError(f"meter field {text!r}: expected C, C| or a fraction")
    return int(match.group(1)), int(match.group(2))


class _Body:
    """State while parsing a tune's body."""

    def __init__(self, unit: Fraction, signature: dict[str, int]):
        self.unit, self.signature = unit, signature
        self.accidentals: dict[tuple[str, int], int] = {}
        self.notes: list[list] = []
        self.bars: list[float] = []
        self.time = Fraction(0)
        self.tuplet_left, self.tuplet_scale = 0, Fraction(1)
        self.broken = Fraction(1)  # factor from a broken rhythm sign for the next note's length
        self.last: list[int] = []  # indices of the latest note or chord, for ties and broken rhythm
        self.last_start = Fraction(0)
        self.tied: set[int] = set()
        self.chord: list[tuple[int, Fraction]] | None = None

    def pitch(self, match: re.Match) -> int:
        letter = match["note"]
        octave = 5 if letter.isupper() else 6
        octave += match["octave"].count("'") - match["octave"].count(",")
        step = letter.upper()
        if match["acc"]:
            sign = {"^": 1, "_": -1, "=": 0}[match["acc"][0]] * len(match["acc"])
            self.accidentals[step, octave] = sign
        alter = self.accidentals.get((step, octave), self.signature.get(step, 0))
        return 12 * octave + _STEPS[step] + alter

    def add(self, pitches: list[int], length: Fraction) -> None:
        length = length * self.unit * 4 * self.broken
        self.broken = Fraction(1)
        if self.tuplet_left:
            length *= self.tuplet_scale
            self.tuplet_left -= 1
        self.last_start, held = self.time, []
        for pitch in pitches:
            tied = next((i for i in self.tied if self.notes[i][2] == pitch), None)
            if tied is None:
                self.notes.append([self.time, length, pitch])
                held.append(len(self.notes) - 1)
            else:
                self.notes[tied][1] += length
                held.append(tied)
        self.last, self.tied = held, set()
        self.time += length

    def apply_broken(self, signs: str) -> None:
        short = Fraction(1, 2 ** len(signs))
        previous, following = (2 - short, short) if signs[0] == ">" else (short, 2 - short)
        change = (self.time - self.last_start) * (previous - 1)
        for index in self.last:
            self.notes[index][1] += change
        self.time += change
        self.broken = following

    def walk(self, line: str) -> None:
        for match in _TOKEN.finditer(line):
            if match["inline"]:
                name, value = match["inline"][1], match["inline"][3:-1]
                if name == "K":
                    self.signature = parse_key(value)[2]
                elif name == "L":
                    self.unit = Fraction(value.strip())
            elif match["bar"]:
                self.accidentals = {}
                self.bars.append(float(self.time))
            elif match["p"]:
                count = int(match["p"])
                if count in _TUPLETS:
                    self.tuplet_scale = Fraction(int(match["q"] or _TUPLETS[count]), count)
                    self.tuplet_left = int(match["r"] or count)
            elif match["chord"]:
                self.chord = []
            elif match["endchord"] is not None and self.chord is not None:
                if self.chord:
                    self.add([p for p, _ in self.chord], self.chord[0][1] * parse_length(match["clen"]))
                self.chord = None
            elif match["note"]:
                length = parse_length(match["len"])
                if match["note"] in "zx":
                    self.add([], length)
                elif self.chord is not None:
                    self.chord.append((self.pitch(match), length))
                else:
                    self.add([self.pitch(match)], length)
            elif match["tie"]:
                self.tied = set(self.last)
            elif match["broken"] and self.last:
                self.apply_broken(match["broken"])


def parse_tune(text: str) -> Tune:
    """Parses the text of one tune, from its X: field to the next blank line.

    Raises:
      ValueError: if a field cannot be read.
    """
    fields: dict[str, str] = {}
    body: _Body | None = None
    voices: list[str] = []
    for line in text.splitlines():
        line = line.split("%")[0].rstrip().removesuffix("\\")
        header = re.match(r"([A-Za-z]):(?!\|)(.*)", line)
        if header and not (body and header.group(1) in "abcdefgABCDEFG"):
            name, value = header.group(1), header.group(2).strip()
            if name == "V":
                voices.append(value.split()[0] if value else "")
            elif body and name == "K":
                body.signature = parse_key(value)[2]
            elif body and name == "L":
                body.unit = Fraction(value)
            else:
                fields.setdefault(name, value)
            if name == "K" and body is None:
                meter = parse_meter(fields.get("M", "4/4"))
                default = "1/16" if Fraction(*meter) < Fraction(3, 4) else "1/8"
                tonic, mode, signature = parse_key(value)
                body = _Body(Fraction(fields.get("L", default)), signature)
        elif body and line.strip() and (not voices or voices[-1] == voices[0]):
            body.walk(line)
    if body is None:
        raise ValueError("the tune has no K: field, so it has no notes")
    notes = sorted((float(onset), float(length), pitch) for onset, length, pitch in body.notes if length > 0)
    return Tune(
        number=fields.get("X", ""),
        title=fields.get("T", ""),
        rhythm=fields.get("R", "").lower(),
        meter=meter,
        tonic=tonic,
        mode=mode,
        notes=notes,
        bars=body.bars,
    )


def split_book(text: str) -> list[str]:
    """Splits the text of a book into tunes, one string each, beginning with the X: field."""
    return ["X:" + part for part in re.split(r"(?m)^X:", text.replace("\r", ""))[1:]]
