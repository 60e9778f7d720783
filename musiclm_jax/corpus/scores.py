"""Reads real compositions into `Score`s: the music21 corpus, OpenTTD's openmsx and Freedoom's MIDI.

Palestrina, Monteverdi and the Essen collection are left out because of their rights. Parsed scores are cached as JSON
next to the records, since the classical movements take minutes to parse. Scores are read from where they are installed;
nothing is copied into the repository.
"""

import collections
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import struct
from collections.abc import Callable, Iterable

import numpy as np

from musiclm_jax.corpus import abc
from musiclm_jax.data import files

CACHE_VERSION = 1  # part of the cache's file names: increase it when a reader's result changes
OPENMSX = pathlib.Path("/usr/share/games/openttd/baseset/openmsx")
FREEDOOM = (pathlib.Path("/usr/share/games/doom/freedoom1.wad"), pathlib.Path("/usr/share/games/doom/freedoom2.wad"))
DRUMS = 128  # program number for drum kits
UNKNOWN_PROGRAM = -1

# Tune books of the music21 corpus: folder -> (adjective that captions may use, note for the card).
TUNE_BOOKS = {
    "ryansMammoth": ("traditional", "Ryan's Mammoth Collection (1883)"),
    "oneills1850": ("Irish", "O'Neill's Music of Ireland (1903)"),
    "airdsAirs": ("traditional", "Aird's Airs (1782-1801)"),
}
# Sections of O'Neill's book by number of the tune, for tunes without an R: field.
_ONEILL_SECTIONS = (
    (700, "air"),
    (1115, "jig"),
    (1175, "slip jig"),
    (1555, "reel"),
    (1780, "hornpipe"),
    (1800, "dance tune"),
)
TUNE_KINDS = {
    "slip jig": "slip jig",
    "slipjig": "slip jig",
    "jig": "jig",
    "slide": "jig",
    "reel": "reel",
    "hornpipe": "hornpipe",
    "clog": "clog dance",
    "strathspey": "strathspey",
    "fling": "highland fling",
    "waltz": "waltz",
    "march": "march",
    "quick step": "march",
    "quickstep": "march",
    "minuet": "minuet",
    "walkaround": "walkaround",
    "gavotte": "gavotte",
    "air": "air",
}
# Classical works of the music21 corpus: path prefix -> (kind, adjective).
_CLASSICAL = {
    "bach/": ("chorale", "Baroque"),
    "beethoven/": ("string quartet movement", "classical"),
    "haydn/": ("string quartet movement", "classical"),
    "mozart/k545": ("sonata movement", "classical"),
    "mozart/": ("string quartet movement", "classical"),
    "schumann_robert/opus41no1": ("string quartet movement", "Romantic"),
    "schumann_robert/": ("art song", "Romantic"),
    "schubert/": ("art song", "Romantic"),
    "schumann_clara/polonaise": ("polonaise", "Romantic"),
    "schumann_clara/opus17": ("piano trio movement", "Romantic"),
    "chopin/": ("mazurka", "Romantic"),
    "corelli/": ("trio sonata movement", "Baroque"),
    "handel/": ("opera aria", "Baroque"),
    "verdi/": ("opera aria", "Romantic"),
    "weber/": ("concertino", "Romantic"),
    "joplin/": ("ragtime", "American"),
    "leadSheet/": ("song", "American"),
    "johnson_j_r/": ("hymn", "American"),
    "liliuokalani/": ("song", "Hawaiian"),
}


