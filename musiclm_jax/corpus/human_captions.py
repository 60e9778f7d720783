"""Extracts sentences that people wrote about music (MusicCaps), and the facts they state in the corpus's terms.

A clip of the corpus may be paired with a sentence if all its facts are true of the clip. A sentence is used only if it
names one of the lead instruments, and nothing that the corpus never contains: other instruments, singers, speech,
noises, genres. Whole captions rarely pass; single sentences and clauses do. human_words.py holds the patterns.

MusicCaps is also an evaluation set: to evaluate on it, train only with captions whose `split` is "train".
"""

import ast
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from musiclm_jax.corpus import human_words as words
from musiclm_jax.data import files, text_files

MOST_WORDS = 45  # longer texts state too much that cannot be checked
FEWEST_WORDS = 2
MOST_INSTRUMENTS = 2


@dataclasses.dataclass(frozen=True)
class HumanCaption:
    """A text and the facts that it states; facts that it does not state are empty.

    Attributes:
      text: as written, without "low quality" before "recording", which does not apply to the corpus.
      source: MusicCaps' ytid.
      split: "train", or "test" for AudioSet's evaluation segments.
      part: "caption", "sentence", "clause" or "aspect" (a phrase from MusicCaps' aspect lists).
      instruments: leads of the corpus, in the order in which they are named; the first is the main one.
      tempo: "slow", "moderate", "fast" or "".
      mode: "major", "minor" or "".
      moods: keys of human_words.MOODS.
      texture: "solo", "accompanied" or "".
      drums: whether there are drums; None if not stated.
      kinds: allowed kinds of pieces; empty if any kind fits.
      chords: whether the lead plays several notes at once.
      reverb: whether the sound is reverberant.
    """

    text: str
    source: str
    split: str
    part: str
    instruments: tuple[str, ...]
    tempo: str = ""
    mode: str = ""
    moods: tuple[str, ...] = ()
    texture: str = ""
    drums: bool | None = None
    kinds: tuple[str, ...] = ()
    chords: bool = False
    reverb: bool = False


def _names(pattern: str, text: str) -> bool:
    return re.search(rf"\b(?:{pattern})\b", text) is not None


def _cut(patterns: Mapping[str, str], text: str) -> tuple[dict[str, int], str]:
    """Returns the first position of each pattern that matches, and the text with all matches masked.

    Longer names must come first, so that "piano" does not match an electric piano.
    """
    found: dict[str, int] = {}
    for name, pattern in patterns.items():
        matches = list(re.finditer(rf"\b(?:{pattern})\b", text))
        if matches:
            found[name] = matches[0].start()
            text = re.sub(rf"\b(?:{pattern})\b", lambda match: "_" * len(match[0]), text)
    return found, text


def find_facts(text: str) -> dict[str, Any] | None:
    """Finds the facts in a text, by the names of HumanCaption's fields; None if it cannot be used for the corpus.

    Args:
      text: a caption, a sentence or a clause.
    """
    lower = " ".join(text.lower().split())
    if not FEWEST_WORDS <= len(lower.split()) <= MOST_WORDS:
        return None
    # A negation is not a mention: "there are no voices", "no percussion".
    no_drums, no_others = _names(words.NO_DRUMS, lower), _names(words.NO_OTHERS, lower)
    rest = re.sub(words.NEGATED, lambda match: " " * len(match[0]), lower)
    found, rest = _cut(words.INSTRUMENTS, rest)
    instruments = tuple(sorted((name for name in found if name != words.OTHER), key=lambda name: found[name]))
    if words.OTHER in found or not 1 <= len(instruments) <= MOST_INSTRUMENTS:
        return None
    foreign = words.FOREIGN if "choir" in instruments else f"{words.FOREIGN}|{words.VOICES}"
    if _names(foreign, rest) or _names(words.CHANGES, rest):
        return None
    drums = _names(words.DRUMS, rest)
    place = found[instruments[0]]
    # The lead must not be an accompaniment ("accompanied by a flute", "a flute in the background") or a comparison
    # ("something like a fiddle").
    if _names(f"{words.SIDE_ROLES}|{words.SUPPOSED}", rest[:place]):
        return None
    if re.match(r"_+ (?:accompaniment|backing)", rest[place:]):
        return None
    if len(instruments) == 1 and not drums and _names(words.BEHIND, rest):
        return None
    tempi = [name for name, pattern in words.TEMPI.items() if _names(pattern, rest)]
    modes = [name for name in ("major", "minor") if _names(rf"{name} (?:key|scale|mode|chords?)|in {name}", rest)]
    solo = no_others or _names(words.SOLO, rest)
    accompanied = drums or len(instruments) > 1 or _names(words.ACCOMPANIED, rest)
    if len(tempi) > 1 or len(modes) > 1 or (solo and accompanied) or (drums and no_drums):
        return None
    # "It would suit a video game" does not say that it is game music.
    stated = " ".join(part for part in re.split(r"[.!?]", rest) if not _names(words.SUPPOSED, part))
    kinds = [set(kinds) for pattern, kinds in words.KINDS.items() if _names(pattern, stated)]
    common = sorted(set.intersection(*kinds)) if kinds else []
    if kinds and not common:
        return None
    return {
        "instruments": instruments,
        "tempo": tempi[0] if tempi else "",
        "mode": modes[0] if modes else "",
        "moods": tuple(name for name, mood in words.MOODS.items() if _names(mood.pattern, rest)),
        "texture": "solo" if solo else "accompanied" if accompanied else "",
        "drums": True if drums else False if no_drums or solo else None,
        "kinds": tuple(common),
        "chords": _names(words.CHORDS, rest),
        "reverb": _names(words.REVERB, rest),
    }


