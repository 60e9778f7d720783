"""Paraphrases captions in words that the corpus never uses, and checks that no content word repeats.

The wording is hand-written for the instruments, kinds, tempi, modes and textures of the corpus. `repeated_words`
compares its content words with all captions and aspects of the corpus by a crude stem ("ringing" counts as "ring").
"""

import json
import pathlib
import re
from typing import Any

FUNCTION_WORDS = frozenset(
    "a an the and of in on at by with from for to as its it his this that over above under no in into out up down "
    "through across just all one like".split()
)
INSTRUMENTS = {
    "piano": ("a grand keyboard, hammers and pedals", "ivory keyboard recital"),
    "church organ": ("huge cathedral tubes driven by bellows", "a cathedral loft, stops and bellows"),
    "string ensemble": ("many bowed cellos and violas", "a lush symphony of cellos and violas"),
    "choir": ("many people vocalising in a chapel", "monks chanting, human vocals"),
    "trumpet": ("a shiny bugle, piercing fanfare", "a valved bugle blown by a jazz horn player"),
    "trombone": ("a deep slide horn", "a low sliding tuba-like horn"),
    "flute": ("a breathy woodwind tube", "breezy piccolo woodwind blown softly"),
    "acoustic guitar": ("a fingerpicked hollow wooden body with six wires", "campfire fingerpicking by a troubadour"),
    "vibraphone": ("tuned aluminium bars hit with padded beaters", "shimmering xylophone bars, jazz club"),
    "celesta": ("glockenspiel twinkling, delicate", "tiny twinkling glockenspiel of a sugar plum fairy"),
    "tubular bells": ("long hanging metal tubes ringing as in a clock tower", "clock tower gongs ringing"),
    "synth lead": ("a buzzing analog oscillator", "retro buzzing keyboard oscillator, techno"),
    "synth bass": ("squelchy sub-heavy analog low end", "a deep rubbery techno low end"),
    "steel drums": ("tuned oil barrels from Trinidad, calypso", "tropical beach calypso"),
    "harpsichord": ("an antique clavecin with quills", "renaissance court keyboard, jangling clavecin"),
    "fiddle": ("a small bowed Stradivarius held under the chin", "a bowed Stradivarius, horsehair and rosin"),
    "sitar": ("a twanging raga from Delhi", "Hindustani raga, Bollywood twang"),
    "banjo": ("bluegrass picking from Appalachia", "hillbilly bluegrass twang"),
    "bagpipe": ("a kilted Edinburgh piper", "a piper in a kilt, skirling"),
    "electric piano": ("a smooth Rhodes keyboard, lounge", "a Wurlitzer keyboard, soul lounge"),
}
KINDS = {
    "jig": "a bouncing Celtic step in six-eight",
    "slip jig": "a skipping Celtic step in nine-eight",
    "reel": "a whirling Celtic ceilidh step",
    "hornpipe": "a sailor's shanty",
    "clog dance": "a stomping wooden-shoe number",
    "strathspey": "a snappy Caledonian number",
    "highland fling": "a hopping Caledonian number",
    "air": "a lyrical Celtic ballad",
    "waltz": "a ballroom number in three-four",
    "march": "a military parade",
    "minuet": "an elegant courtly number",
    "gavotte": "an elegant courtly number",
    "walkaround": "a minstrel show number",
    "folk tune": "a rustic country ditty",
    "dance tune": "a rustic barn ditty",
    "chorale": "a solemn Lutheran psalm",
    "string quartet movement": "a Viennese work of Haydn's era",
    "sonata movement": "a Viennese recital work",
    "ragtime": "a syncopated saloon number",
    "game music": "an arcade console level theme",
    "polonaise": "a Polish courtly number",
    "mazurka": "a Polish country number",
    "art song": "a lied",
    "song": "a parlour number",
    "hymn": "a psalm",
    "opera aria": "a theatrical diva number",
    "piano trio movement": "a salon work",
    "trio sonata movement": "a Vivaldi-era work",
    "concertino": "a virtuoso showpiece",
}
TEMPI = {"slow": "drowsy, at a crawl", "moderate": "strolling along", "fast": "racing along frantically"}
MODES = {"major": "sunny", "minor": "gloomy"}
TEXTURES = {
    "solo": "just one performer",
    "drone and bass": "over a humming unchanging pitch",
    "with drums": "with snares and cymbals",
    "ensemble": "plus fellow performers",
    "band": "plus a whole rock group, snares and cymbals",
}


def paraphrase(record: dict[str, Any]) -> str:
    """Describes a clip of the corpus in fresh words; the instrument's wording alternates with the clip's number.

    Raises:
      ValueError: if an instrument, kind or texture has no wording yet.
    """
    for field, wording in (("instrument", INSTRUMENTS), ("kind", KINDS), ("texture", TEXTURES)):
        if record[field] not in wording:
            raise ValueError(f"{field} {record[field]!r} has no wording: add it to benchmarks/paraphrases.py")
    number = int(re.sub(r"\D", "", record["id"]) or 0)
    choices = INSTRUMENTS[record["instrument"]]
    tempo = next((words for name, words in TEMPI.items() if f"{name} tempo" in record["aspects"]), "")
    mode = next((word for name, word in MODES.items() if f"{name} key" in record["aspects"]), "")
    parts = [choices[number // len(INSTRUMENTS) % len(choices)], KINDS[record["kind"]], mode, tempo]
    return ", ".join(part for part in [*parts, TEXTURES[record["texture"]]] if part)


def _stems(text: str) -> set[str]:
    words = re.findall(r"[a-z]+", text.lower())
    return {re.sub(r"(ings|ing|ed|ly|es|s)$", "", word) if len(word) > 4 else word for word in words}


def corpus_words(corpus: str) -> set[str]:
    """Returns the stems of all words in the captions and aspects of all splits.

    Raises:
      ValueError: if the corpus has no metadata.jsonl, which the build writes when it is complete.
    """
    path = pathlib.Path(corpus).expanduser() / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the corpus is not complete; run `musiclm corpus` again")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return set().union(*(_stems(text) for row in rows for text in [*row["caption"], *row["aspects"]]))


def repeated_words(used: set[str]) -> set[str]:
    """Returns the stems of this file's content words that occur in `used`."""
    instruments = [text for texts in INSTRUMENTS.values() for text in texts]
    wording = [*instruments, *KINDS.values(), *TEMPI.values(), *MODES.values(), *TEXTURES.values()]
    return (set().union(*(_stems(text) for text in wording)) - _stems(" ".join(FUNCTION_WORDS))) & used