@dataclasses.dataclass
class Score:
    """One composition.

    Attributes:
      id: "<source>/<file or number>", unique.
      source: folder of the music21 corpus, "openmsx" or "freedoom".
      title: title as printed, or "".
      kind: kind of piece ("jig", "chorale", "game music").
      origin: adjective that captions may use ("Irish", "Baroque"), or "".
      meter: (numerator, denominator).
      pickup: onset of the first full bar, in quarter notes, 0 <= pickup < bar.
      tonic: pitch class of the notated key, -1 if not notated.
      mode: name of the notated mode, "" if not notated.
      bpm: the file's tempo in quarter notes per minute; 0 if it has none, as in printed scores.
      programs: General MIDI program of each part, DRUMS for kits, UNKNOWN_PROGRAM for scores.
      notes: float32 `[n, 5]`: onset and duration in quarter notes, MIDI pitch, part, velocity 0..127; sorted by onset.
      composition: id of the group of scores that share a melody or a title, set by compositions.group.
    """

    id: str
    source: str
    title: str
    kind: str
    origin: str
    meter: tuple[int, int]
    pickup: float
    tonic: int
    mode: str
    bpm: float
    programs: list[int]
    notes: np.ndarray
    composition: str = ""

    @property
    def bar(self) -> float:
        """Length of a bar, in quarter notes."""
        return 4.0 * self.meter[0] / self.meter[1]

    @property
    def quarters(self) -> float:
        """Length of the piece, in quarter notes."""
        return float(np.max(self.notes[:, 0] + self.notes[:, 1]))


def _music21():
    try:
        import music21
    except ImportError as error:
        raise SystemExit(
            "musiclm corpus needs music21: pip install '.[corpus]' in a checkout of the repository"
        ) from error
    return music21


def music21_folder() -> pathlib.Path:
    """Returns the folder of the music21 corpus."""
    return pathlib.Path(_music21().__file__).parent / "corpus"


def _tune_kind(tune: abc.Tune, book: str) -> str:
    for text in (tune.rhythm, tune.title.lower()):
        for word, kind in TUNE_KINDS.items():
            if re.search(rf"\b{word}s?\b", text):
                return kind
    if book == "oneills1850" and tune.number.isdigit():
        return next((kind for last, kind in _ONEILL_SECTIONS if int(tune.number) <= last), "march")
    return "folk tune"


def _pickup(bars: Iterable[float], bar: float) -> float:
    """Returns the most common phase of the bar lines, in quarter notes."""
    phases = collections.Counter(round(onset % bar, 3) for onset in bars)
    return phases.most_common(1)[0][0] % bar if phases else 0.0