def _parts(caption: str) -> list[tuple[str, str]]:
    """Returns (part, text) for a caption, its sentences and their clauses."""
    sentences = [
        text.strip() for text in re.split(r"(?<=[.!?])\s+|(?<=[a-z])\.(?=[a-zA-Z]{2})", caption) if text.strip()
    ]
    parts = [("caption", caption)] if len(sentences) > 1 else []
    for sentence in sentences:
        parts.append(("sentence", sentence))
        clauses = [text.strip(" ,;") for text in re.split(r";|,? (?:while|whereas) ", sentence)]
        parts += [("clause", clause) for clause in clauses if len(clauses) > 1]
    return parts


def _aspects(text: str) -> list[tuple[str, str]]:
    """Returns ("aspect", phrase) for each phrase in a cell with an aspect list; none if the cell is not a list."""
    try:
        return [("aspect", str(phrase).strip()) for phrase in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        return []


def read(path: str | os.PathLike[str]) -> list[HumanCaption]:
    """Reads MusicCaps' CSV file: all captions, parts of captions and aspects that fit the corpus.

    Args:
      path: musiccaps-public.csv.

    Returns:
      The distinct texts, in the order of the file.

    Raises:
      ValueError: if the file is not MusicCaps' CSV.
    """
    columns, rows = text_files.table(path)
    if lacking := [name for name in ("ytid", "caption", "is_audioset_eval") if name not in columns]:
        raise ValueError(f"{path} has no column {', '.join(lacking)}: expected MusicCaps' captions")
    result: dict[str, HumanCaption] = {}
    for row in rows:
        split = "test" if text_files.is_true(row["is_audioset_eval"]) else "train"
        for part, text in _parts(row["caption"].strip()) + _aspects(row.get("aspect_list", "")):
            text = re.sub(r"\b(?:low|poor|bad)[- ]quality (?=recording\b)", "", text)
            if text.lower() not in result and (facts := find_facts(text)):
                result[text.lower()] = HumanCaption(text, row["ytid"], split, part, **facts)
    return list(result.values())


def _agrees(caption: HumanCaption, clip: Mapping[str, Any]) -> bool:
    """Returns whether all facts of a caption are known to be true of a clip."""
    main, *others = caption.instruments
    beside = " ".join(clip.get("companions", ())).lower()
    moods = [words.MOODS[name] for name in caption.moods]
    return (
        clip["instrument"] == main
        and all(_names(words.INSTRUMENTS[other], beside) for other in others)
        and caption.tempo in ("", clip["tempo"])
        and caption.mode in ("", clip["mode"])
        and all(clip["mode"] in mood.modes and clip["tempo"] in mood.tempi for mood in moods)
        and (not caption.texture or (caption.texture == "solo") == (clip["texture"] == "solo"))
        and caption.drums in (None, bool(clip["drums"]))
        and (not caption.kinds or clip["kind"] in caption.kinds)
        and (not caption.chords or clip.get("voices") == "in harmony")
        and (not caption.reverb or clip.get("room") in ("room", "hall"))
    )


def match(captions: Sequence[HumanCaption], clip: Mapping[str, Any]) -> list[int]:
    """Returns the indices of the captions whose facts are all true of a clip.

    Args:
      captions: from `read` or `load`.
      clip: metadata of a clip: instrument, tempo, mode, texture, drums, kind; companions, voices and room if known (a
        caption that states an unknown fact does not match).
    """
    return [number for number, caption in enumerate(captions) if _agrees(caption, clip)]


def save(captions: Sequence[HumanCaption], path: str | os.PathLike[str]) -> None:
    """Writes captions as JSON, one per line, without empty fields."""
    defaults = {field.name: field.default for field in dataclasses.fields(HumanCaption)}
    rows = [
        {name: value for name, value in dataclasses.asdict(caption).items() if value != defaults[name]}
        for caption in captions
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    files.write(pathlib.Path(path), f"[\n{lines}\n]\n")


def load(path: str | os.PathLike[str]) -> list[HumanCaption]:
    """Reads captions that `save` wrote.

    Raises:
      ValueError: if the file has another format.
    """
    try:
        rows = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        for row in rows:
            row.update({name: tuple(value) for name, value in row.items() if isinstance(value, list)})
        return [HumanCaption(**row) for row in rows]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not contain extracted captions ({error})") from error