def _double_if_short(
    notes: np.ndarray, meter: tuple[int, int], pickup: float
) -> tuple[np.ndarray, tuple[int, int], float]:
    """Doubles the note values of tunes in sixteenths (2/4 to 4/4), so that bpm means the same pace in all books."""
    compound = meter[0] % 3 == 0 and meter[0] > 3
    if compound or np.median(notes[:, 1]) > 0.4:
        return notes, meter, pickup
    notes = notes.copy()
    notes[:, :2] *= 2
    return notes, (meter[0] * 2, meter[1]) if meter[0] < 4 else (meter[0], max(meter[1] // 2, 1)), 2 * pickup


def read_tune_books() -> list[Score]:
    """Reads Ryan's, O'Neill's and Aird's tunes; skips tunes with few notes or unreadable fields."""
    result = []
    for book, (origin, _) in TUNE_BOOKS.items():
        seen: collections.Counter[str] = collections.Counter()
        for path in sorted((music21_folder() / book).glob("*.abc")):
            for text in abc.split_book(path.read_text(encoding="utf-8", errors="replace")):
                try:
                    tune = abc.parse_tune(text)
                except ValueError:
                    continue
                if len(tune.notes) < 24:
                    continue
                notes = np.array([[on, length, pitch, 0, 100] for on, length, pitch in tune.notes], np.float32)
                bar = 4.0 * tune.meter[0] / tune.meter[1]
                notes, meter, pickup = _double_if_short(notes, tune.meter, _pickup(tune.bars, bar))
                if not (40 <= notes[:, 2].min() and notes[:, 2].max() <= 103 and notes[:, 1].max() <= 16):
                    continue
                name = f"{book}/{path.stem}" if book == "ryansMammoth" else f"{book}/{tune.number}"
                seen[name] += 1
                result.append(
                    Score(
                        id=name if seen[name] == 1 else f"{name}-{seen[name]}",
                        source=book,
                        title=tune.title,
                        kind=_tune_kind(tune, book),
                        origin=origin,
                        meter=meter,
                        pickup=pickup,
                        tonic=tune.tonic,
                        mode=tune.mode,
                        bpm=0.0,
                        programs=[UNKNOWN_PROGRAM],
                        notes=notes,
                    )
                )
    return result


def _classical_score(music21, path: pathlib.Path, name: str, kind: str, origin: str) -> Score | None:
    stream = music21.converter.parse(path, forceSource=True)
    if isinstance(stream, music21.stream.Opus):
        stream = stream.scores[0]
    rows = []
    parts = list(stream.parts)
    for index, part in enumerate(parts):
        for element in part.stripTies().flatten().notes:
            if element.quarterLength > 0 and hasattr(element, "pitches"):
                onset, length = float(element.offset), float(element.quarterLength)
                rows += [[onset, length, pitch.midi, index, 90] for pitch in element.pitches]
    if len(rows) < 40:
        return None
    signature = next(iter(stream.recurse().getElementsByClass(music21.meter.TimeSignature)), None)
    meter = (signature.numerator, signature.denominator) if signature else (4, 4)
    bars = [float(m.offset) for m in parts[0].getElementsByClass(music21.stream.Measure)]
    notes = np.array(sorted(rows), np.float32)
    pickup = _pickup(bars, 4.0 * meter[0] / meter[1])
    notes, meter, pickup = _double_if_short(notes, meter, pickup)
    return Score(name, "music21 " + name.split("/")[0], path.stem, kind, origin, meter, pickup, -1, "", 0.0,
                 [UNKNOWN_PROGRAM] * len(parts), notes)  # fmt: skip


def read_classical(progress: Callable[[str], None] = print) -> list[Score]:
    """Reads Bach's chorales and the classical movements of the music21 corpus; reports and skips unreadable files."""
    music21, root, result = _music21(), music21_folder(), []
    paths = []
    for prefix, (kind, origin) in _CLASSICAL.items():
        folder = root / prefix.split("/")[0]
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(root).as_posix()
            claimed = (
                next(p for p in sorted(_CLASSICAL, key=len, reverse=True) if name.startswith(p))
                if path.is_file()
                else ""
            )
            if claimed == prefix and path.suffix in (".mxl", ".xml", ".musicxml", ".krn"):
                if path.suffix != ".krn" or not path.with_suffix(".mxl").exists():
                    paths.append((path, name, kind, origin))
    for count, (path, name, kind, origin) in enumerate(paths):
        try:
            score = _classical_score(music21, path, name, kind, origin)
        except Exception as error:  # music21 raises many exception types; losing an unreadable file does no harm
            progress(f"scores: skipped {name}: {type(error).__name__}: {error}")
            continue
        if score is not None:
            result.append(score)
        if count % 50 == 49:
            progress(f"scores: read {count + 1} of {len(paths)} classical works")
    return result


def midi_score(data: bytes, name: str, source: str, title: str) -> Score | None:
    """Converts a MIDI file to a Score of kind "game music"; returns None if it has fewer than 40 notes."""
    try:
        import pretty_midi
    except ImportError as error:
        raise SystemExit(
            "musiclm corpus needs pretty_midi: pip install '.[corpus]' in a checkout of the repository"
        ) from error
    midi = pretty_midi.PrettyMIDI(io.BytesIO(data))
    rows: list = []
    programs: list[int] = []
    for instrument in midi.instruments:
        # Programs from 112 on are percussion and sound effects; only steel drums (114) play melodies.
        if not instrument.is_drum and instrument.program >= 112 and instrument.program != 114:
            continue
        if len(instrument.notes) < 4:
            continue
        for note in instrument.notes:
            onset, end = (midi.time_to_tick(t) / midi.resolution for t in (note.start, note.end))
            if end > onset:
                rows.append([onset, end - onset, note.pitch, len(programs), note.velocity])
        programs.append(DRUMS if instrument.is_drum else int(instrument.program))
    if len(rows) < 40:
        return None
    signature = midi.time_signature_changes
    meter = (signature[0].numerator, signature[0].denominator) if signature else (4, 4)
    notes = np.array(sorted(rows), np.float32)
    bpm = float(np.median(midi.get_tempo_changes()[1]))
    return Score(name, source, title, "game music", "", meter, 0.0, -1, "", bpm, programs, notes)


def read_openmsx() -> list[Score]:
    """Reads the pieces of OpenTTD's free music set."""
    paths = sorted(OPENMSX.glob("*.mid"))
    scores = [midi_score(p.read_bytes(), f"openmsx/{p.stem}", "openmsx", p.stem.replace("_", " ")) for p in paths]
    return [score for score in scores if score]


def wad_lumps(data: bytes) -> dict[str, bytes]:
    """Returns the MIDI lumps of a WAD file by name."""
    count, offset = struct.unpack("<ii", data[4:12])
    lumps = {}
    for index in range(count):
        position, size, name = struct.unpack("<ii8s", data[offset + 16 * index : offset + 16 * index + 16])
        if data[position : position + 4] == b"MThd":
            lumps[name.rstrip(b"\0").decode("ascii")] = data[position : position + size]
    return lumps


def read_freedoom() -> list[Score]:
    """Reads the music of Freedoom's two phases, without duplicate files."""
    result, seen = [], set()
    for path in FREEDOOM:
        for name, data in wad_lumps(path.read_bytes()).items():
            digest = hashlib.sha1(data).hexdigest()
            score = midi_score(data, f"freedoom/{path.stem}-{name}", "freedoom", name) if digest not in seen else None
            seen.add(digest)
            result += [score] if score else []
    return result


def _to_json(score: Score) -> dict:
    fields = dataclasses.asdict(score)
    fields["notes"] = np.round(score.notes.astype(float), 4).tolist()
    return fields


def load_scores(cache: pathlib.Path, progress: Callable[[str], None] = print) -> tuple[list[Score], dict[str, str]]:
    """Loads all installed scores, from the cache if possible.

    Args:
      cache: folder for the parsed scores.
      progress: called with lines of text.

    Returns:
      (scores sorted by id, {name of a missing source: command that installs it}).
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = {}
    readers: dict[str, Callable[[], list[Score]]] = {
        "tune_books": read_tune_books,
        "classical": lambda: read_classical(progress),
    }
    for name, paths, reader in (
        ("openttd-openmsx", (OPENMSX,), read_openmsx),
        ("freedoom", FREEDOOM, read_freedoom),
    ):
        if all(path.exists() for path in paths):
            readers[name] = reader
        else:
            missing[name] = f"apt install {name}"
            progress(f"scores: Debian package {name} is not installed: continuing without it (apt install {name})")
    scores = []
    for name, reader in readers.items():
        path = cache / f"{name}-v{CACHE_VERSION}.json"
        if path.exists():
            rows = files.read_json(path, "delete it, and it is made again", list)
            found = [
                Score(**{**r, "meter": tuple(r["meter"]), "notes": np.array(r["notes"], np.float32)}) for r in rows
            ]
        else:
            found = reader()
            files.write(path, json.dumps([_to_json(score) for score in found]))
            # The cache is rounded; round here, too, so that the first run equals later ones.
            for score in found:
                score.notes = np.round(score.notes.astype(float), 4).astype(np.float32)
        progress(f"scores: {len(found)} from {name}")
        scores += found
    scores.sort(key=lambda score: score.id)
    return scores, missing
